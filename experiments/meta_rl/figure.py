"""Panels of meta-reinforcement learning: returns against updates, and training."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

from ..core import plotting
from ..core.results import METHOD_TITLES, pool
from .config import ADAPTED


def draw_returns(ax: Axes, run: dict[str, Any]) -> None:
    """Return against updates for each method, with intervals over tasks."""
    plotting.draw_curves(ax, pool([run]), run["rows"][0]["setting"], "return")
    ax.set_xlabel("updates")
    ax.set_ylabel("return of an episode")
    ax.legend(loc="best")


def draw_training(ax: Axes, metrics: list[dict[str, Any]]) -> None:
    """Return after adaptation against meta-steps, for each stage."""
    for stage in dict.fromkeys(entry["stage"] for entry in metrics):
        entries = [entry for entry in metrics if entry["stage"] == stage]
        color, title = plotting.COLORS.get(stage, "black"), METHOD_TITLES.get(stage, stage)
        steps = [entry["step"] for entry in entries]
        ax.plot(steps, [e["after/return"] for e in entries], color=color, lw=1.4, label=title)
        if stage in ADAPTED:
            ax.plot(steps, [e["before/return"] for e in entries], ":", color=color, lw=1)
    ax.set_title("during training (dotted: before adaptation)")
    ax.set_xlabel("meta-steps")
    ax.set_ylabel("return of an episode")
    ax.grid(axis="y", color="#dddddd", lw=0.6)
    ax.legend(loc="best")
