"""The paper's Figure 4: returns against updates, and trajectories with their goals."""

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

TASKS, EPISODES = 4, 5  # whose trajectories are drawn
UPDATES = {0: "#999999", 1: "#56B4E9", 2: "#0072B2"}  # after which they are, by colour


def watch(config: Config) -> Watch:
    """Where the point goes, in some of the episodes."""
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
    """Returns and training above, below them some methods' trajectories."""
    methods = dict.fromkeys(row["method"] for row in run["rows"])
    shown = [m for m in ("maml", "pretrained", "first_order") if m in methods]
    shown = shown[:2] or list(methods)[:1]
    goals = arrays["tasks"]
    with plt.rc_context(plotting.STYLE):
        figure = plt.figure(figsize=(11, 4.0 + 2.9 * len(shown)), layout="constrained")
        parts = figure.subfigures(2, 1, height_ratios=[4.0, 2.9 * len(shown)])
        left, right = parts[0].subplots(1, 2)
        draw_returns(left, run)
        draw_training(right, metrics)
        axes = parts[1].subplots(len(shown), len(goals), squeeze=False)
        for method, row in zip(shown, axes, strict=True):
            observations, alive = arrays[f"observations/{method}"], arrays[f"alive/{method}"]
            for i, ax in enumerate(row):
                _draw_plane(ax, observations[i], alive[i], goals[i])
            row[0].set_ylabel(METHOD_TITLES[method])
        handles, labels = axes[0][0].get_legend_handles_labels()
        parts[1].legend(handles, labels, loc="outside lower center", ncols=len(labels))
        plotting.save(figure, path)


def _draw_plane(ax: Axes, observations: np.ndarray, alive: np.ndarray, goal: np.ndarray) -> None:
    """Episodes of one task: observations [U + 1, H, E, O], the position first in each."""
    for update, color in UPDATES.items():
        if update >= len(observations):
            continue
        for episode in range(observations.shape[2]):
            taken = observations[update, alive[update, :, episode], episode]
            label = {0: "before", 1: "after 1 update"}.get(update, f"after {update} updates")
            ax.plot(
                taken[:, 0],
                taken[:, 1],
                color=color,
                lw=0.9,
                label=label if episode == 0 else None,
            )
    ax.plot(*goal, "*", color="#D55E00", ms=11, label="goal", zorder=5)
    ax.plot(0, 0, "o", color="black", ms=3, label="start", zorder=5)
    ax.set_xlim(-0.8, 0.8)
    ax.set_ylim(-0.8, 0.8)
    ax.set_aspect("equal")
