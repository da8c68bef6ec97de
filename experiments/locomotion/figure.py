"""The paper's Figure 5: returns against gradient steps, training, and the robots' speeds."""

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
    """Records the mean forward speed in every test task, metres a second, after each update."""
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
    """Draws returns, training, and the robot's speeds before and after one gradient step."""
    with plt.rc_context(plotting.STYLE):
        figure = plt.figure(figsize=(14, 4.4), layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=[2, 1])
        axes = left.subplots(1, 2)
        draw_returns(axes[0], run)
        draw_training(axes[1], metrics)
        plotting.legend_outside(left, axes)
        speeds = right.subplots()
        _draw_speeds(speeds, run, arrays)
        plotting.legend_outside(right, [speeds])
        plotting.save(figure, path)


def _draw_speeds(ax: Axes, run: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Draws the mean forward speed in each test task against its goal."""
    goals = arrays["tasks"][:, 0]
    methods = dict.fromkeys(row["method"] for row in run["rows"])
    method = next(m for m in ("maml", "first_order", *methods) if m in methods)
    speeds = arrays[f"speeds/{method}"]  # [T, U + 1]
    by_speed = FAMILIES[run["config"]["task"]].goal == "velocity"
    for step, color in ((0, "#999999"), (1, "#0072B2")):
        if step < speeds.shape[1]:
            spread = 0 if by_speed else 0.08 * (step - 0.5)
            at, label = goals + spread, plotting.after_steps(step)
            ax.plot(at, speeds[:, step], "o", ms=4, alpha=0.8, color=color, label=label)
    if by_speed:
        ends = [goals.min(), goals.max()]
        ax.plot(ends, ends, "--", color="black", lw=0.8, label="goal")
        ax.set_xlabel("goal: forward speed (m/s)")
    else:
        ax.axhline(0.0, color="black", lw=0.8)
        ax.set_xticks([-1, 1], ["backward", "forward"])
        ax.set_xlim(-1.6, 1.6)
        ax.set_xlabel("goal: direction")
    ax.set_ylabel("forward speed (m/s)")
    ax.set_title(f"{METHOD_TITLES.get(method, method)}: mean speed in each test task")
    plotting.grid(ax)
