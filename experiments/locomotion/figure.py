"""The paper's Figure 5: returns against updates, training, and the robots' speeds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

from maml_jax.reinforcement import Trajectories
from maml_jax.reinforcement.robots import FAMILIES, ROBOTS
from maml_jax.types import Metrics

from ..core import plotting
from ..core.plotting import plt
from ..core.results import METHOD_TITLES
from ..meta_rl import Watch
from ..meta_rl.figure import draw_returns, draw_training
from .config import Config


def watch(config: Config) -> Watch:
    """Mean forward speed of every test task's episodes, after each update."""
    robot = ROBOTS[config.family.robot]
    return Watch(config.eval_tasks, _mean_speed(robot.velocity_column[config.kind_of_physics]))


@functools.cache
def _mean_speed(column: int) -> Callable[[Trajectories], Metrics]:
    def speeds(t: Trajectories) -> Metrics:
        total = jnp.sum(jnp.where(t.alive, t.observations[..., column], 0.0))
        return {"speeds": total / jnp.maximum(jnp.sum(t.alive), 1)}

    return speeds


def locomotion_sheet(
    path: Path,
    run: dict[str, Any],
    arrays: Mapping[str, np.ndarray],
    metrics: list[dict[str, Any]],
) -> None:
    """Returns, training, and what the robot does before and after one update."""
    with plt.rc_context(plotting.STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
        draw_returns(axes[0], run)
        draw_training(axes[1], metrics)
        _draw_speeds(axes[2], run, arrays)
        plotting.save(figure, path)


def _draw_speeds(ax: Axes, run: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Mean forward speed of each test task against its goal, before and after one update."""
    goals = arrays["tasks"][:, 0]
    methods = dict.fromkeys(row["method"] for row in run["rows"])
    method = next(m for m in ("maml", "first_order", *methods) if m in methods)
    speeds = arrays[f"speeds/{method}"]  # [T, U + 1]
    by_speed = FAMILIES[run["config"]["task"]].goal == "velocity"
    for update, color in ((0, "#999999"), (1, "#0072B2")):
        if update < speeds.shape[1]:
            label = "before" if update == 0 else "after 1 update"
            spread = 0 if by_speed else 0.08 * (update - 0.5)
            ax.plot(goals + spread, speeds[:, update], "o", ms=4, color=color, label=label)
    if by_speed:
        ends = [goals.min(), goals.max()]
        ax.plot(ends, ends, "--", color="black", lw=0.8, label="as desired")
        ax.set_xlabel("desired speed (m/s)")
    else:
        ax.axhline(0.0, color="black", lw=0.8)
        ax.set_xticks([-1, 1], ["backward", "forward"])
        ax.set_xlabel("desired direction")
    ax.set_ylabel("forward speed (m/s)")
    ax.set_title(f"{METHOD_TITLES.get(method, method)}: speeds of the test tasks")
    ax.grid(axis="y", color="#dddddd", lw=0.6)
    ax.legend()
