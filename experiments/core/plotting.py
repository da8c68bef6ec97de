"""Figures drawn from results and arrays, in one style, without a display."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatterSciNotation, MaxNLocator, StrMethodFormatter

from .results import METHOD_TITLES, pool

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLORS = {
    "maml": "#0072B2",
    "first_order": "#56B4E9",
    "pretrained": "#D55E00",
    "oracle": "#009E73",
    "averaged": "#CC79A7",
    "averaged_l2": "#E69F00",
    "averaged_to_mean": "#8C564B",
    "random": "#7F7F7F",
    "maml, not convolutional": "#0072B2",
    "first_order, not convolutional": "#56B4E9",
    "fine-tuning": "#D55E00",
    "nearest neighbour": "#E69F00",
    "matching": "#CC79A7",
    "matching nets": "#CC79A7",
}
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "font.family": "DejaVu Sans",
}
METRIC_LABELS = {
    "mse": "mean squared error",
    "accuracy": "accuracy on the query set",
    "return": "return of an episode",
}
LOSS_LABELS = {"mse": "meta-loss (mean squared error)", "accuracy": "meta-loss (nats)"}
FEW_POINTS = 12  # curves of so few points get markers; a single point has no line
MOST_COLUMNS = 4


def save(figure: Any, path: Path) -> None:
    """Writes a PNG, whole or not at all, and closes the figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, dpi=160, format="png")
    plt.close(figure)
    temporary.replace(path)


def literal(text: str) -> str:
    """Escapes the dollar signs of a text from a file: they mark no mathematics."""
    return text.replace("$", r"\$")


def after_steps(count: int) -> str:
    """Names the moment after `count` gradient steps, for legends."""
    if count == 0:
        return "before adaptation"
    return f"after {count} gradient step" + "s" * (count > 1)


def grid(ax: Axes) -> None:
    """Adds faint horizontal lines."""
    ax.grid(axis="y", color="#dddddd", lw=0.6)


def count_axis(ax: Axes, label: str) -> None:
    """Makes x a count: whole numbers only, with commas between thousands."""
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.set_xlabel(label)


class _PlainNumbers(LogFormatterSciNotation):
    """Writes 0.5 rather than 5 times a power of 10, at the same ticks."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def log_axis(ax: Axes) -> None:
    """Makes y logarithmic, with plain numbers."""
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(_PlainNumbers())
    ax.yaxis.set_minor_formatter(_PlainNumbers(labelOnlyBase=False, minor_thresholds=(1, 0.4)))


def draw_line(ax: Axes, x: Sequence[Any], y: Any, **options: Any) -> None:
    """Draws a curve; few points get markers."""
    if len(x) <= FEW_POINTS:
        options = {"marker": "o", "ms": 3, **options}
    ax.plot(x, y, **options)


def legend_outside(
    figure: Any, axes: Iterable[Axes], loc: str = "outside lower center", ncols: int | None = None
) -> None:
    """Adds one legend for several panels, off the curves; equal labels stand once.

    Args:
        figure: or subfigure, with constrained layout.
        axes: the panels.
        loc: of the legend.
        ncols: its columns; default as many as fit into the width.
    """
    handles: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if not handles:
        return
    inches = [0.5 + 0.065 * len(label) for label in handles]
    room = figure.bbox.width / figure.figure.dpi
    rows = 1 if sum(inches) < room else -(-len(handles) // max(1, int(room / max(inches))))
    columns = ncols or -(-len(handles) // rows)
    figure.legend(handles.values(), handles.keys(), loc=loc, ncols=columns)


def draw_curves(ax: Axes, pooled: Mapping[Any, dict[str, Any]], setting: str, metric: str) -> None:
    """Draws a metric against gradient steps for each method, with 95 % intervals over tasks.

    Args:
        ax: the panel.
        pooled: of `results.pool`.
        setting: as results name it.
        metric: mse, accuracy or return.
    """
    methods = dict.fromkeys(k[0] for k in pooled if k[1] == setting and k[3] == metric)
    last = max((k[2] for k in pooled if k[1] == setting and k[2] is not None), default=1)
    for method in methods:
        cells = {
            k[2]: v for k, v in pooled.items() if (k[0], k[1], k[3]) == (method, setting, metric)
        }
        steps = sorted(cells, key=lambda step: -1 if step is None else step)
        mean = np.array([cells[s]["mean"] for s in steps])
        half = np.array([cells[s]["ci95"] for s in steps])
        constant = steps in ([None], [0])  # not adapted: the same at every step
        if constant:
            steps, mean, half = [0, max(last, 1)], np.repeat(mean, 2), np.repeat(half, 2)
        color, title = COLORS.get(method, "black"), METHOD_TITLES.get(method, method)
        look = {"ls": "--" if method == "oracle" else "-", "color": color, "lw": 1.6}
        marker = {"marker": ""} if constant else {}
        draw_line(ax, steps, mean, label=literal(title), **look, **marker)
        ax.fill_between(steps, mean - half, mean + half, color=color, alpha=0.2, lw=0)
    if metric == "mse":
        log_axis(ax)
    ax.set_title(literal(setting))
    count_axis(ax, "gradient steps")
    ax.set_ylabel(literal(METRIC_LABELS.get(metric, metric)))
    grid(ax)


def draw_training(
    ax: Axes,
    metrics: Sequence[Mapping[str, Any]],
    name: str,
    y_label: str,
    title: str = "training",
    **options: Any,
) -> None:
    """Draws a metric of `metrics.jsonl` against meta-steps, for each stage that has it.

    Long curves are moving averages over a hundredth of their length.

    Args:
        ax: the panel.
        metrics: entries of the file.
        name: of the metric.
        y_label: what the metric is called.
        title: of the panel.
        **options: of the lines.
    """
    for stage in dict.fromkeys(entry["stage"] for entry in metrics):
        points = [(e["step"], e[name]) for e in metrics if e["stage"] == stage and name in e]
        if not points:
            continue
        steps, values = np.transpose(points)
        window = max(1, len(values) // 100)
        values = np.convolve(values, np.ones(window) / window, "valid")
        color = COLORS.get(stage, "black")
        look: dict[str, Any] = {
            "lw": 1.4,
            "label": literal(METHOD_TITLES.get(stage, stage)),
            **options,
        }
        draw_line(ax, steps[window - 1 :], values, color=color, **look)
    ax.set_title(title)
    count_axis(ax, "meta-steps")
    ax.set_ylabel(y_label)
    grid(ax)


def members_sheet(
    path: Path,
    run: dict[str, Any],
    arrays: Mapping[str, np.ndarray],
    metrics: list[dict[str, Any]],
) -> None:
    """Draws the members' meta-losses, a panel for each stage, and the methods' curves below.

    The curves are means over seeds, a panel for each combination of other settings.
    """
    del arrays  # the metrics and the rows have it all
    pooled = pool([run])
    curves = list(dict.fromkeys((key[1], key[3]) for key in pooled))
    stages = list(dict.fromkeys(entry["stage"] for entry in metrics))
    labels = list(run["members"])
    shades = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(labels)))
    with plt.rc_context(STYLE):
        columns = max(len(stages), min(len(curves), MOST_COLUMNS))
        depth = -(-len(curves) // columns)
        figure = plt.figure(figsize=(4 * columns + 3, 4 + 3.6 * depth), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=[4, 3.6 * depth])
        axes = top.subplots(1, len(stages), squeeze=False)[0]
        for ax, stage in zip(axes, stages, strict=True):
            _draw_losses(ax, [e for e in metrics if e["stage"] == stage], labels, shades)
            ax.set_title(literal(METHOD_TITLES.get(stage, stage)))
        axes[0].set_ylabel(LOSS_LABELS.get(curves[0][1], "meta-loss"))
        legend_outside(top, axes, "outside right upper", ncols=1)
        panels = bottom.subplots(depth, columns, squeeze=False, sharex=True).ravel()
        for i, (setting, metric) in enumerate(curves):
            if i and metric == curves[0][1]:
                panels[i].sharey(panels[0])
            draw_curves(panels[i], pooled, setting, metric)
        for ax in panels[len(curves) :]:
            ax.set_visible(False)
        legend_outside(bottom, panels, "outside right upper", ncols=1)
        save(figure, path)


def _draw_losses(
    ax: Axes, entries: Sequence[Mapping[str, Any]], labels: Sequence[str], shades: Any
) -> None:
    """Draws one stage's meta-loss for each member."""
    lowest = np.inf
    for label, shade in zip(labels, shades, strict=True):
        name = f"{label}/loss"
        points = [(entry["step"], entry[name]) for entry in entries if name in entry]
        if points:
            draw_line(ax, *np.transpose(points), color=shade, lw=1.2, label=literal(label))
            lowest = min(lowest, *(value for _, value in points))
    if lowest > 0:
        log_axis(ax)
    count_axis(ax, "meta-steps")
    grid(ax)
