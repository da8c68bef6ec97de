"""A profile of a few dispatches of a run, for TensorBoard or Perfetto."""

from __future__ import annotations

from pathlib import Path

import jax

from .logbook import say


class Profile:
    """Traces `DISPATCHES` dispatches of each stage, without the first, which may compile."""

    DISPATCHES = 3

    def __init__(self, directory: Path | None):
        """Creates the directory, to which traces go as `directory/STAGE`; None traces nothing."""
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._tracing = self._traced = False

    def before(self, stage: str, dispatch: int) -> None:
        """Starts the trace if it is due; call it before each dispatch.

        Args:
            stage: the stage's name.
            dispatch: the number of the dispatch in this stage and process, from 0.
        """
        if self._directory is not None and dispatch == 1:
            where = self._directory / stage
            where.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(where), create_perfetto_trace=True)
            self._tracing = self._traced = True

    def after(self, dispatch: int, last: bool) -> None:
        """Stops the trace if it is due; call it when the results of a dispatch are available."""
        if self._tracing and (dispatch >= self.DISPATCHES or last):
            self._stop()

    def close(self, stage: str) -> None:
        """Stops the trace of a stage that ends, also after an error."""
        if self._tracing:
            self._stop()
        elif self._directory is not None and not self._traced:
            say(f"  stage {stage} was not traced: tracing starts with a second dispatch")
        self._traced = False

    def _stop(self) -> None:
        self._tracing = False
        jax.profiler.stop_trace()
