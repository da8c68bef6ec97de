"""Draws a chart and writes a table of the suite `memory`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from benchmarks.harness import Row
from benchmarks.suites import memory
from experiments.core import plotting
from experiments.core.results import format_table

# Okabe and Ito's palette; markers distinguish the lines without colour.
LOOKS = {
    "reverse": ("#D55E00", "o"),
    "remat": ("#E69F00", "s"),
    "mixed": ("#0072B2", "^"),
    "first_order": ("#009E73", "D"),
}
AXES = {"inner_steps": "inner steps S", "width": "width of the hidden layers"}
MEASURES = {"resident_mb": "peak memory, MB", "median_ms": "one meta-gradient, ms"}


def write_memory_chart(beside: Path, rows: Sequence[Row]) -> None:
    """Writes FILE.png and FILE.txt beside FILE.json.

    Args:
        beside: path of FILE.json.
        rows: of the suite.
    """
    memory_chart(beside.with_suffix(".png"), rows)
    beside.with_suffix(".txt").write_text(memory_table(rows) + "\n")
    print(f"chart and table: {beside.with_suffix('.png')}, {beside.with_suffix('.txt')}")


def against(rows: Sequence[Row], axis: str) -> list[Row]:
    """Returns the rows along one axis, in its order; the other axis has its fixed value."""
    fixed_width, fixed_steps = ("width", memory.FIXED_WIDTH), ("inner_steps", memory.FIXED_STEPS)
    other, fixed = fixed_width if axis == "inner_steps" else fixed_steps
    return sorted((row for row in rows if row[other] == fixed), key=lambda row: row[axis])


def memory_table(rows: Sequence[Row]) -> str:
    """Formats a table for each axis: planned memory, resident memory and time of each mode."""
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    parts = []
    for axis, title in AXES.items():
        chosen, lines = against(rows, axis), []
        for value in dict.fromkeys(row[axis] for row in chosen):
            cells = {row["mode"]: _cell(row) for row in chosen if row[axis] == value}
            lines.append([str(value), *(cells.get(mode, "") for mode in modes)])
        parts.append(format_table([title, *modes], lines))
    note = "MB that the compiler plans; MB resident; milliseconds of one meta-gradient"
    return "\n\n".join([note, *parts])


def _cell(row: Row) -> str:
    resident = "?" if row["resident_mb"] is None else f"{row['resident_mb']:,.0f}"
    return f"{row['temporary_mb']:,.0f}; {resident}; {row['median_ms']:,.4g}"


def memory_chart(path: Path, rows: Sequence[Row]) -> None:
    """Draws memory and time (rows) against inner steps and width (columns) on logarithmic axes."""
    with plt.rc_context(plotting.STYLE):
        figure, axes = plt.subplots(
            2, 2, figsize=(9, 6.4), sharex="col", sharey="row", layout="constrained"
        )
        for line, (measure, label) in zip(axes, MEASURES.items(), strict=True):
            line[0].set_ylabel(label)
            for ax, axis in zip(line, AXES, strict=True):
                _draw(ax, against(rows, axis), axis, measure)
        for ax, (axis, title) in zip(axes[1], AXES.items(), strict=True):
            values = sorted({row[axis] for row in against(rows, axis)})
            ax.set_xticks(values, [str(v) for v in values])
            ax.minorticks_off()
            ax.set_xlabel(title)
        axes[0][0].set_title(f"width {memory.FIXED_WIDTH}")
        axes[0][1].set_title(f"{memory.FIXED_STEPS} inner steps")
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels) // 2)
        plotting.save(figure, path)


def _draw(ax: Any, rows: Sequence[Row], axis: str, measure: str) -> None:
    """Draws a line for each mode; in a chart of memory also a dotted line of planned memory."""
    for mode in dict.fromkeys(row["mode"] for row in rows):
        color, marker = LOOKS[mode]
        of_mode = [row for row in rows if row["mode"] == mode]
        for name, style in ((measure, "-"), ("temporary_mb", ":")):
            points = [(row[axis], row[name]) for row in of_mode if row[name] is not None]
            if not points or (style == ":" and measure != "resident_mb"):
                continue
            label = mode.replace("_", " ") + (" (planned)" if style == ":" else "")
            shown = {"marker": marker, "ms": 4} if style == "-" else {}
            ax.plot(*zip(*points, strict=True), style, color=color, lw=1.6, label=label, **shown)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.grid(axis="y", color="#dddddd", lw=0.6)
