"""`results.json`: the format of the results of every experiment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maml_jax import confidence_interval

from .files import NUMBER, FileError, check_object, is_of, read_json, write_json

METHOD_TITLES = {
    "maml": "MAML",
    "first_order": "MAML, first order",
    "pretrained": "pretrained on all tasks",
    "oracle": "oracle",
    "random": "random initialisation",
    "maml, not convolutional": "MAML, not convolutional",
    "first_order, not convolutional": "MAML, first order, not convolutional",
    "fine-tuning": "pretrained, then fine-tuned",
    "nearest neighbour": "nearest neighbour",
    "matching": "matching networks",
    "matching nets": "matching networks",
    "averaged": "averaged networks",
    "averaged_l2": "averaged networks, L2",
    "averaged_to_mean": "averaged networks, to the mean",
}
_MAYBE = (*NUMBER, type(None))
ROW_KEYS = {
    "method": str,
    "setting": str,
    "gradient_steps": (int, type(None)),
    "metric": str,
    "mean": _MAYBE,
    "ci95": _MAYBE,
    "num_tasks": int,
}
_KEYS = {
    "experiment": str,
    "preset": str,
    "seed": int,
    "config": dict,
    "environment": dict,
    "wall_clock_s": dict,
    "meta_steps": int,
    "meta_steps_per_s": NUMBER,
    "rows": list,
}
_OPTIONAL = {
    "numbers": dict,
    "format": int,
    "members": dict,  # in a run of several members: the row of each in the table of members
    "together": dict,  # in a member's file: how many members trained together, and their seconds
    "sweep": dict,  # the former name of "together"
}


def make_row(
    method: str, setting: str, gradient_steps: int | None, metric: str, values: Any
) -> dict[str, Any]:
    """Makes a row of results from one value per task.

    If adaptation diverged in a task, the row has no mean, and `"diverged_tasks"` counts the values
    that are not finite.

    Args:
        method: maml, first_order, pretrained, oracle, ...
        setting: "K=5", "5-way 1-shot", ...
        gradient_steps: inner steps taken, or None for a method without any.
        metric: mse, accuracy (0 to 1) or return.
        values: [T].

    Returns:
        The row: mean, half the width of the 95 % confidence interval, number of tasks.
    """
    values = np.asarray(values, np.float64)
    diverged = int(np.sum(~np.isfinite(values)))
    row = {
        "method": method,
        "setting": setting,
        "gradient_steps": gradient_steps,
        "metric": metric,
        "mean": None if diverged else float(values.mean()),
        "ci95": None if diverged else float(confidence_interval(values)),
        "num_tasks": int(values.size),
    }
    if diverged:  # a mean over the other tasks would be too good
        row["diverged_tasks"] = diverged
    return row


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Writes `results.json`, atomically.

    Raises:
        ValueError: a row lacks a key.
    """
    for row in results["rows"]:
        missing = [key for key in ROW_KEYS if key not in row]
        if missing:
            raise ValueError(f"a row of results lacks {', '.join(missing)}: {row}")
    write_json(path, results)


def read_results(path: Path) -> dict[str, Any]:
    """Reads the `results.json` of a run's directory, or the file itself.

    Raises:
        FileNotFoundError: the file does not exist.
        FileError: the file is not as a run writes it.
    """
    file = path / "results.json" if path.is_dir() else path
    if not file.exists():
        raise FileNotFoundError(
            f"no results at {file}: the run is not finished, or this is not a run's directory."
        )
    advice = "Remove it; the command of the run then writes it again from the checkpoints."
    record = read_json(file, _KEYS, _OPTIONAL, advice=advice)
    try:
        _check_results(record)
    except ValueError as error:
        raise FileError(f"{file} {error}. {advice}") from None
    return record


def _check_results(record: dict[str, Any]) -> None:
    """Checks the nested objects and lists of `results.json`."""
    check_object(record["environment"], {"device": str, "commit": str}, None, "'environment'")
    clocks = dict.fromkeys(("compile", "train", "evaluate"), NUMBER)
    check_object(record["wall_clock_s"], clocks, None, "'wall_clock_s'")
    check_object(record["config"], {}, None, "'config'")
    num_seeds = record["config"].get("num_seeds", 1)
    if not is_of(num_seeds, int) or not 1 <= num_seeds <= 1_000_000:
        raise ValueError(f"has 'num_seeds': {num_seeds!r} in 'config'; expected 1 to 1000000")
    if not record["rows"]:
        raise ValueError("has no rows")
    known = set()
    for number, row in enumerate(record["rows"], 1):
        where = f"row {number}"
        check_object(row, ROW_KEYS, None, where)
        means = row.get("per_seed", [None])
        if not is_of(means, list) or not means or not all(is_of(m, _MAYBE) for m in means):
            raise ValueError(f"has 'per_seed': {means!r} in {where}; expected a list of numbers")
        key = _key(row)
        if key in known:
            raise ValueError(f"has a second row of {', '.join(map(str, key))} ({where})")
        known.add(key)


def published() -> dict[tuple[str, str, str, int | None, str], dict[str, Any]]:
    """Reads the paper's numbers, by (experiment, method, setting, gradient_steps, metric)."""
    path = Path(__file__).parents[1] / "paper_results.json"
    rows = read_json(path, {"rows": list}, advice="Install the package again.")["rows"]
    return {(row["experiment"], *_key(row)): row for row in rows}


def _key(row: dict[str, Any]) -> tuple[str, str, int | None, str]:
    return row["method"], row["setting"], row["gradient_steps"], row["metric"]


def pool(runs: Sequence[dict[str, Any]]) -> dict[tuple[str, str, int | None, str], dict[str, Any]]:
    """Averages each row's mean and its confidence interval over tasks over runs.

    Returns:
        By (method, setting, gradient_steps, metric): mean, ci95, num_tasks, num_seeds and
        per_seed, the means of the seeds; NaN where adaptation diverged in a task.
    """
    cells: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        for row in run["rows"]:
            cells[_key(row)].append(row)
    pooled = {}
    for key, rows in cells.items():
        per_seed = [m for row in rows for m in row.get("per_seed", [row["mean"]])]
        per_seed = [float("nan") if m is None else m for m in per_seed]
        intervals = [row["ci95"] for row in rows if row["ci95"] is not None]
        pooled[key] = {
            "mean": float(np.mean(per_seed)),
            "ci95": float(np.mean(intervals)) if intervals else float("nan"),
            "num_tasks": rows[0]["num_tasks"],
            "num_seeds": len(per_seed),
            "per_seed": per_seed,
        }
    return pooled


def pooled_rows(runs: Sequence[dict[str, Any]], prefix: str) -> list[dict[str, Any]]:
    """Makes rows of the means over runs; a prefix comes before the names of their settings."""
    rows = []
    for (method, setting, steps, metric), cell in pool(runs).items():
        finite = {k: v if np.isfinite(v) else None for k, v in cell.items() if k != "per_seed"}
        rows.append(
            {
                "method": method,
                "setting": f"{prefix}: {setting}" if prefix else setting,
                "gradient_steps": steps,
                "metric": metric,
                **{key: finite[key] for key in ("mean", "ci95", "num_tasks")},
                "per_seed": [m if np.isfinite(m) else None for m in cell["per_seed"]],
            }
        )
    return rows


def pace(speed: float) -> str:
    """Formats meta-steps per second, with two digits below ten."""
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a text table; the first column is aligned left, the others right."""
    widths = [max(len(str(line[i])) for line in [header, *rows]) for i in range(len(header))]
    lines = []
    for line in [header, ["-" * w for w in widths], *rows]:
        cells = [
            str(c).ljust(w) if i == 0 else str(c).rjust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
