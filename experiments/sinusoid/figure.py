"""Figures of the sinusoid: fits, error curves and training; and the fit to a user's points."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..core import plotting
from ..core.plotting import plt
from ..core.results import METHOD_TITLES, pool
from .config import AVERAGED


def draw(
    path: Path,
    run: dict[str, Any],
    arrays: Mapping[str, np.ndarray],
    metrics: list[dict[str, Any]],
) -> None:
    """Draws the paper's Figures 2 and 3 (fits, error curves) and the training."""
    settings = [f"K={k}" for k in run["config"]["num_shots"]]
    fitted = [m for m in ("maml", "pretrained") if f"fit/{m}/{settings[0]}" in arrays]
    panels = [(m, s) for m in fitted for s in settings[:2]]
    width = 2.9 * (len(settings) + 1)
    with plt.rc_context(plotting.STYLE):
        figure = plt.figure(figsize=(max(width, 11), 6.6), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.1])
        if panels:
            axes = top.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
            for ax, (method, setting) in zip(axes, panels, strict=True):
                _draw_fit(ax, arrays, method, setting)
            axes[0].set_ylabel("y")
            plotting.legend_outside(top, axes)
        axes = bottom.subplots(1, len(settings) + 1, sharey=True, squeeze=False)[0]
        pooled = pool([run])
        for ax, setting in zip(axes, settings, strict=False):
            plotting.draw_curves(ax, pooled, setting, "mse")
            ax.label_outer()
            ax.xaxis.label.set_visible(True)
        mine = [entry for entry in metrics if entry["stage"] not in AVERAGED]
        plotting.draw_training(axes[-1], mine, "loss", plotting.LOSS_LABELS["mse"])
        plotting.legend_outside(bottom, axes)
        plotting.save(figure, path)


def _draw_fit(ax: Axes, arrays: Mapping[str, np.ndarray], method: str, setting: str) -> None:
    """Draws one test function, and one method's fit to K of its points."""
    grid, support = arrays["grid"], arrays[f"support/{setting}"]
    fits = arrays[f"fit/{method}/{setting}"]
    ax.plot(grid, arrays["truth"], color="#cccccc", lw=5, label="true function")
    ax.plot(grid, fits[0], color="#666666", lw=1.2, ls=":", label=plotting.after_steps(0))
    last = len(fits) - 1
    for step, look in {1: {"ls": "--", "lw": 1.2}, last: {"ls": "-", "lw": 1.8}}.items():
        if 0 < step <= last:
            ax.plot(grid, fits[step], color=plotting.COLORS[method], **look)
            # The legend is black: colours are the methods'.
            ax.plot([], [], color="black", label=plotting.after_steps(step), **look)
    ax.plot(
        support[:, 0], support[:, 1], "^", color="#7B2D8B", ms=6, label="support points", zorder=5
    )
    ax.set_title(f"{METHOD_TITLES[method]}, {setting}")
    ax.set_xlabel("x")


def user_fit(
    path: Path,
    points: np.ndarray,
    inputs: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    num_steps: int,
) -> None:
    """Draws a user's points and the model before and after adaptation to them.

    Args:
        path: of the PNG.
        points: [n, 2], x and y.
        inputs: [m], where the model predicts.
        before: [m], predictions before adaptation.
        after: [m], predictions after it.
        num_steps: gradient steps between the two.
    """
    order = np.argsort(inputs)
    with plt.rc_context(plotting.STYLE):
        figure, ax = plt.subplots(figsize=(6, 3.8), layout="constrained")
        ax.plot(inputs[order], before[order], ":", color="#999999", label=plotting.after_steps(0))
        ax.plot(
            inputs[order],
            after[order],
            color=plotting.COLORS["maml"],
            lw=1.8,
            label=plotting.after_steps(num_steps),
        )
        ax.plot(points[:, 0], points[:, 1], "^", color="#7B2D8B", ms=6, label="your points")
        ax.set_xlabel("x")
        ax.set_ylabel("y")
        plotting.legend_outside(figure, [ax])
        plotting.save(figure, path)
