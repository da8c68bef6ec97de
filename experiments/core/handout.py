"""Writes each member of a run as a run in a separate directory.

This module writes checkpoints and metrics. The runner then evaluates the directory like any run
whose training is finished, and writes the remaining files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maml_jax import NonFiniteError

from . import distributed, results
from .checkpoints import Checkpoints
from .identity import claim, identity_of
from .logbook import Logbook, of_member, read_metrics
from .loop import StageState
from .members import Member, take, to_this_process
from .stages import Experiment, Stage


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run of several members whose stages are trained.

    Attributes:
        experiment: of the run.
        workdir: of the run; contains the members' directories.
        preset: name of the preset that the settings started from.
        members: of the run.
        stages: of the run.
        states: of the stages, by name.
    """

    experiment: Experiment
    workdir: Path
    preset: str
    members: Sequence[Member]
    stages: Sequence[Stage]
    states: Mapping[str, StageState]


def hand_out(trained: Trained, run: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Writes and evaluates every member's directory; keeps directories that are complete.

    Args:
        trained: the run.
        run: `runner.run`; called for each member.

    Returns:
        `"rows"` and `"members"` of the run's `results.json`, and `"evaluate_s"`, seconds.

    Raises:
        NonFiniteError: every member diverged in some stage.
    """
    states, members = trained.states.values(), trained.members
    homes = {name: to_this_process(state.selection) for name, state in trained.states.items()}
    entries = read_metrics(trained.workdir)
    clock = {
        "members": len(members),
        "train_s": sum(state.train_s for state in states),
        "compile_s": sum(state.compile_s for state in states),
    }
    finished, lines, seconds = {}, {}, 0.0
    for i, member in enumerate(members):
        print(f"  {i + 1} of {len(members)}: {member.label}", flush=True)
        directory, settings = trained.workdir / member.label, member.settings
        parts = {name: take(home, slice(i, i + 1)) for name, home in homes.items()}
        diverged = _write_trained(trained, member, parts, of_member(entries, member.label))
        if diverged is not None:
            lines[member.label] = {"validation": None, "diverged_after": diverged}
            continue
        options = {"preset": trained.preset, "seed": member.seed, "tell": lambda text: None}
        record = run(trained.experiment, directory, settings, **options)
        if "together" not in record:
            record = {**record, "together": clock}
            if distributed.is_first():
                results.write_results(directory / "results.json", record)
        finished[member.label] = record
        seconds += record["wall_clock_s"]["evaluate"]
        score = _validation_score(trained.stages, parts)
        lines[member.label] = {**_main_row(settings, record["rows"]), "validation": score}
    if not finished:
        after = ", ".join(f"{k} after meta-step {v['diverged_after']:,}" for k, v in lines.items())
        raise NonFiniteError(f"no member of the run is left; they diverged: {after}.")
    rows = []
    for group in dict.fromkeys(member.group for member in members):
        labels = [m.label for m in members if m.group == group and m.label in finished]
        rows += results.pooled_rows([finished[label] for label in labels], group)
    return {"rows": rows, "members": lines, "evaluate_s": seconds}


def _write_trained(
    trained: Trained,
    member: Member,
    parts: Mapping[str, Any],
    entries: Sequence[dict[str, Any]],
) -> int | None:
    """Writes the checkpoints and metrics of a member into its directory.

    Args:
        trained: the run.
        member: of the run.
        parts: the member's state of each stage, with an axis of one member.
        entries: the member's metrics.

    Returns:
        The last meta-step before the member diverged, or None if it did not.

    Raises:
        RunError: the directory holds another run.
    """
    directory, count = trained.workdir / member.label, len(trained.members)
    identity = identity_of(trained.experiment.name, trained.preset, member.seed, member.settings)
    steps = {name: int(part.state.step[0]) for name, part in parts.items()}
    if distributed.first_decides(lambda: _begin(directory, identity)):
        if distributed.is_first():
            logbook = Logbook(directory, {})
            for entry in entries:
                at, stage = entry.pop("step"), entry.pop("stage")
                if at <= steps[stage]:
                    pace = entry["meta_steps_per_s"] * count
                    logbook.write(stage, at, {**entry, "meta_steps_per_s": pace})
            logbook.close()
        for name, state in trained.states.items():
            # Each member takes part in every step of the program, so all get an equal share.
            info = {"train_s": state.train_s / count, "compile_s": state.compile_s / count}
            store = Checkpoints(directory / "checkpoints" / name)
            if steps[name] > 0 and steps[name] not in store.steps():
                store.save(steps[name], parts[name], {**info, "run": identity, "stage": name})
            store.close()
    diverged = [s.name for s in trained.stages if steps[s.name] < s.num_meta_steps]
    return min(steps[name] for name in diverged) if diverged else None


def _begin(directory: Path, identity: dict[str, Any]) -> bool:
    """Claims a member's directory and returns whether it still needs writing."""
    directory.mkdir(parents=True, exist_ok=True)
    claim(directory, identity)
    return not (directory / "results.json").exists()


def _validation_score(stages: Sequence[Stage], parts: Mapping[str, Any]) -> float | None:
    """The validation score of the first stage that has one; None without such a stage."""
    name = next((stage.name for stage in stages if stage.score is not None), None)
    score = -np.inf if name is None else float(parts[name].best_score[0])
    return score if np.isfinite(score) else None


def _main_row(settings: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The row of the table of members: first method, first setting.

    Takes the row after `report_steps` gradient steps if the settings have that field and the row
    exists, otherwise the row after the last step.
    """
    first = [
        row
        for row in rows
        if (row["method"], row["setting"]) == (rows[0]["method"], rows[0]["setting"])
    ]
    wanted = getattr(settings, "report_steps", None)
    main = next((row for row in first if row["gradient_steps"] == wanted), first[-1])
    keys = ("method", "setting", "gradient_steps", "metric", "mean", "ci95")
    return {key: main[key] for key in keys}
