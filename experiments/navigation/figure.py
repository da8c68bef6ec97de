"""The paper's Figure 4: returns against gradient steps, and paths to the goals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from maml_jax.reinforcement import Trajectories
from maml_jax.types import Metrics

from ..core import plotting
from ..core.plotting import plt
from ..core.results import METHOD_TITLES
from ..meta_rl import Watch
from ..meta_rl.figure import draw_returns, draw_training
from .config import Config

TASKS, EPISODES = 4, 5  # whose paths are drawn
STEPS = {0: "#999999", 1: "#56B4E9", 2: "#0072B2"}  # gradient steps before them, with colours


def watch(config: Config) -> Watch:
    """Records where the point goes, in some of the episodes."""
    del config
    return Watch(TASKS, _paths)


def _paths(t: Trajectories) -> Metrics:
    return {"observations": t.observations[:, :EPISODES], "alive": t.alive[:, :EPISODES]}


def navigation_sheet(
    path: Path,
    run: dict[str, Any],
    arrays: Mapping[str, np.ndarray],
    metrics: list[dict[str, Any]],
) -> None:
    """Draws returns and training above, and the paths of some methods below."""
    methods = dict.fromkeys(row["method"] for row in run["rows"])
    shown = [m for m in ("maml", "pretrained", "first_order") if m in methods]
    shown = shown[:2] or list(methods)[:1]
    goals = arrays["tasks"]
    with plt.rc_context(plotting.STYLE):
        figure = plt.figure(figsize=(11, 4.3 + 2.7 * len(shown)), layout="constrained")
        parts = figure.subfigures(2, 1, height_ratios=[4.0, 0.3 + 2.7 * len(shown)])
        left, right = parts[0].subplots(1, 2)
        draw_returns(left, run)
        draw_training(right, metrics)
        plotting.legend_outside(parts[0], [left, right])
        axes = parts[1].subplots(len(shown), len(goals), squeeze=False, sharex=True, sharey=True)
        for method, row in zip(shown, axes, strict=True):
            observations, alive = arrays[f"observations/{method}"], arrays[f"alive/{method}"]
            for i, ax in enumerate(row):
                _draw_paths(ax, observations[i], alive[i], goals[i])
            row[0].set_ylabel(METHOD_TITLES[method])
        for i, ax in enumerate(axes[0]):
            ax.set_title(f"paths in test task {i + 1}")
        plotting.legend_outside(parts[1], axes.ravel())
        plotting.save(figure, path)


def _draw_paths(ax: Axes, observations: np.ndarray, alive: np.ndarray, goal: np.ndarray) -> None:
    """Draws the episodes of one task.

    Args:
        ax: the panel.
        observations: [U + 1, H, E, O]; the position comes first in each.
        alive: bool [U + 1, H, E], steps before the end of the episode.
        goal: [2].
    """
    for step, color in STEPS.items():
        if step >= len(observations):
            continue
        for episode in range(observations.shape[2]):
            taken = observations[step, alive[step, :, episode], episode]
            label = plotting.after_steps(step) if episode == 0 else None
            ax.plot(taken[:, 0], taken[:, 1], color=color, lw=0.9, label=label)
    ax.plot(*goal, "*", color="#D55E00", mec="white", ms=11, label="goal", ls="", zorder=5)
    ax.plot(0, 0, "o", color="black", ms=3, label="start", ls="", zorder=5)
    ax.set_xlim(-0.8, 0.8)
    ax.set_ylim(-0.8, 0.8)
    ax.set_aspect("equal")
