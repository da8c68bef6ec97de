"""Two files of measurements beside each other.

    python -m benchmarks.compare BEFORE.json AFTER.json

For every measurement that both have, the ratio of the medians, AFTER over BEFORE, with the smallest
and largest ratio that their 10th and 90th percentiles allow. "slower" and "faster" are those whose
percentiles do not overlap; the command's exit status is 1 if any is slower.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

from absl import app

from experiments.core import streams
from experiments.core.files import NUMBER, FileError, check_object, read_json
from experiments.core.results import format_table


class Ratio(NamedTuple):
    """One measurement, before and after.

    Attributes:
        name: suite and measurement.
        before: median, milliseconds.
        after: median, milliseconds.
        low: the smallest ratio that the spread allows.
        high: the largest.
    """

    name: str
    before: float
    after: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """What the spread lets one say."""
        if self.low > 1.0:
            return "slower"
        return "faster" if self.high < 1.0 else ""


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[Ratio]:
    """The ratios of all measurements that two files share, in the order of the second."""
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


# What tells rows of one name apart, in the suites that have such.
TIMES = ("median_ms", "low_ms", "high_ms")
APART = ("cache", "scaling", "tasks", "devices", "mode", "inner_steps", "width")


def _timings(found: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (", ".join([f"{suite}: {row['name']}", *(f"{k} {row[k]}" for k in APART if k in row)]), row)
        for suite, rows in found["suites"].items()
        for row in rows
        if all(row.get(name) for name in TIMES)
    ]


def read(path: str) -> dict[str, Any]:
    """A file of `benchmarks.run --json`.

    Raises:
        SystemExit: there is none, or it is another kind of file.
    """
    advice = "It is no file of `python -m benchmarks.run --json=FILE`."
    try:
        found = read_json(Path(path), {"suites": dict, "environment": dict}, advice=advice)
        for suite, rows in found["suites"].items():
            check_object(found["suites"], {suite: list}, None, "'suites'")
            for number, row in enumerate(rows, 1):
                where = f"suite {suite!r}, row {number}"
                timed = isinstance(row, dict) and "median_ms" in row
                times = dict.fromkeys(TIMES, (*NUMBER, type(None)))
                check_object(row, {"name": str, **times} if timed else {}, None, where)
    except FileError as error:
        raise SystemExit(f"error: {error}") from None
    except ValueError as error:
        raise SystemExit(f"error: {path} {error}. {advice}") from None
    return found


def main(argv: list[str]) -> None:
    """Prints the table."""
    if len(argv) != 3:
        raise app.UsageError(f"expected two files, BEFORE.json AFTER.json; received {argv[1:]}.")
    files = [read(path) for path in argv[1:]]
    for path, found in zip(argv[1:], files, strict=True):
        where = "  ".join(f"{key}: {value}" for key, value in found["environment"].items())
        print(f"{path}\n  {where}")
    devices = {found["environment"].get("device") for found in files}
    if len(devices) > 1:
        print("the devices differ: the ratios compare machines, not versions.")
    ratios = compare(*files)
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
