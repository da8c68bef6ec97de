"""Runs an experiment: starts or resumes it, trains its stages, evaluates and writes results.

A run resumes from every checkpoint bit for bit: the boundaries of dispatches do not depend on when
a run was stopped, and the checkpoint holds all state.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np

from . import distributed, members, plotting, results, tables
from .environment import environment
from .finished import FinishedRun, alone, load, load_params
from .handout import Trained, hand_out
from .identity import (
    CUSTOM,
    RunError,
    check_info,
    check_same,
    claim,
    has_begun,
    identity_of,
)
from .logbook import Evaluating, Logbook, read_metrics, say
from .loop import Loop, StageState, open_stage
from .members import make_members
from .model_files import file_names, write_models
from .process import CompileTimer, StopRequest
from .profiling import Profile
from .stages import Experiment, Stage


def run(
    experiment: Experiment,
    workdir: Path,
    settings: Any,
    *,
    preset: str = CUSTOM,
    seed: int = 0,
    num_seeds: int = 1,
    swept: members.Swept | None = None,
    checkpoint_every_s: float = 30.0,
    profile: Path | None = None,
    tell: Callable[[str], None] = say,
) -> dict[str, Any]:
    """Starts or resumes a run and returns its results; only reports a run that is finished.

    Args:
        experiment: to run.
        workdir: directory of the run. Members of a run of several have directories in it.
        settings: an instance of the experiment's configuration class.
        preset: name of the preset that the settings started from.
        seed: of the first member.
        num_seeds: the seeds are seed, seed + 1, ...; each makes a member.
        swept: by setting with `sweep=True`, several values; each makes members.
        checkpoint_every_s: seconds between checkpoints. Does not change results.
        profile: directory for traces.
        tell: prints progress and results.

    Returns:
        The content of `results.json`.

    Raises:
        ConfigError: the settings of a member are not allowed.
        RunError: another process uses the directory, or it holds a run of another configuration.
        FileError: a file of the run is damaged.
        CheckpointError: a checkpoint cannot be written, or belongs to another run or step.
        FirstProcessError: process 0 of several cannot start.
        NonFiniteError: a loss, gradient or parameter is not finite; the last checkpoint before it
            stays.
        StoppedError: after SIGTERM or Ctrl-C, once the run is saved.
    """
    everyone = make_members(settings, seed, num_seeds, swept)
    identity = identity_of(experiment.name, preset, seed, everyone[0].settings, num_seeds, swept)
    parts = {}
    if len(everyone) > 1:
        parts = {
            m.label: identity_of(experiment.name, preset, m.seed, m.settings) for m in everyone
        }
    with contextlib.ExitStack() as held:
        distributed.check_same_settings(identity)
        done = distributed.first_decides(lambda: _begin(held, workdir, identity, parts))
        if done:
            record = results.read_results(workdir)
            tell(f"{workdir} is done; its results:\n\n{_tables(record)}")
            return record
        loop = Loop(
            experiment=experiment,
            members=everyone,
            identity=identity,
            compiles=CompileTimer.instance(),
            checkpoint_every_s=checkpoint_every_s,
            profile=Profile(profile if distributed.is_first() else None),
        )
        return _run(workdir, loop, tell)


def _begin(
    held: contextlib.ExitStack,
    workdir: Path,
    identity: dict[str, Any],
    parts: Mapping[str, dict[str, Any]],
) -> bool:
    """Locks the directory until `held` is closed, and returns whether the run is finished.

    A finished run may lie in a read-only directory. Members' directories, with the identities
    `parts`, are checked here and written after training.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise RunError(f"--workdir={workdir} is not a directory.") from None
    done, writable = (workdir / "results.json").exists(), True
    try:
        held.enter_context(filelock.FileLock(workdir / ".lock", timeout=0))
    except filelock.Timeout:
        raise RunError(f"another process is running in {workdir}; wait, or stop it.") from None
    except (OSError, NotImplementedError) as error:
        if not done:
            raise RunError(
                f"{workdir} cannot be written: {error}. Use another --workdir."
            ) from None
        writable = False
    places = {} if done else {workdir: identity, **{workdir / k: v for k, v in parts.items()}}
    for directory, asked in places.items():
        if has_begun(directory):
            check_same(directory, asked)
    claim(workdir, identity, writable)
    return done


def _run(workdir: Path, loop: Loop, tell: Callable[[str], None]) -> dict[str, Any]:
    """Trains, evaluates and writes a run that is not finished."""
    experiment, everyone, compiles = loop.experiment, loop.members, loop.compiles
    stages = experiment.stages(everyone[0].settings)
    if experiment.blueprint is not None:
        file_names(stage.name for stage in stages)  # raises before rather than after training
    where = environment()
    _introduce(workdir, loop, stages, where, tell)
    states = _train(workdir, loop, stages, tell)
    training = sum(state.train_s for state in states.values())
    meta_steps = len(everyone) * sum(stage.num_meta_steps for stage in stages)
    clock = {
        "compile": sum(state.compile_s for state in states.values()),
        "train": training,
        "evaluate": 0.0,
    }
    record = {
        **loop.identity,
        "environment": where,
        "wall_clock_s": clock,
        "meta_steps": meta_steps,
        "meta_steps_per_s": round(meta_steps / max(training, 1e-9), 2),
    }
    if len(everyone) > 1:
        preset = loop.identity["preset"]
        trained = Trained(experiment, workdir, preset, everyone, stages, states)
        with Evaluating(tell, compiles, "evaluating each member"):
            handed = hand_out(trained, run)
        clock["evaluate"] = handed.pop("evaluate_s")
        return _write(workdir, {**record, **handed}, plotting.members_sheet, {}, tell)
    begun, compiled = time.monotonic(), compiles.seconds
    with Evaluating(tell, compiles):
        selections = {s.name: alone(s, states[s.name].selection) for s in stages}
        outcome = experiment.evaluate(everyone[0].settings, everyone[0].seed, selections)
    compiling = compiles.seconds - compiled
    clock["compile"] += compiling
    clock["evaluate"] = time.monotonic() - begun - compiling
    record["rows"] = outcome.rows
    if distributed.is_first():
        write_models(workdir, experiment, everyone[0].settings, record, selections, outcome)
    return _write(workdir, record, experiment.figure, outcome.arrays, tell)


def _train(
    workdir: Path, loop: Loop, stages: Sequence[Stage], tell: Callable[[str], None]
) -> dict[str, StageState]:
    """Trains every stage from its newest checkpoint."""
    states: dict[str, StageState] = {}
    try:
        for stage in stages:
            fits = check_info(loop.identity, stage.name)
            states[stage.name] = open_stage(workdir / "checkpoints", stage, loop.members, fits)
        at = {name: state.step for name, state in states.items()}
        left = [stage for stage in stages if at[stage.name] < stage.num_meta_steps]
        if left:
            most = max(stage.num_tasks for stage in left)
            distributed.warn_if_not_split(most, len(loop.members))
        if any(at.values()):
            tell("  resumes at " + ", ".join(f"{k} step {v:,}" for k, v in at.items()))
        logbook: Any = Logbook(workdir, at) if distributed.is_first() else distributed.Nowhere()
        with contextlib.closing(logbook), StopRequest() as stop:
            for stage in stages:
                loop.train(stage, states[stage.name], logbook, stop)
    except jax.errors.JaxRuntimeError as error:
        distributed.leave_if_lost(error)
        raise
    finally:
        for state in states.values():
            state.store.close()
    return states


def _introduce(
    workdir: Path,
    loop: Loop,
    stages: Sequence[Stage],
    where: Mapping[str, str],
    tell: Callable[[str], None],
) -> None:
    """Prints the experiment, the device and the stages."""
    experiment, count = loop.experiment, len(loop.members)
    preset, seed = loop.identity["preset"], loop.identity["seed"]
    several = f", {count} members" if count > 1 else ""
    tell(f"{experiment.name} ({preset}, seed {seed}{several}): {experiment.summary}")
    tell(f"  on {where['device']}, jax {where['jax']}; results in {workdir}")
    for stage in stages:
        tell(f"  trains {stage.name}: {stage.num_meta_steps:,} meta-steps")


def _write(
    workdir: Path,
    record: dict[str, Any],
    figure: Any,
    arrays: Mapping[str, np.ndarray],
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Writes the figure, then `results.json`, in the first process only."""
    clock = record["wall_clock_s"]
    record = {**record, "wall_clock_s": {name: round(s, 3) for name, s in clock.items()}}
    if distributed.is_first():
        if arrays:
            np.savez_compressed(workdir / "evaluation.npz", **arrays)
        figure(workdir / "figure.png", record, arrays, read_metrics(workdir))
        results.write_results(workdir / "results.json", record)
    distributed.wait_for_all("results")
    tell(f"\n{_tables(record)}\n\nfigure: {workdir / 'figure.png'}")
    return record


def _tables(record: dict[str, Any]) -> str:
    if "members" not in record:
        return tables.run_table(record)
    return f"{tables.run_table(record)}\n\n{tables.members_table(record)}"


__all__ = ["FinishedRun", "load", "load_params", "run"]
