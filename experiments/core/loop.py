"""The training loop of a stage: dispatches of meta-steps, validation, metrics and checkpoints."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from maml_jax import NonFiniteError, check_finite
from maml_jax.fitting import Selection, choose

from .. import STARTED
from . import distributed, members
from .checkpoints import Checkpoints
from .logbook import Progress, say, summarize_members, warn
from .members import Member, take, to_this_process
from .process import CompileTimer, StopRequest, check_room
from .profiling import Profile
from .results import METHOD_TITLES
from .stages import Experiment, Stage


class StoppedError(Exception):
    """The run received a signal to stop and has saved its state."""

    def __init__(self, signal_number: int, step: int, stage: str):
        super().__init__(f"stopped at step {step} of stage {stage}")
        self.signal_number = signal_number


@dataclasses.dataclass
class StageState:
    """The progress of a stage.

    Attributes:
        store: its checkpoints.
        selection: its state, or None before it is initialised.
        step: meta-steps taken.
        compile_s: seconds spent compiling, including earlier processes of the run.
        train_s: seconds spent training, likewise.
    """

    store: Checkpoints
    selection: Selection | None = None
    step: int = 0
    compile_s: float = 0.0
    train_s: float = 0.0


@dataclasses.dataclass
class Loop:
    """Trains the stages of a run.

    Attributes:
        experiment: the experiment.
        members: the run's members.
        identity: the run's identity, saved with its checkpoints.
        compiles: the timer of compilation.
        checkpoint_every_s: seconds between checkpoints.
        profile: the trace of some dispatches.
        started: whether a dispatch of this process has ended.
    """

    experiment: Experiment
    members: Sequence[Member]
    identity: dict[str, Any]
    compiles: CompileTimer
    checkpoint_every_s: float
    profile: Profile
    started: bool = False

    def train(self, stage: Stage, state: StageState, logbook: Any, stop: StopRequest) -> None:
        """Trains a stage from its present step to its last.

        Args:
            stage: the stage.
            state: its progress; updated in place.
            logbook: receives its metrics.
            stop: the signals received.

        Raises:
            StoppedError: the run received a signal, and has saved its state.
            NonFiniteError: no member is finite any more.
        """
        if state.step >= stage.num_meta_steps:
            return
        (stopping,) = distributed.any_of(bool(stop.signal))  # since the last stage's last dispatch
        if stopping:
            raise StoppedError(stop.signal or signal.SIGTERM, state.step, stage.name)
        if state.selection is None:  # initialised here: compiling it delays no earlier stage
            start = lambda: members.begin(stage, self.members)  # noqa: E731
            before = self.compiles.seconds
            check_room(f"the state of stage {stage.name}", jax.eval_shape(start))
            state.selection = start()
            state.compile_s += self.compiles.seconds - before
        progress: Any = distributed.Nowhere()
        if distributed.is_first():
            progress = Progress(stage.name, stage.num_meta_steps, state.step)
        try:
            self._dispatches(stage, state, logbook, stop, progress)
        finally:
            self.profile.close(stage.name)
            progress.close()

    def _dispatches(
        self, stage: Stage, state: StageState, logbook: Any, stop: StopRequest, progress: Any
    ) -> None:
        advance = _Advance(self, stage)
        saved_at, number = time.monotonic(), 0
        while state.step < stage.num_meta_steps:
            count = min(stage.steps_per_call, stage.num_meta_steps - state.step)
            self._compile(advance, state, count)
            self.profile.before(stage.name, number)
            begun, compiled = time.monotonic(), self.compiles.seconds
            state.selection, summary = advance(state.selection, state.step, count)
            compiling = self.compiles.seconds - compiled
            running = time.monotonic() - begun - compiling
            state.train_s += running
            state.compile_s += compiling
            state.step += count
            self.profile.after(number, last=state.step == stage.num_meta_steps)
            self._report_start(count)
            number += 1
            pace = {"meta_steps_per_s": count / max(running, 1e-9)}
            logbook.write(stage.name, state.step, {**summary, **pace})
            progress.advance(count, running, **{name: summary[name] for name in stage.shown})
            due = time.monotonic() - saved_at >= self.checkpoint_every_s
            due, stopping = distributed.any_of(distributed.is_first() and due, bool(stop.signal))
            if due or state.step == stage.num_meta_steps or stopping:
                self._save(stage, state)
                saved_at = time.monotonic()
            if stopping and state.step < stage.num_meta_steps:
                raise StoppedError(stop.signal or signal.SIGTERM, state.step, stage.name)

    def _save(self, stage: Stage, state: StageState) -> None:
        info = {"train_s": state.train_s, "compile_s": state.compile_s}
        info |= {"run": self.identity, "stage": stage.name}
        state.store.save(state.step, state.selection, info)

    def _compile(self, advance: _Advance, state: StageState, count: int) -> None:
        """Compiles the program of a dispatch; reports the first one, which may take long."""
        if count in advance.programs:
            return
        before = self.compiles.seconds
        if not self.started:
            say("  compiling ...")
        advance.compile(state.selection, count)
        seconds = self.compiles.seconds - before
        state.compile_s += seconds
        if not self.started:
            say(f"  compiled in {seconds:.1f} s")

    def _report_start(self, count: int) -> None:
        """Reports, once, the seconds from the command to the end of the first dispatch."""
        if not self.started:
            loaded = self.compiles.programs_loaded
            say(
                f"  first {count:,} meta-steps {time.monotonic() - STARTED:.1f} s after the start, "
                f"{self.compiles.seconds:.1f} s of them spent compiling"
                + (f" (programs loaded from the cache: {loaded})" if loaded else "")
            )
        self.started = True


class _Advance:
    """The dispatches of one stage: `advance(selection, step, count) -> (selection, summary)`."""

    def __init__(self, loop: Loop, stage: Stage):
        self.programs: dict[int, Any] = {}
        self._stage, self._loop, self._members = stage, loop, loop.members
        self._mesh = members.mesh_of(stage, len(loop.members))
        self._scores = members.make_scores(loop.experiment, loop.members, stage)
        if stage.before_training is not None:
            stage.before_training(self._mesh)
        self._data = () if stage.data is None else stage.data(self._mesh)
        self._of_members: Any = {
            "values": members.swept_values(loop.members),
            "member_data": members.member_data(stage, loop.members),
        }

    def compile(self, selection: Selection, count: int) -> None:
        """Compiles the program of `count` meta-steps, and runs the stage's `prepare` meanwhile."""
        program = members.make_program(
            self._loop.experiment, self._members, self._stage, count, self._mesh
        )
        with ThreadPoolExecutor(1) as pool:
            prepare = self._stage.prepare if not self.programs else None
            ready = pool.submit(prepare or (lambda: None))
            program.lower(selection.state, *self._data, **self._of_members).compile()
            ready.result()
        self.programs[count] = program

    def __call__(self, selection: Selection, step: int, count: int) -> tuple[Selection, Any]:
        """Takes the meta-steps, and validates if a validation is due.

        Raises:
            NonFiniteError: no member is finite any more.
        """
        live = np.asarray(selection.state.step) == step
        program = self.programs[count]
        state, metrics, kept = program(selection.state, *self._data, **self._of_members)
        metrics, kept = jax.device_get((metrics, kept))
        kept = kept & live  # a shorter dispatch may end before a diverged member diverges again
        self._report_diverged(metrics, step, live, kept)
        self._warn(metrics, kept)
        summary = summarize_members([m.label for m in self._members], metrics, kept)
        selection = selection._replace(state=state)
        every, at = self._stage.validate_every, step + count
        due = at == self._stage.num_meta_steps or (every > 0 and at // every > step // every)
        if self._stage.score is None or not due:
            return selection, summary
        scores = self._score(state.params, kept)
        selection = self._choose(selection, scores, kept, at)
        return selection, {**summary, **self._validation(scores, selection, kept)}

    def _choose(
        self, selection: Selection, scores: np.ndarray, kept: np.ndarray, at: int
    ) -> Selection:
        """Keeps the best parameters; at the end, the last ones of a member without a score."""
        for i in np.flatnonzero(kept & np.isnan(scores)):
            say(
                f"  {self._titled(i)}: the {self._stage.score_name} in validation is NaN "
                f"after meta-step {at:,}; these parameters are not chosen"
            )
        selection = choose(selection, scores)
        never = kept & np.isneginf(np.asarray(selection.best_score))
        if at < self._stage.num_meta_steps or not never.any():
            return selection
        for i in np.flatnonzero(never):
            say(
                f"  {self._titled(i)}: no validation gave a {self._stage.score_name}; the "
                "parameters of the last meta-step are evaluated"
            )
        lowest = np.finfo(np.float32).min
        chosen = choose(selection, np.where(never, lowest, -np.inf))
        return chosen._replace(best_score=selection.best_score)

    def _titled(self, i: Any) -> str:
        """Names the method, and in a run of several members the member, for a message."""
        title = METHOD_TITLES.get(self._stage.name, self._stage.name)
        return f"{title} ({self._members[i].label})" if len(self._members) > 1 else title

    def _score(self, params: Any, kept: np.ndarray) -> np.ndarray:
        """Returns the members' validation scores [M]; -inf for those that no longer train."""
        params = to_this_process(params)
        scores = np.full(len(self._members), -np.inf, np.float32)
        for i in np.flatnonzero(kept):
            scores[i] = np.asarray(self._scores[i](take(params, i)))
        return scores

    def _validation(self, scores: Any, selection: Selection, kept: np.ndarray) -> dict[str, float]:
        name, best = self._stage.score_name, np.asarray(selection.best_score)
        values = {f"validation/{name}": scores, f"validation/best_{name}": best}
        summary = {key: float(np.mean(x[kept])) for key, x in values.items()}
        if len(self._members) > 1:
            for i in np.flatnonzero(kept):
                for key, x in values.items():
                    summary[f"{self._members[i].label}/{key}"] = float(x[i])
        return summary

    def _report_diverged(self, metrics: Any, step: int, live: Any, kept: np.ndarray) -> None:
        """Warns of each member that diverged in this dispatch; raises if none is left."""
        for i in np.flatnonzero(live & ~kept):
            label = self._members[i].label
            try:
                check_finite(jax.tree.map(lambda x, i=i: x[i], metrics), step)
            except NonFiniteError as error:
                if len(self._members) == 1:
                    raise
                if not kept.any():
                    text = f"no member of the run is left. {label}: {error}"
                    raise NonFiniteError(text) from None
                warn(f"{label} stays at step {step}, the others continue: {error}")

    def _warn(self, metrics: Any, kept: np.ndarray) -> None:
        if self._stage.check is None:
            return
        for i in np.flatnonzero(kept):
            warning = self._stage.check(jax.tree.map(lambda x, i=i: x[i], metrics))
            if warning:
                say(f"  {self._titled(i)}: {warning}")


def open_stage(
    directory: Path, stage: Stage, run_members: Sequence[Member], check: Any
) -> StageState:
    """Opens a stage at its newest checkpoint, or at step 0 without one."""
    store = Checkpoints(directory / stage.name)
    restored = store.restore(lambda: members.begin(stage, run_members), warn=warn, check=check)
    if restored is None:
        return StageState(store)
    clock = restored.info["compile_s"], restored.info["train_s"]
    return StageState(store, restored.state, restored.step, *clock)
