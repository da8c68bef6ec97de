"""What a run tells while it runs: a progress bar, `metrics.jsonl` and TensorBoard events."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from . import distributed, results
from .files import read_json_lines, write_text

QUIET_INTERVAL_S = 10.0  # between lines where the output is no terminal


class Logbook:
    """The metrics of a run, a line for each dispatch of meta-steps."""

    def __init__(self, workdir: Path, resume_at: Mapping[str, int]):
        """Opens the files; entries of a stage beyond its checkpoint are forgotten.

        Args:
            workdir: of the run.
            resume_at: for each stage the step that it goes on from.
        """
        self._path = workdir / "metrics.jsonl"
        kept = [e for e in read_metrics(workdir) if e["step"] <= resume_at.get(e["stage"], 0)]
        write_text(self._path, "".join(json.dumps(entry) + "\n" for entry in kept))
        self._file = self._path.open("a", buffering=1, encoding="utf-8")
        self._workdir, self._resume_at = workdir, resume_at
        self._events: dict[str, SummaryWriter] = {}

    def write(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
        """Adds an entry; `values` are numbers."""
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
    """Prints a line, above a progress bar if there is one."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def warn(message: str) -> None:
    """Prints a warning on standard error, by the first process only."""
    if distributed.is_first():
        print(f"warning: {message}", file=sys.stderr)


class Progress:
    """A bar on a terminal; elsewhere a line now and then."""

    def __init__(self, stage: str, total: int, start: int, stream: TextIO | None = None):
        self._stream = sys.stderr if stream is None else stream
        self._stage, self._total, self._done = stage, total, start
        self._started_at, self._first = time.monotonic(), start
        self._last_line = self._started_at
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

    def advance(self, steps: int, **shown: float) -> None:
        """Moves on by `steps` and shows the latest metrics."""
        self._done += steps
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


def summarize_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Means over a dispatch, by name.

    Args:
        metrics: nested dicts of arrays with an axis of meta-steps.
    """
    means = {name: np.mean(np.asarray(x, np.float64)) for name, x in _flatten(metrics)}
    return {name: float(x) for name, x in means.items() if name != "first_nonfinite_task"}


def summarize_members(
    labels: Sequence[str], metrics: Mapping[str, Any], kept: np.ndarray
) -> dict[str, float]:
    """Means over a dispatch and over members; of several members, each one's as `LABEL/NAME` too.

    Args:
        labels: of the members.
        metrics: nested dicts of arrays [M, meta-steps].
        kept: bool [M], members that still train; the others are left out.
    """
    summary = summarize_metrics(jax.tree.map(lambda x: x[kept], metrics))
    if len(labels) == 1:
        return summary
    for i in np.flatnonzero(kept):
        alone = summarize_metrics(jax.tree.map(lambda x, i=i: x[i], metrics))
        summary |= {f"{labels[i]}/{name}": value for name, value in alone.items()}
    return summary


def of_member(entries: Sequence[Mapping[str, Any]], label: str) -> list[dict[str, Any]]:
    """The entries of one member, as its run alone would have them, from those of all members."""
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
    """The entries of a run's `metrics.jsonl`; a last line cut off by a kill is left out.

    Raises:
        FileError: the file cannot be read, or another line is no entry.
    """
    advice = "Remove that line, or the file: training goes on the same, and its curves lack it."
    return read_json_lines(workdir / "metrics.jsonl", {"stage": str, "step": int}, advice=advice)
