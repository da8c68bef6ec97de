"""Compares two files of measurements.

    python -m benchmarks.compare BEFORE.json AFTER.json

For every measurement in both files the command prints the ratio of the medians, AFTER over BEFORE,
and the smallest and largest ratio that the 10th and 90th percentiles allow. A measurement is
"slower" or "faster" if its percentiles do not overlap. The exit status is 1 if any is slower.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

from absl import app

from benchmarks.harness import TIMES
from experiments.core import streams
from experiments.core.files import NUMBER, FileError, check_object, read_json
from experiments.core.results import format_table


class Ratio(NamedTuple):
    """A measurement in both files.

    Attributes:
        name: suite and measurement.
        before: median, in milliseconds.
        after: median, in milliseconds.
        low: smallest ratio that the percentiles allow.
        high: largest ratio that the percentiles allow.
    """

    name: str
    before: float
    after: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Whether the percentiles do not overlap: "slower", "faster", or "" if they do."""
        if self.low > 1.0:
            return "slower"
        return "faster" if self.high < 1.0 else ""


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[Ratio]:
    """Returns the ratios of all measurements in both files, in the order of the second.

    Args:
        before: contents of a file, as `read` returns them.
        after: the same of the later file.
    """
    old = {name: row for name, row in _timings(before)}
    return [
        Ratio(
            name,
            old[name]["median_ms"],
            row["median_ms"],
            row["low_ms"] / old[name]["high_ms"],
            row["high_ms"] / old[name]["low_ms"],
        )
        for name, row in _timings(after)
        if name in old
    ]


# Columns that distinguish rows of the same name.
APART = ("cache", "scaling", "tasks", "devices", "mode", "inner_steps", "width")


def _timings(report: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (", ".join([f"{suite}: {row['name']}", *(f"{k} {row[k]}" for k in APART if k in row)]), row)
        for suite, rows in report["suites"].items()
        for row in rows
        if all(row.get(name) for name in TIMES)
    ]


def read(path: str) -> dict[str, Any]:
    """Reads a file that `benchmarks.run --json` wrote.

    Raises:
        SystemExit: the file is missing or of another kind.
    """
    advice = "Expected a file written by `python -m benchmarks.run --json=FILE`."
    try:
        report = read_json(Path(path), {"suites": dict, "environment": dict}, advice=advice)
        for suite, rows in report["suites"].items():
            check_object(report["suites"], {suite: list}, None, "'suites'")
            for number, row in enumerate(rows, 1):
                where = f"suite {suite!r}, row {number}"
                timed = isinstance(row, dict) and "median_ms" in row
                times = dict.fromkeys(TIMES, (*NUMBER, type(None)))
                check_object(row, {"name": str, **times} if timed else {}, None, where)
    except FileError as error:
        raise SystemExit(f"error: {error}") from None
    except ValueError as error:
        raise SystemExit(f"error: {path} {error}. {advice}") from None
    return report


def main(argv: list[str]) -> None:
    """Prints the table of ratios; exits with 1 if a measurement is slower."""
    if len(argv) != 3:
        raise app.UsageError(f"expected two files, BEFORE.json AFTER.json; received {argv[1:]}.")
    reports = [read(path) for path in argv[1:]]
    for path, report in zip(argv[1:], reports, strict=True):
        environment = "  ".join(f"{key}: {value}" for key, value in report["environment"].items())
        print(f"{path}\n  {environment}")
    devices = {report["environment"].get("device") for report in reports}
    if len(devices) > 1:
        print("the devices differ: the ratios compare machines, not versions.")
    ratios = compare(*reports)
    if not ratios:
        raise SystemExit("the files share no measurement.")
    cells = [
        [r.name, f"{r.before:.4g}", f"{r.after:.4g}", f"{r.after / r.before:.2f}",
         f"{r.low:.2f} to {r.high:.2f}", r.verdict]
        for r in ratios
    ]  # fmt: skip
    print("\n" + format_table(["name", "before, ms", "after, ms", "ratio", "spread", ""], cells))
    try:
        streams.check_output()
    except OSError as error:
        raise SystemExit(f"error: the output cannot be written: {error.strerror}.") from None
    sys.exit(any(r.verdict == "slower" for r in ratios))


if __name__ == "__main__":
    streams.protect("")
    app.run(main)
