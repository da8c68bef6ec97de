"""The log of a run: console lines, a progress bar, `metrics.jsonl`, TensorBoard events."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from . import distributed, results
from .files import read_json_lines, write_text
from .process import CompileTimer

QUIET_INTERVAL_S = 10.0  # between lines of progress where there is no bar


class Logbook:
    """Writes the metrics of a run, one entry per dispatch of meta-steps."""

    def __init__(self, workdir: Path, resume_at: Mapping[str, int]):
        """Opens the files and removes a stage's entries after its checkpoint.

        Args:
            workdir: the run's directory.
            resume_at: by stage, the step from which it continues.
        """
        self._path = workdir / "metrics.jsonl"
        kept = [e for e in read_metrics(workdir) if e["step"] <= resume_at.get(e["stage"], 0)]
        write_text(self._path, "".join(json.dumps(entry) + "\n" for entry in kept))
        self._file = self._path.open("a", buffering=1, encoding="utf-8")
        self._workdir, self._resume_at = workdir, resume_at
        self._events: dict[str, SummaryWriter] = {}

    def write(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
        """Adds an entry of numbers, by name."""
        self._file.write(json.dumps({"stage": stage, "step": step, **values}) + "\n")
        if stage not in self._events:
            self._events[stage] = SummaryWriter(
                str(self._workdir / "tensorboard" / stage),
                flush_secs=30,
                purge_step=self._resume_at.get(stage, 0) + 1,
            )
        for name, value in values.items():
            self._events[stage].add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes the files."""
        self._file.close()
        for events in self._events.values():
            events.close()


def say(text: str) -> None:
    """Prints a line, above the progress bar if one is shown."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def warn(message: str) -> None:
    """Prints a warning on standard error, in the first process only."""
    if distributed.is_first():
        print(f"warning: {message}", file=sys.stderr)


class Progress:
    """Shows the progress of a stage: a bar on a terminal, elsewhere a line every few seconds."""

    def __init__(self, stage: str, total: int, start: int, stream: TextIO | None = None):
        self._stream = sys.stderr if stream is None else stream
        self._stage, self._total, self._done = stage, total, start
        self._started_at: float | None = None
        self._first, self._last_line = start, time.monotonic()
        self._bar = None
        if self._stream.isatty():
            self._bar = tqdm(
                total=total,
                initial=start,
                desc=f"{stage:<16}",
                unit=" meta-steps",
                unit_scale=True,
                file=self._stream,
                dynamic_ncols=True,
            )

    def advance(self, steps: int, took_s: float, **shown: float) -> None:
        """Adds meta-steps and shows the latest metrics.

        Args:
            steps: meta-steps of a dispatch.
            took_s: seconds of the dispatch, without compiling.
            shown: metrics by name.
        """
        self._done += steps
        if self._started_at is None:  # the clock excludes compiling, which precedes the dispatch
            self._started_at = time.monotonic() - took_s
            if self._bar is not None:
                self._bar.start_t = self._bar.last_print_t = self._bar._time() - took_s
        text = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(steps)
            return
        now = time.monotonic()
        if now - self._last_line >= QUIET_INTERVAL_S or self._done == self._total:
            self._last_line = now
            speed = (self._done - self._first) / max(now - self._started_at, 1e-9)
            left = (self._total - self._done) / max(speed, 1e-9)
            self._stream.write(
                f"{self._stage}: {self._done:,}/{self._total:,} meta-steps  {text}  "
                f"{results.pace(speed)} meta-steps/s  {left:.0f} s left\n"
            )
            self._stream.flush()

    def close(self) -> None:
        """Ends the bar's line."""
        if self._bar is not None:
            self._bar.close()


class Evaluating:
    """Reports an evaluation, which has no steps to count: seconds so far, and those compiling."""

    def __init__(
        self,
        tell: Callable[[str], None],
        compiles: CompileTimer,
        what: str = "evaluating",
        every_s: float = QUIET_INTERVAL_S,
    ):
        """Prepares the report; a `with` block begins and ends it.

        Args:
            tell: prints a line.
            compiles: the timer of this process.
            what: the beginning of each line.
            every_s: seconds between lines.
        """
        self._tell, self._compiles, self._what, self._every_s = tell, compiles, what, every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._report, daemon=True)

    def __enter__(self) -> Evaluating:
        self._tell(f"{self._what}: compiling ...")
        self._begun, self._compiled = time.monotonic(), self._compiles.seconds
        self._thread.start()
        return self

    def _report(self) -> None:
        while not self._ended.wait(self._every_s):
            took = time.monotonic() - self._begun
            compiling = self._compiles.seconds_so_far - self._compiled
            self._tell(f"  {self._what}: {took:.0f} s, {compiling:.0f} s of them compiling")

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        self._thread.join()


def summarize_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Averages metrics over the meta-steps of a dispatch.

    Args:
        metrics: nested dicts of arrays with an axis of meta-steps.

    Returns:
        The means by name; names of nested dicts are joined with "/".
    """
    means = {name: np.mean(np.asarray(x, np.float64)) for name, x in _flatten(metrics)}
    return {name: float(x) for name, x in means.items() if name != "first_nonfinite_task"}


def summarize_members(
    labels: Sequence[str], metrics: Mapping[str, Any], kept: np.ndarray
) -> dict[str, float]:
    """Averages metrics over the meta-steps of a dispatch and over members.

    Args:
        labels: the labels of the members.
        metrics: nested dicts of arrays [M, meta-steps].
        kept: bool [M], members that still train; the others are left out.

    Returns:
        The means by name. Several members also have a mean each, named `LABEL/NAME`.
    """
    summary = summarize_metrics(jax.tree.map(lambda x: x[kept], metrics))
    if len(labels) == 1:
        return summary
    for i in np.flatnonzero(kept):
        alone = summarize_metrics(jax.tree.map(lambda x, i=i: x[i], metrics))
        summary |= {f"{labels[i]}/{name}": value for name, value in alone.items()}
    return summary


def of_member(entries: Sequence[Mapping[str, Any]], label: str) -> list[dict[str, Any]]:
    """Selects a member's entries from those of a run, as a run of this member alone writes them."""
    prefix = f"{label}/"
    alone = []
    for entry in entries:
        values = {k.removeprefix(prefix): v for k, v in entry.items() if k.startswith(prefix)}
        if values:
            shared = {key: entry[key] for key in ("stage", "step", "meta_steps_per_s")}
            alone.append({**shared, **values})
    return alone


def _flatten(metrics: Mapping[str, Any], prefix: str = ""):
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Reads a run's `metrics.jsonl`, without a last line that a kill cut off.

    Raises:
        FileError: the file cannot be read, or another line is not an entry.
    """
    advice = "Remove that line or the file. Training does not need it; the curves will have a gap."
    return read_json_lines(workdir / "metrics.jsonl", {"stage": str, "step": int}, advice=advice)
