"""Sweeps: several seeds, inner step sizes and meta learning rates in one compiled program.

A sweep is itself an experiment: one stage, whose state is the members' states stacked, run by the
runner in `DIR/sweep`. When that is trained, each member is given a directory of its own in DIR.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from experiments.core import plotting, results, runner
from experiments.core.config import ConfigError
from experiments.core.runner import Experiment, Outcome
from experiments.sweep import together
from experiments.sweep.config import (
    find_experiment,
    make_members,
    sweep_config,
    sweep_presets,
)
from experiments.sweep.handover import hand_over

SHARED = "sweep"  # below the sweep's directory: the run that trains all members


def make_experiment(name: str, workdir: Path = Path(), preset: str = "custom") -> Experiment:
    """The sweep of an experiment.

    Args:
        name: of the experiment.
        workdir: in which the members' directories are made.
        preset: that the members' settings began from.
    """
    base = find_experiment(name)

    def evaluate(config: Any, seed: int, states: Mapping[str, Any]) -> Outcome:
        del seed  # the members have their own
        rows = hand_over(
            base,
            make_members(config),
            states,
            preset=preset,
            shared=workdir / SHARED,
            workdir=workdir,
        )
        return Outcome(rows, {})

    return dataclasses.replace(
        base,
        name="sweep",
        summary=f"many runs in one program; {base.summary}",
        config=sweep_config(name),
        presets=sweep_presets(base),
        stages=lambda config, seed: [together.make_stage(base, make_members(config))],
        evaluate=evaluate,
        figure=plotting.sweep_sheet,
        num_runs=lambda config: len(make_members(config)),
        modes={},
        mode_flags={},
    )


def run(
    experiment: Experiment,
    workdir: Path,
    settings: Any,
    *,
    preset: str = "custom",
    seed: int = 0,
    checkpoint_every_s: float = 30.0,
    profile: Path | None = None,
) -> dict[str, Any]:
    """Begins, resumes or only reports a sweep, as `runner.run` does a run.

    Args:
        experiment: of `make_experiment`; made again here, for this directory.
        workdir: in which the members' directories are made.
        settings: of the experiment's configuration class.
        preset: that the settings began from.
        seed: 0; a sweep has seeds among its settings.
        checkpoint_every_s: seconds between checkpoints.
        profile: directory for traces.

    Raises:
        ConfigError: `seed` is given, or several processes make up the run.
    """
    if seed != 0:
        raise ConfigError(f"a sweep takes --seeds=0,1,...; received --seed={seed}.")
    if jax.process_count() > 1:
        raise ConfigError(
            "a sweep runs in one process, on all its devices; leave --distributed out."
        )
    experiment = make_experiment(settings.experiment, workdir, preset)
    found = runner.run(
        experiment,
        workdir / SHARED,
        settings,
        preset=preset,
        checkpoint_every_s=checkpoint_every_s,
        profile=profile,
    )
    print(f"\n{summary_table(found)}\n\nmembers: {workdir}/seed=*")
    return found


def summary_table(found: Mapping[str, Any]) -> str:
    """One line a member: its main metric, and which one validation chooses, if there is any.

    The main metric is that of the first setting after the steps that the paper reports, or, where
    the experiment names none, after the last step.
    """
    config = found["config"]
    main_step = config.get("report_steps", config["eval_steps"])
    rows = [r for r in found["rows"] if r["gradient_steps"] in (main_step, None)]
    validated = {r["member"]: r.get("validation_accuracy") for r in rows}
    scores = [score for score in validated.values() if score is not None]
    header, lines = ["member", f"after {main_step} steps"], []
    if scores:
        header += ["validation", ""]
    for row in rows:
        value = "diverged"
        if row["mean"] is not None:
            value = f"{row['mean']:.4g} ±{row['ci95']:.2g}"
        elif "diverged_after" in row:
            value = f"diverged in training, after meta-step {row['diverged_after']:,}"
        line, score = [row["member"], value], validated[row["member"]]
        if scores:
            best = score is not None and score == max(scores)
            line += ["" if score is None else f"{score:.4f}", "best by validation" if best else ""]
        lines.append(line)
    named = next((r for r in rows if "diverged_after" not in r), rows[0])
    title = f"{named['metric']}, {named['setting'].partition(': ')[2]}"
    return f"{title}\n\n{results.format_table(header, lines)}"


__all__ = ["SHARED", "make_experiment", "run", "summary_table"]
