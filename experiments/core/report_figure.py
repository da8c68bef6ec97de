"""The figure of `experiments.report`: groups of runs side by side."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from . import plotting
from .plotting import plt
from .results import pool

DIVERGED = 30  # times the error before adaptation: where a shared axis ends


def compare_runs(path: Path, groups: Sequence[Sequence[dict[str, Any]]]) -> None:
    """Draws the metric against gradient steps, a panel for each group of runs and setting.

    Panels of the same metric share their axes; returns only within a setting, which fixes their
    scale. A title names the settings in which a group differs from others with the same panel.

    Args:
        path: of the PNG.
        groups: runs that differ in their seed only.
    """
    pools = [pool(group) for group in groups]
    rows = [sorted({(k[1], k[3]) for k in pooled}, key=_natural) for pooled in pools]
    columns = max(map(len, rows))
    if columns == 1:
        columns = min(plotting.MOST_COLUMNS, math.ceil(math.sqrt(len(groups))))
    places = _places([len(row) for row in rows], columns)
    depth = (places[-1] + len(rows[-1]) - 1) // columns + 1
    with plt.rc_context(plotting.STYLE):
        figure, grid = plt.subplots(
            depth,
            columns,
            figsize=(3.6 * columns, 3.3 * depth + 0.4),
            squeeze=False,
            layout="constrained",
        )
        axes, first = grid.ravel(), {}
        for place, row, pooled, group in zip(places, rows, pools, groups, strict=True):
            for ax, (setting, metric) in zip(axes[place:], row, strict=False):
                shared = first.setdefault((metric, setting if metric == "return" else ""), ax)
                if shared is not ax:
                    ax.sharex(shared)
                    ax.sharey(shared)
                plotting.draw_curves(ax, pooled, setting, metric)
                title = textwrap.fill(f"{group[0]['experiment']}: {setting}", 42)
                differing = _differing(group[0], groups, setting)
                ax.set_title(plotting.literal("\n".join([title, *differing])), fontsize=9)
        for ax in axes:
            ax.set_visible(bool(ax.lines))
        for (metric, _), ax in first.items():
            _cut_diverged(ax, pools, metric)
        plotting.legend_outside(figure, axes)
        plotting.save(figure, path)


def _places(lengths: Sequence[int], columns: int) -> list[int]:
    """The first panel of each group: a group stays in one row."""
    places, at = [], 0
    for length in lengths:
        if at % columns + length > columns:
            at += columns - at % columns
        places.append(at)
        at += length
    return places


def _cut_diverged(ax: Axes, pools: Sequence[Mapping[Any, Any]], metric: str) -> None:
    """Ends the axis of an error above what adaptation starts from: diverged curves leave it."""
    if metric != "mse":
        return
    starts = [cell["mean"] for p in pools for k, cell in p.items() if k[2:] == (0, metric)]
    top = DIVERGED * max(starts, default=math.inf)
    if ax.get_ylim()[1] > top:
        ax.set_ylim(top=top)


def _differing(
    run: Mapping[str, Any], groups: Sequence[Sequence[dict[str, Any]]], setting: str
) -> list[str]:
    """Lines that name the settings of a run that differ from another group with this panel."""

    def config(other: Mapping[str, Any]) -> dict[str, Any]:
        return {**other["config"], "preset": other["preset"]}

    others = [
        config(group[0])
        for group in groups
        if group[0]["experiment"] == run["experiment"]
        and any(row["setting"] == setting for row in group[0]["rows"])
    ]
    mine = {k: v for k, v in config(run).items() if k not in ("methods", "num_seeds")}
    shown = [
        f"{name}={_text(value)}"
        for name, value in mine.items()
        if any(name in other and other[name] != value for other in others)
    ]
    return textwrap.wrap(", ".join(shown), 46, max_lines=3, placeholder=" ...")


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _natural(key: tuple[str, str]) -> tuple[Any, ...]:
    digits = "".join(c if c.isdigit() else " " for c in key[0]).split()
    return (list(map(int, digits)), *key)
