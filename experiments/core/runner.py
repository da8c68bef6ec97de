"""What every run shares: stages of meta-training, progress, checkpoints, resume, results.

An experiment is a list of stages, each of which meta-trains one state, and an evaluation of what
came out. A run is resumable at every checkpoint, and bit for bit: stages advance in dispatches
whose boundaries do not depend on when a run was stopped, and nothing else carries state.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np
from jax.sharding import Mesh

from experiments import STARTED
from experiments.core import config as config_lib
from experiments.core import distributed, results, tables
from experiments.core.checkpoints import Checkpoints
from experiments.core.environment import environment
from experiments.core.files import FileError
from experiments.core.identity import (
    RunError,
    check_info,
    check_same,
    claim,
    has_begun,
    identity_of,
    read_config,
)
from experiments.core.logbook import Logbook, Progress, read_metrics, say, summarize_metrics
from experiments.core.process import CompileTimer, StopRequest, check_room
from experiments.core.profiling import Profile
from maml_jax import MetaState, check_finite
from maml_jax.batching import bring_home
from maml_jax.training import TrainFn


@dataclasses.dataclass(frozen=True)
class Advance:
    """A dispatch of a stage, `advance(state) -> (state, metrics)`.

    Attributes:
        run: takes the meta-steps.
        compile: `compile(state)` compiles their program ahead of the first call, and gets ready
            meanwhile what else they need.
    """

    run: Callable[[Any], tuple[Any, Any]]
    compile: Callable[[Any], None]

    def __call__(self, state: Any) -> tuple[Any, Any]:
        """Takes the meta-steps."""
        return self.run(state)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One meta-training of a run.

    Attributes:
        name: the method that is trained, and the name of its checkpoints.
        num_steps: meta-steps in all.
        steps_per_call: meta-steps of one dispatch; runs stop and checkpoint between dispatches.
        init: makes the state at step 0.
        make_advance: `make_advance(n)` makes the dispatch of n meta-steps.
        shown: metrics for the progress bar, by their name in `metrics.jsonl`.
        make_train: of one that can be swept, `make_train(n, mesh)` makes its n meta-steps alone.
    """

    name: str
    num_steps: int
    steps_per_call: int
    init: Callable[[], MetaState]
    make_advance: Callable[[int], Advance]
    shown: tuple[str, ...] = ("loss",)
    make_train: Callable[[int, Mesh], TrainFn] | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What an evaluation found.

    Attributes:
        rows: of `results.json`.
        arrays: what the figure needs beyond the rows; saved as `evaluation.npz`.
    """

    rows: list[dict[str, Any]]
    arrays: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An experiment, as the runner needs it.

    Attributes:
        name: as in `python -m experiments.NAME`.
        summary: a sentence on what it does, for the first line of a run and of `--help`.
        config: a frozen dataclass with a `config.option` for each field.
        presets: by name, the fields that differ from the defaults.
        stages: `stages(config, seed)`.
        evaluate: `evaluate(config, seed, states) -> Outcome`, states by stage name.
        figure: `figure(path, results, arrays, metrics)` draws `figure.png`.
        modes: further modes, `mode(run: FinishedRun, arguments)`, by name.
        mode_flags: for each further mode its flags: name, default and help.
        cpu_threads: threads for XLA on a CPU, or None for one a core. Programs of many kernels
            that take microseconds each are faster with one.
        cpu_devices: `cpu_devices(settings, runs, cores)`, into how many JAX devices a CPU is split
            for so many states trained side by side; None for one.
        num_runs: `num_runs(settings)`, how many states it trains side by side.
        small_kernels: whether its programs have small kernels only, see `process.lay_out_cpu`.
    """

    name: str
    summary: str
    config: type
    presets: Mapping[str, Mapping[str, Any]]
    stages: Callable[[Any, int], list[Stage]]
    evaluate: Callable[[Any, int, Mapping[str, MetaState]], Outcome]
    figure: Callable[[Path, dict[str, Any], Mapping[str, np.ndarray], list[dict[str, Any]]], None]
    modes: Mapping[str, Callable[..., None]] = dataclasses.field(default_factory=dict)
    mode_flags: Mapping[str, tuple[tuple[str, Any, str], ...]] = dataclasses.field(
        default_factory=dict
    )
    cpu_threads: int | None = None
    cpu_devices: Callable[[Any, int, int], int] | None = None
    num_runs: Callable[[Any], int] = lambda settings: getattr(settings, "num_seeds", 1)
    small_kernels: bool = False


class StoppedError(Exception):
    """A run that was asked to stop and has saved its state."""

    def __init__(self, signal_number: int, step: int, stage: str):
        super().__init__(f"stopped at step {step} of stage {stage}")
        self.signal_number = signal_number


@dataclasses.dataclass
class _How:
    """What does not change a run's results."""

    checkpoint_every_s: float
    profile: Profile
    started: bool = False

    def say_started(self, steps: int, compiling: float) -> None:
        """Says, once, how long it took from the command to the end of the first dispatch."""
        if not self.started:
            seconds = time.monotonic() - STARTED
            say(
                f"  first {steps:,} meta-steps {seconds:.1f} s after the start, {compiling:.1f} s "
                "of them spent compiling"
            )
        self.started = True


@dataclasses.dataclass
class _Clock:
    """Wall-clock seconds that a stage has taken, kept across resumes."""

    compile: float = 0.0
    train: float = 0.0


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
    """Begins, resumes or only reports a run, and returns its results.

    `checkpoint_every_s`, seconds, and `profile`, a directory for traces, do not change results.

    Raises:
        RunError: another process has the directory, or it holds a run with another configuration.
        FileError: a file of the run is not as a run writes it.
        CheckpointError: a checkpoint cannot be written, or is of another run or step.
        FirstProcessError: process 0 of a run of several cannot begin.
        NonFiniteError: a loss is not finite; the last good checkpoint stays.
        StoppedError: SIGTERM or Ctrl-C, after saving.
    """
    identity = identity_of(experiment.name, preset, seed, settings)
    with contextlib.ExitStack() as held:
        distributed.check_same_settings(identity)
        done = distributed.first_decides(lambda: _begin(held, workdir, identity))
        if not done:
            how = _How(checkpoint_every_s, Profile(profile if distributed.is_first() else None))
            return _run(experiment, workdir, settings, identity, how)
        found = results.read_results(workdir)
        print(f"{workdir} is done; its results:\n\n{tables.run_table(found)}")
        return found


def _begin(held: contextlib.ExitStack, workdir: Path, identity: dict[str, Any]) -> bool:
    """Takes the directory for this run until `held` is closed; whether the run is done already.

    One that is done needs nothing written, and may lie where nothing can be.
    """
    _make_directory(workdir)
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
    claim(workdir, identity, writable)
    return done


def _make_directory(workdir: Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise RunError(f"--workdir={workdir} is not a directory.") from None


def _run(experiment, workdir, settings, identity, how):
    seed = identity["seed"]
    stages = experiment.stages(settings, seed)
    where = environment()
    print(f"{experiment.name} ({identity['preset']}, seed {seed}): {experiment.summary}")
    print(f"  on {where['device']}, jax {where['jax']}; results in {workdir}")
    for stage in stages:
        print(f"  trains {stage.name}: {stage.num_steps:,} meta-steps")
    distributed.warn_if_not_split(settings.num_tasks, experiment.num_runs(settings))

    compiles = CompileTimer.instance()
    stores = {s.name: Checkpoints(workdir / "checkpoints" / s.name) for s in stages}
    try:
        states, at, clocks = {}, {}, {}
        for stage in stages:
            fits = check_info(identity, stage.name)
            found = stores[stage.name].restore(stage.init, warn=_warn, check=fits)
            states[stage.name], at[stage.name], clocks[stage.name] = None, 0, _Clock()
            if found is not None:
                states[stage.name], at[stage.name] = found.state, found.step
                clocks[stage.name] = _Clock(found.info["compile_s"], found.info["train_s"])
        if any(at.values()):
            print("  resumes at " + ", ".join(f"{k} step {v:,}" for k, v in at.items()))
        logbook: Any = Logbook(workdir, at) if distributed.is_first() else distributed.Nowhere()
        try:
            with StopRequest() as stop:
                for stage in stages:
                    states[stage.name] = _train_stage(
                        stage,
                        states[stage.name],
                        at[stage.name],
                        stores[stage.name],
                        logbook,
                        clocks[stage.name],
                        identity,
                        compiles,
                        how,
                        stop,
                    )
        finally:
            logbook.close()
    except jax.errors.JaxRuntimeError as error:
        distributed.leave_if_lost(error)
        raise
    finally:
        for store in stores.values():
            store.close()

    print("evaluating ...", flush=True)
    begun, compiled = time.monotonic(), compiles.seconds
    outcome = experiment.evaluate(settings, seed, bring_home(states))
    compiling = compiles.seconds - compiled
    evaluating = time.monotonic() - begun - compiling
    training = sum(clock.train for clock in clocks.values())
    meta_steps = sum(stage.num_steps for stage in stages)
    found = {
        **identity,
        "environment": where,
        "wall_clock_s": {
            "compile": round(compiling + sum(clock.compile for clock in clocks.values()), 3),
            "train": round(training, 3),
            "evaluate": round(evaluating, 3),
        },
        "meta_steps": meta_steps,
        "meta_steps_per_s": round(meta_steps / training, 2),
        "rows": outcome.rows,
    }
    if not distributed.is_first():
        distributed.wait_for_all("results")
        return found
    np.savez_compressed(workdir / "evaluation.npz", **outcome.arrays)
    experiment.figure(workdir / "figure.png", found, outcome.arrays, read_metrics(workdir))
    results.write_results(workdir / "results.json", found)
    distributed.wait_for_all("results")
    print(f"\n{tables.run_table(found)}\n\nfigure: {workdir / 'figure.png'}")
    return found


def _train_stage(
    stage, state, at, store, logbook, clock, identity, compiles, how, stop
) -> MetaState:
    """Advances one stage to its end, from wherever it is; without a state, from its start."""
    if at >= stage.num_steps:
        return state
    (stopping,) = distributed.any_of(bool(stop.signal))  # in the last dispatch of the stage before
    if stopping:
        raise StoppedError(stop.signal or signal.SIGTERM, at, stage.name)
    if state is None:  # not before: compiling all stages' starts would keep the first one waiting
        compiled = compiles.seconds
        check_room(f"the state of stage {stage.name}", jax.eval_shape(stage.init))
        state = stage.init()
        clock.compile += compiles.seconds - compiled
    progress: Any = distributed.Nowhere()
    if distributed.is_first():
        progress = Progress(stage.name, stage.num_steps, at)
    saved_at, advance_by, dispatch = time.monotonic(), {}, 0
    try:
        while at < stage.num_steps:
            count = min(stage.steps_per_call, stage.num_steps - at)
            if count not in advance_by:
                advance_by[count] = stage.make_advance(count)
                _compile(advance_by[count], state, clock, compiles, how)
            how.profile.before(stage.name, dispatch)
            begun, compiled = time.monotonic(), compiles.seconds
            state, metrics = advance_by[count](state)
            metrics = jax.device_get(metrics)
            compiling = compiles.seconds - compiled
            running = time.monotonic() - begun - compiling
            clock.train += running
            clock.compile += compiling
            check_finite(metrics, at)
            at += count
            how.profile.after(dispatch, last=at == stage.num_steps)
            how.say_started(count, compiles.seconds)
            dispatch += 1
            summary = summarize_metrics(metrics)
            logbook.write(
                stage.name, at, {**summary, "meta_steps_per_s": count / max(running, 1e-9)}
            )
            progress.advance(count, **{name: summary[name] for name in stage.shown})
            due = distributed.is_first() and time.monotonic() - saved_at >= how.checkpoint_every_s
            due, stopping = distributed.any_of(due, bool(stop.signal))
            if due or at == stage.num_steps or stopping:
                clocks = {"train_s": clock.train, "compile_s": clock.compile}
                store.save(at, state, {**clocks, "run": identity, "stage": stage.name})
                saved_at = time.monotonic()
            if stopping and at < stage.num_steps:
                raise StoppedError(stop.signal or signal.SIGTERM, at, stage.name)
    finally:
        how.profile.close(stage.name)
        progress.close()
    return state


def _compile(advance, state, clock, compiles, how) -> None:
    """Compiles a dispatch, and says so before the first one: it may take longer than thought."""
    begun = compiles.seconds
    if not how.started:
        say("  compiling ...")
    advance.compile(state)
    compiling = compiles.seconds - begun
    clock.compile += compiling
    if not how.started:
        say(f"  compiled in {compiling:.1f} s")


def load(experiment: Experiment, workdir: Path) -> FinishedRun:
    """The trained states of a run, for the modes that use them.

    Raises:
        RunError: there is no run of this experiment, a stage of it is not done, or this process
            has other settings of JAX.
        FileError: a file of the run is not as a run writes it.
        CheckpointError: a checkpoint is of another run or step.
    """
    path = workdir / "config.json"
    if not path.exists():
        if has_begun(workdir):
            raise RunError(f"{path} is missing; the command that trained the run makes it anew.")
        raise RunError(f"no run at {workdir}; train one first: --workdir={workdir} --mode=train.")
    identity = read_config(workdir)
    if identity["experiment"] != experiment.name:
        raise RunError(f"{workdir} holds a run of {identity['experiment']}, not {experiment.name}.")
    try:
        settings = config_lib.from_json(experiment.config, identity["config"])
    except ValueError as error:
        raise FileError(
            f"{path} has a configuration that this version does not take: {error} Use the version "
            "that trained the run (results.json names its commit), or train again."
        ) from None
    asked = identity_of(experiment.name, identity["preset"], identity["seed"], settings)
    check_same(workdir, asked)
    states = {}
    for stage in experiment.stages(settings, identity["seed"]):
        store = Checkpoints(workdir / "checkpoints" / stage.name)
        fits = check_info(asked, stage.name)
        found = store.restore(stage.init, warn=_warn, read_only=True, check=fits)
        store.close()
        if found is None or found.step < stage.num_steps:
            raise RunError(
                f"stage {stage.name} of {workdir} is at step {found.step if found else 0} of "
                f"{stage.num_steps}; finish training first, with the same command as before "
                "(remove results.json if that says that the run is done)."
            )
        states[stage.name] = found.state
    return FinishedRun(_output_directory(workdir), settings, identity["seed"], states)


def _output_directory(workdir: Path) -> Path:
    """Where a mode writes: the run's directory, or one of its name here if that is read-only."""
    if os.access(workdir, os.W_OK):
        return workdir
    here = Path(f"{workdir.resolve().name}_output").absolute()
    here.mkdir(exist_ok=True)
    _warn(f"{workdir} cannot be written; files are written to {here}.")
    return here


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run whose training is done.

    Attributes:
        workdir: where a mode writes; the run's directory, if that can be written.
        settings: its configuration.
        seed: its seed.
        states: the final state of each stage, by name.
    """

    workdir: Path
    settings: Any
    seed: int
    states: Mapping[str, MetaState]


def _warn(message: str) -> None:
    if distributed.is_first():
        print(f"warning: {message}", file=sys.stderr)
