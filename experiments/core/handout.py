"""Each member of a run gets the directory that its run alone would have left.

What is written here is a run that has just trained: checkpoints and metrics. The runner, called on
that directory, evaluates and writes the rest, so that one place says how a run looks.
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
        workdir: of the run; members' directories lie in it.
        preset: that the settings began from.
        members: all of them.
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
    """Writes and evaluates the members' directories; those from before a kill are left.

    Args:
        trained: the run.
        run: `runner.run`, for each member.

    Returns:
        The rows and the members of the run's `results.json`, and the seconds of evaluation.

    Raises:
        NonFiniteError: every member diverged, in one stage or another.
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
    """Writes what the run of a member leaves when it has trained.

    Args:
        trained: the run of all.
        member: one of them.
        parts: its state of each stage, with an axis of one member.
        entries: its metrics.

    Returns:
        The meta-step that it stays at because it diverged, or None.

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
            # Members share the program's time evenly: they took part in every step of it.
            info = {"train_s": state.train_s / count, "compile_s": state.compile_s / count}
            store = Checkpoints(directory / "checkpoints" / name)
            if steps[name] > 0 and steps[name] not in store.steps():
                store.save(steps[name], parts[name], {**info, "run": identity, "stage": name})
            store.close()
    diverged = [s.name for s in trained.stages if steps[s.name] < s.num_steps]
    return min(steps[name] for name in diverged) if diverged else None


def _begin(directory: Path, identity: dict[str, Any]) -> bool:
    """Claims a member's directory; whether it needs writing."""
    directory.mkdir(parents=True, exist_ok=True)
    claim(directory, identity)
    return not (directory / "results.json").exists()


def _validation_score(stages: Sequence[Stage], parts: Mapping[str, Any]) -> float | None:
    """Of the first stage that validates; None if none does."""
    name = next((stage.name for stage in stages if stage.score is not None), None)
    score = -np.inf if name is None else float(parts[name].best_score[0])
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
