"""Each member of a sweep gets the directory that its run alone would have left.

What is written here is a run that has just trained: checkpoint and metrics. The runner, told to go
on with it, evaluates and writes the rest, so that there is one place that says how a run looks.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.core import results, runner
from experiments.core.checkpoints import Checkpoints
from experiments.core.identity import claim, identity_of
from experiments.core.logbook import Logbook, read_metrics
from experiments.core.runner import Experiment
from experiments.sweep.config import Member
from experiments.sweep.together import on_one_device, slice_member


def hand_over(
    base: Experiment,
    members: Sequence[Member],
    states: Mapping[str, Any],
    *,
    preset: str,
    shared: Path,
    workdir: Path,
) -> list[dict[str, Any]]:
    """Writes the members' directories; those that are there from before a kill are left.

    Args:
        base: the experiment of the members.
        members: all of them.
        states: the stacked state, by the name of its stage.
        preset: that their settings began from.
        shared: the run that trained them.
        workdir: in which their directories are made.

    Returns:
        Rows of the sweep's results: of each member's first setting, with its label.
    """
    ((stage, stacked),) = states.items()
    store = Checkpoints(shared / "checkpoints" / stage)
    saved: Any = store.restore(lambda: stacked, warn=print, read_only=True)
    store.close()
    clock = {name: saved.info[name] for name in ("train_s", "compile_s")}
    metrics, rows, stacked = read_metrics(shared), [], on_one_device(stacked)
    for i, member in enumerate(members):
        print(f"  {i + 1} of {len(members)}: {member.label}", flush=True)
        directory, state = workdir / member.label, slice_member(stacked, i)
        identity = identity_of(base.name, preset, member.seed, member.settings)
        # Members share the program's time evenly: they took part in every step of it.
        info = {name: seconds / len(members) for name, seconds in clock.items()}
        step = int(getattr(state, "train", state).step)
        entries = _entries(metrics, member.label, step, len(members))
        _write_trained(
            directory, stage, step, state, entries, {**info, "run": identity, "stage": stage}
        )
        if step < member.settings.meta_steps:
            rows.append(_diverged_row(stage, member.label, step))
            continue
        with contextlib.redirect_stdout(io.StringIO()):
            found = runner.run(base, directory, member.settings, preset=preset, seed=member.seed)
        if "sweep" not in found:
            found = {**found, "sweep": {"members": len(members), **clock}}
            results.write_results(directory / "results.json", found)
        main = [row for row in found["rows"] if row["setting"] == found["rows"][0]["setting"]]
        rows += [_labelled(row, member.label, row["setting"]) for row in main]
    return rows


def _entries(
    metrics: Sequence[Mapping[str, Any]], label: str, last_step: int, num_members: int
) -> list[tuple[int, dict[str, Any]]]:
    """A member's own metrics, by step, from those of the sweep."""
    prefix, entries = f"{label}/", []
    for entry in metrics:
        own = {k.removeprefix(prefix): v for k, v in entry.items() if k.startswith(prefix)}
        if own and entry["step"] <= last_step:
            pace = entry["meta_steps_per_s"] * num_members
            entries.append((entry["step"], {**own, "meta_steps_per_s": pace}))
    return entries


def _write_trained(
    directory: Path,
    stage: str,
    step: int,
    state: Any,
    entries: Sequence[tuple[int, dict[str, Any]]],
    info: dict[str, Any],
) -> None:
    """Writes what a run leaves that trained up to a step; the checkpoint comes last.

    Raises:
        RunError: the directory holds another run.
    """
    directory.mkdir(parents=True, exist_ok=True)
    claim(directory, info["run"])
    store = Checkpoints(directory / "checkpoints" / stage)
    try:
        if store.steps():
            return
        logbook = Logbook(directory, {})
        for at, values in entries:
            logbook.write(stage, at, values)
        logbook.close()
        if step > 0:
            store.save(step, state, info)
    finally:
        store.close()


def _labelled(row: Mapping[str, Any], label: str, setting: str) -> dict[str, Any]:
    return {**row, "setting": f"{label}: {setting}", "member": label}


def _diverged_row(method: str, label: str, step: int) -> dict[str, Any]:
    """What is said of a member that has no results."""
    row = {
        "method": method,
        "gradient_steps": None,
        "metric": "loss",
        "mean": None,
        "ci95": None,
        "num_tasks": 0,
        "diverged_after": step,
    }
    return _labelled(row, label, "diverged in training")
