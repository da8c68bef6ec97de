"""Each member of a run gets the directory that its run alone would have left.

What is written here is a run that has just trained: checkpoints and metrics. The runner, called on
that directory, evaluates and writes the rest, so that one place says how a run looks.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.core import distributed, results
from experiments.core.checkpoints import Checkpoints
from experiments.core.identity import claim, identity_of
from experiments.core.logbook import Logbook, of_member, read_metrics
from experiments.core.loop import StageState
from experiments.core.members import Member, take, to_this_process
from experiments.core.stages import Experiment, Stage


def hand_out(
    experiment: Experiment,
    workdir: Path,
    preset: str,
    members: Sequence[Member],
    stages: Sequence[Stage],
    states: Mapping[str, StageState],
    run: Callable[..., dict[str, Any]],
) -> dict[str, Any]:
    """Writes and evaluates the members' directories; those from before a kill are left.

    Args:
        experiment: of the run.
        workdir: of the run, in which the directories are made.
        preset: that the settings began from.
        members: all of them.
        stages: of the run.
        states: the trained states of all stages.
        run: `runner.run`.

    Returns:
        The rows and the members of the run's `results.json`, and the seconds of evaluation.
    """
    homes = {name: to_this_process(state.selection) for name, state in states.items()}
    entries = read_metrics(workdir)
    clock = {
        "members": len(members),
        "train_s": sum(state.train_s for state in states.values()),
        "compile_s": sum(state.compile_s for state in states.values()),
    }
    finished, lines, seconds = {}, {}, 0.0
    for i, member in enumerate(members):
        print(f"  {i + 1} of {len(members)}: {member.label}", flush=True)
        directory = workdir / member.label
        diverged = _write_trained(
            experiment, directory, preset, member, stages, states, homes, entries, i, len(members)
        )
        score = _validation_score(stages, homes, i)
        if diverged is not None:
            lines[member.label] = {"validation": None, "diverged_after": diverged}
            continue
        with contextlib.redirect_stdout(io.StringIO()):
            found = run(experiment, directory, member.settings, preset=preset, seed=member.seed)
        if "together" not in found:
            found = {**found, "together": clock}
            if distributed.is_first():
                results.write_results(directory / "results.json", found)
        finished[member.label] = found
        seconds += found["wall_clock_s"]["evaluate"]
        lines[member.label] = {**_main_row(member.settings, found["rows"]), "validation": score}
    rows = []
    for group in dict.fromkeys(member.group for member in members):
        labels = [m.label for m in members if m.group == group and m.label in finished]
        rows += results.pooled_rows([finished[label] for label in labels], group)
    return {"rows": rows, "members": lines, "evaluate_s": seconds}


def _write_trained(
    experiment: Experiment,
    directory: Path,
    preset: str,
    member: Member,
    stages: Sequence[Stage],
    states: Mapping[str, StageState],
    homes: Mapping[str, Any],
    entries: Sequence[Mapping[str, Any]],
    index: int,
    count: int,
) -> int | None:
    """Writes what a run leaves that has trained.

    Returns:
        The meta-step at which the member diverged, or None.

    Raises:
        RunError: the directory holds another run.
    """
    identity = identity_of(experiment.name, preset, member.seed, member.settings)
    steps = {name: int(home.state.step[index]) for name, home in homes.items()}
    diverged = [steps[stage.name] for stage in stages if steps[stage.name] < stage.num_steps]
    begun = distributed.first_decides(lambda: _begin(directory, identity))
    if begun and distributed.is_first():
        logbook = Logbook(directory, {})
        for entry in of_member(entries, member.label):
            at, stage = entry.pop("step"), entry.pop("stage")
            if at <= steps[stage]:
                pace = entry["meta_steps_per_s"] * count
                logbook.write(stage, at, {**entry, "meta_steps_per_s": pace})
        logbook.close()
    for stage in stages if begun else ():
        name, state = stage.name, states[stage.name]
        # Members share the program's time evenly: they took part in every step of it.
        info = {"train_s": state.train_s / count, "compile_s": state.compile_s / count}
        store = Checkpoints(directory / "checkpoints" / name)
        if steps[name] > 0 and steps[name] not in store.steps():
            home = take(homes[name], slice(index, index + 1))
            store.save(steps[name], home, {**info, "run": identity, "stage": name})
        store.close()
    return min(diverged) if diverged else None


def _begin(directory: Path, identity: dict[str, Any]) -> bool:
    """Claims a member's directory; whether it needs writing."""
    directory.mkdir(parents=True, exist_ok=True)
    claim(directory, identity)
    return not (directory / "results.json").exists()


def _validation_score(
    stages: Sequence[Stage], homes: Mapping[str, Any], index: int
) -> float | None:
    """Of the first stage that validates; None if none does."""
    name = next((stage.name for stage in stages if stage.score is not None), None)
    score = -np.inf if name is None else float(homes[name].best_score[index])
    return score if np.isfinite(score) else None


def _main_row(settings: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the table of members shows: the first method and setting.

    After as many gradient steps as the paper reports, where the settings say how many
    (`report_steps`), or after the last.
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
