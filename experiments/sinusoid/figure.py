"""Figures of the sinusoid: fits and error curves, and the fit to a user's points."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..core import plotting
from ..core.plotting import plt
from ..core.results import METHOD_TITLES, pool


def draw(
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
    with plt.rc_context(plotting.STYLE):
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
            plotting.draw_curves(ax, pooled, setting, "mse")
        axes[0].set_ylabel("mean squared error")
        handles, labels = axes[0].get_legend_handles_labels()
        bottom.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
        plotting.save(figure, path)


def _draw_fit(ax: Axes, arrays: Mapping[str, np.ndarray], method: str, setting: str) -> None:
    grid, support = arrays["grid"], arrays[f"support/{setting}"]
    fits = arrays[f"fit/{method}/{setting}"]
    color = plotting.COLORS[method]
    ax.plot(grid, arrays["truth"], color="black", lw=1.2, label="true function")
    ax.plot(grid, fits[0], color="#999999", lw=1.2, ls=":", label="before adaptation")
    ax.plot(grid, fits[1], color=color, lw=1.2, ls="--", alpha=0.8, label="after 1 step")
    ax.plot(grid, fits[-1], color=color, lw=1.8, label=f"after {len(fits) - 1} steps")
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
    """A user's points and the model before and after adapting to them."""
    order = np.argsort(inputs)
    with plt.rc_context(plotting.STYLE):
        figure, ax = plt.subplots(figsize=(6, 3.8), layout="constrained")
        ax.plot(inputs[order], before[order], ":", color="#999999", label="before adaptation")
        ax.plot(
            inputs[order],
            after[order],
            color=plotting.COLORS["maml"],
            lw=1.8,
            label=f"after {num_steps} steps",
        )
        ax.plot(points[:, 0], points[:, 1], "^", color="#7B2D8B", ms=6, label="your points")
        ax.set_xlabel("x")
        ax.set_ylabel("y")
        ax.legend()
        plotting.save(figure, path)
