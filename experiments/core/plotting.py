"""Figures: one style, drawn from results and arrays, without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

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


def save(figure: Any, path: Path) -> None:
    """Writes a PNG, whole or not at all, and lets go of the figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, dpi=160, format="png")
    plt.close(figure)
    temporary.replace(path)


def literal(text: str) -> str:
    """A text of a file for a figure, whose dollar signs are no mathematics."""
    return text.replace("$", r"\$")


def draw_curves(ax: Axes, pooled: Mapping[Any, dict[str, Any]], setting: str, metric: str) -> None:
    """A metric against gradient steps for each method, with 95 % intervals over tasks."""
    methods = dict.fromkeys(k[0] for k in pooled if k[1] == setting and k[3] == metric)
    last = max((k[2] for k in pooled if k[1] == setting and k[2] is not None), default=1)
    for method in methods:
        cells = {
            k[2]: v for k, v in pooled.items() if (k[0], k[1], k[3]) == (method, setting, metric)
        }
        steps = sorted(cells, key=lambda step: -1 if step is None else step)
        mean = np.array([cells[s]["mean"] for s in steps])
        half = np.array([cells[s]["ci95"] for s in steps])
        if len(steps) == 1:  # not adapted: the same at every step
            steps, mean, half = [0, last], np.repeat(mean, 2), np.repeat(half, 2)
        color, title = COLORS.get(method, "black"), METHOD_TITLES.get(method, method)
        style = "--" if method == "oracle" else "-"
        ax.plot(steps, mean, style, color=color, lw=1.6, label=literal(title))
        ax.fill_between(steps, mean - half, mean + half, color=color, alpha=0.2, lw=0)
    if metric == "mse":
        ax.set_yscale("log")
    ax.set_title(literal(setting))
    ax.set_xlabel("gradient steps")
    ax.grid(axis="y", color="#dddddd", lw=0.6)


def compare_runs(path: Path, groups: Sequence[Sequence[dict[str, Any]]]) -> None:
    """For each group of runs and each setting, the metric against gradient steps."""
    pools = [pool(group) for group in groups]
    settings = [sorted({(k[1], k[3]) for k in pooled}, key=_natural) for pooled in pools]
    columns = max(len(s) for s in settings)
    with plt.rc_context(STYLE):
        size = (3.6 * columns, 3.4 * len(groups))
        figure, axes = plt.subplots(
            len(groups), columns, figsize=size, squeeze=False, layout="constrained"
        )
        for i, (group, pooled) in enumerate(zip(groups, pools, strict=True)):
            for j, ax in enumerate(axes[i]):
                if j >= len(settings[i]):
                    ax.set_visible(False)
                    continue
                setting, metric = settings[i][j]
                draw_curves(ax, pooled, setting, metric)
                title = f"{group[0]['experiment']} ({group[0]['preset']}), {setting}"
                ax.set_title(literal(title))
                ax.set_ylabel(literal(metric))
        axes[0][0].legend()
        save(figure, path)


def _natural(key: tuple[str, str]) -> tuple[Any, ...]:
    digits = "".join(c if c.isdigit() else " " for c in key[0]).split()
    return (*map(int, digits), *key)


def members_sheet(
    path: Path,
    run: dict[str, Any],
    arrays: Mapping[str, np.ndarray],
    metrics: list[dict[str, Any]],
) -> None:
    """Members' meta-losses, a panel for each stage; below, the methods' curves after training.

    Those are means over seeds, a panel for each combination of other settings.
    """
    del arrays  # the metrics and the rows have it all
    pooled = pool([run])
    curves = list(dict.fromkeys((key[1], key[3]) for key in pooled))
    stages = list(dict.fromkeys(entry["stage"] for entry in metrics))
    labels = list(run["members"])
    shades = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(labels)))
    with plt.rc_context(STYLE):
        columns = max(len(stages), min(len(curves), 4))
        depth = -(-len(curves) // columns)
        figure = plt.figure(figsize=(4 * columns + 3, 4 + 3.6 * depth), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=[4, 3.6 * depth])
        axes = top.subplots(1, len(stages), squeeze=False)
        for ax, stage in zip(axes[0], stages, strict=True):
            lowest = np.inf
            for label, shade in zip(labels, shades, strict=True):
                name = f"{label}/loss"
                points = [
                    (e["step"], e[name]) for e in metrics if e["stage"] == stage and name in e
                ]
                if points:
                    ax.plot(*np.transpose(points), color=shade, lw=1.2, label=literal(label))
                    lowest = min(lowest, *(value for _, value in points))
            ax.set_yscale("log" if lowest > 0 else "linear")
            ax.set_title(literal(METHOD_TITLES.get(stage, stage)))
            ax.set_xlabel("meta-steps")
        axes[0][0].set_ylabel("meta-loss")
        top.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper")
        panels = bottom.subplots(depth, columns, squeeze=False).ravel()
        for ax, (setting, metric) in zip(panels, curves, strict=False):
            draw_curves(ax, pooled, setting, metric)
            ax.set_ylabel(literal(metric))
        for ax in panels[len(curves) :]:
            ax.set_visible(False)
        bottom.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
        save(figure, path)
