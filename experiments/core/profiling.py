"""A trace of a few dispatches of a run, to be opened in TensorBoard or Perfetto."""

from __future__ import annotations

from pathlib import Path

import jax

from .logbook import say


class Profile:
    """Traces some dispatches of each stage, after the first one, which compiles."""

    DISPATCHES = 3

    def __init__(self, directory: Path | None):
        """Writes to `directory/STAGE`, which is made; None traces nothing."""
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._tracing = self._traced = False

    def before(self, stage: str, dispatch: int) -> None:
        """Called before each dispatch of this process, counted from 0 in a stage."""
        if self._directory is not None and dispatch == 1:
            where = self._directory / stage
            where.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(where), create_perfetto_trace=True)
            self._tracing = self._traced = True

    def after(self, dispatch: int, last: bool) -> None:
        """Called after each dispatch, when its results are there."""
        if self._tracing and (dispatch >= self.DISPATCHES or last):
            self._stop()

    def close(self, stage: str) -> None:
        """Ends a stage, however it ended."""
        if self._tracing:
            self._stop()
        elif self._directory is not None and not self._traced:
            say(f"  nothing of stage {stage} was traced: that begins with its second dispatch")
        self._traced = False

    def _stop(self) -> None:
        self._tracing = False
        jax.profiler.stop_trace()
