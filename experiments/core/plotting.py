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

from experiments.core.results import METHOD_TITLES, pool

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


def sinusoid_sheet(
    path: Path,
    run: dict[str, Any],
    arrays: Mapping[str, np.ndarray],
    metrics: list[dict[str, Any]],
) -> None:
    """The paper's Figures 2 and 3: fits of MAML and the pretrained network, and error curves."""
    del metrics
    settings = [f"K={k}" for k in run["config"]["num_shots"]]
    fitted = [m for m in ("maml", "pretrained") if f"fit/{m}/{settings[0]}" in arrays]
    panels = [(m, s) for m in fitted for s in settings[:2]]
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(11, 6.4), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.1])
        if panels:
            axes = top.subplots(1, len(panels), sharey=True, squeeze=False)[0]
            for ax, (method, setting) in zip(axes, panels, strict=True):
                _draw_fit(ax, arrays, method, setting)
            axes[0].set_ylabel("y")
            handles, labels = axes[0].get_legend_handles_labels()
            top.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        axes = bottom.subplots(1, len(settings), sharey=True, squeeze=False)[0]
        pooled = pool([run])
        for ax, setting in zip(axes, settings, strict=True):
            draw_curves(ax, pooled, setting, "mse")
        axes[0].set_ylabel("mean squared error")
        handles, labels = axes[0].get_legend_handles_labels()
        bottom.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
        save(figure, path)


def _draw_fit(ax: Axes, arrays: Mapping[str, np.ndarray], method: str, setting: str) -> None:
    grid, support = arrays["grid"], arrays[f"support/{setting}"]
    fits = arrays[f"fit/{method}/{setting}"]
    color = COLORS[method]
    ax.plot(grid, arrays["truth"], color="black", lw=1.2, label="true function")
    ax.plot(grid, fits[0], color="#999999", lw=1.2, ls=":", label="before adaptation")
    ax.plot(grid, fits[1], color=color, lw=1.2, ls="--", alpha=0.8, label="after 1 step")
    ax.plot(grid, fits[-1], color=color, lw=1.8, label=f"after {len(fits) - 1} steps")
    ax.plot(
        support[:, 0], support[:, 1], "^", color="#7B2D8B", ms=6, label="support points", zorder=5
    )
    ax.set_title(f"{METHOD_TITLES[method]}, {setting}")
    ax.set_xlabel("x")


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


def user_fit(
    path: Path,
    points: np.ndarray,
    inputs: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    num_steps: int,
) -> None:
    """A user's own points and the model before and after adapting to them."""
    order = np.argsort(inputs)
    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(6, 3.8), layout="constrained")
        ax.plot(inputs[order], before[order], ":", color="#999999", label="before adaptation")
        ax.plot(
            inputs[order],
            after[order],
            color=COLORS["maml"],
            lw=1.8,
            label=f"after {num_steps} steps",
        )
        ax.plot(points[:, 0], points[:, 1], "^", color="#7B2D8B", ms=6, label="your points")
        ax.set_xlabel("x")
        ax.set_ylabel("y")
        ax.legend()
        save(figure, path)


def sweep_sheet(
    path: Path,
    run: dict[str, Any],
    arrays: Mapping[str, np.ndarray],
    metrics: list[dict[str, Any]],
) -> None:
    """The meta-loss of each member of a sweep against meta-steps."""
    del run, arrays  # the metrics have it all
    curves: dict[str, list[tuple[int, float]]] = {}
    for entry in metrics:
        for name, value in entry.items():
            if name.endswith("/loss") and name.startswith("seed="):
                curves.setdefault(name.removesuffix("/loss"), []).append((entry["step"], value))
    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
        shades = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(curves)))
        for (label, points), shade in zip(curves.items(), shades, strict=True):
            ax.plot(*np.transpose(points), color=shade, lw=1.2, label=literal(label))
        ax.set_xlabel("meta-steps")
        ax.set_ylabel("meta-loss")
        ax.set_yscale("log")
        figure.legend(loc="outside right upper")
        save(figure, path)
