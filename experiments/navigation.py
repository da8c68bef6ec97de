"""2D navigation: the paper's section 5.3 and its Figure 4.

    python -m experiments.navigation --workdir=DIR                       the paper's settings
    python -m experiments.navigation --workdir=DIR --num_seeds=5
    python -m experiments.navigation --workdir=DIR --preset=quick        minutes on a laptop
    python -m experiments.navigation --workdir=DIR --reward=squared_distance
    python -m experiments.navigation --workdir=DIR --policy=recurrent --feedback

A point on the plane is to go to a goal that it is not told; adaptation finds out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes

from experiments import meta_rl
from experiments.core import plotting
from experiments.core.command import main
from experiments.core.config import option
from experiments.core.plotting import plt
from experiments.core.results import METHOD_TITLES
from experiments.meta_rl.sheet import draw_returns, draw_training
from maml_jax.reinforcement import Environment, Trajectories, navigation
from maml_jax.reinforcement.navigation import REWARDS

SUMMARY = "2D navigation to unknown goals by policy gradients (MAML paper, section 5.3)"
UPDATES = (0, 1, 2)  # drawn in the figure
SHOWN = 5  # episodes of each
UPDATE_COLORS = ("#999999", "#56B4E9", "#0072B2")


@dataclasses.dataclass(frozen=True)
class Config(meta_rl.Config):
    """Settings of a run; defaults are the paper's, but for the number of meta-iterations."""

    reward: str = option(
        "distance",
        "Minus the distance to the goal, as the published returns; or minus its square, as the "
        "paper writes.",
        choices=REWARDS,
    )
    horizon: int = option(100, "Time steps of an episode.", minimum=1)


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "quick": {
        "methods": ("maml", "pretrained", "random", "oracle"),
        "meta_steps": 50,
        "product_episodes": 5,
    },
}


def make_environment(config: Config) -> Environment:
    """The environment of a configuration."""
    return navigation(config.reward, config.horizon)


def setting(config: Config) -> str:
    """As results name it: what the policy may use, and the reward's unit, are never mixed."""
    unit = "" if config.reward == "distance" else ", squared distance"
    return f"2D navigation{unit}{config.departures}"


def watch(config: Config) -> meta_rl.Watch:
    """Where the point went, on the tasks that the figure shows, in some of the episodes."""

    def paths(t: Trajectories) -> dict[str, jax.Array]:
        return {"observations": t.observations[..., :SHOWN, :], "alive": t.alive[..., :SHOWN]}

    return meta_rl.Watch(4, config.eval_episodes, paths)


def navigation_sheet(
    path: Path,
    run: dict[str, Any],
    arrays: Mapping[str, np.ndarray],
    metrics: list[dict[str, Any]],
) -> None:
    """The paper's Figure 4: returns against updates, and trajectories with their goals."""
    watched = [m for m in ("maml", "pretrained", "first_order") if m in run["config"]["methods"]]
    watched = watched[:2] or list(run["config"]["methods"])[:1]
    goals = arrays["tasks"]
    with plt.rc_context(plotting.STYLE):
        figure = plt.figure(figsize=(11, 4.0 + 2.9 * len(watched)), layout="constrained")
        parts = figure.subfigures(2, 1, height_ratios=[4.0, 2.9 * len(watched)])
        left, right = parts[0].subplots(1, 2)
        draw_returns(left, run)
        draw_training(right, metrics)
        axes = parts[1].subplots(len(watched), len(goals), squeeze=False)
        for method, row in zip(watched, axes, strict=True):
            seen, alive = arrays[f"observations/{method}"], arrays[f"alive/{method}"]
            for i, ax in enumerate(row):
                _draw_plane(ax, seen[i], alive[i], goals[i])
            row[0].set_ylabel(METHOD_TITLES[method])
        handles, labels = axes[0][0].get_legend_handles_labels()
        parts[1].legend(handles, labels, loc="outside lower center", ncols=len(labels))
        plotting.save(figure, path)


def _draw_plane(ax: Axes, seen: np.ndarray, alive: np.ndarray, goal: np.ndarray) -> None:
    """Episodes of one task: seen [U + 1, H, E, O], the position first in an observation."""
    for update, color in zip(UPDATES, UPDATE_COLORS, strict=True):
        if update >= len(seen):
            continue
        for episode in range(seen.shape[2]):
            taken = seen[update, alive[update, :, episode], episode]
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


EXPERIMENT = meta_rl.meta_rl_experiment(
    "navigation", SUMMARY, Config, PRESETS, make_environment, setting, watch, navigation_sheet
)

if __name__ == "__main__":
    main(EXPERIMENT)
