"""Films of a locomotion run: the robot before and after updates, side by side.

`--mode=render` writes a page that works offline and can be turned with the mouse, and a GIF.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import animation
from matplotlib.collections import LineCollection

from experiments.core import plotting
from experiments.core.config import ConfigError
from experiments.core.plotting import plt
from experiments.meta_rl.config import ADAPTED
from experiments.meta_rl.evaluation import TEST_SEED, update_rates
from experiments.meta_rl.stages import unstack
from maml_jax import inner_update
from maml_jax.networks import Policy
from maml_jax.reinforcement import Environment, State, inner_objective, rollout, to_samples
from maml_jax.types import Array, Params

FLAGS = (
    ("film_goal", "", "With --mode=render: metres a second, or -1 and 1; default a middling one."),
    ("film_updates", "0,1,3", "With --mode=render: numbers of updates, side by side."),
)
TEMPLATE = Path(__file__).with_name("film.html")
COLORS = ("#999999", "#56B4E9", "#0072B2", "#D55E00")
FRAMES_A_SECOND = 25
WIDTH = {"half_cheetah": 2.6, "ant": 3.2}  # metres that a picture shows
ANGLES = {"half_cheetah": (0.0, 0.0), "ant": (-0.5, 0.45)}  # azimuth, elevation, radians


class Film(NamedTuple):
    """One policy's episode.

    Attributes:
        title: what is seen.
        poses: generalised coordinates [H + 1, nq].
        speed: mean forward speed, metres a second.
    """

    title: str
    poses: np.ndarray
    speed: float


def render(run: Any, film_goal: str, film_updates: str) -> None:
    """Adapts the run's first trained policy to a goal and films it, into the run's directory.

    Raises:
        ConfigError: a goal or a number of updates that is none, or a run without an adapted policy.
    """
    from experiments.locomotion import make_environment, make_physics

    config = run.settings
    updates = _numbers(film_updates)
    method = next((name for name in ADAPTED if name in run.states), None)
    if method is None:
        raise ConfigError("the run trained no policy that adapts (--methods=maml) to film.")
    goal = _goal(film_goal, config.task)
    physics, env = make_physics(config), config.seen_by_policy(make_environment(config))
    policy = config.make_policy(env)
    params = unstack(run.states[method].best_params, config.num_seeds)[0]
    policies = _adapted(config, env, policy, params, goal, max(updates))
    play = _player(env, policy, goal, physics.pose)
    films = []
    for count in updates:
        poses, taken = (np.asarray(x) for x in play(policies[count]))
        speed = (poses[-1, 0] - poses[0, 0]) / (physics.timestep * max(1, taken))
        when = "before adaptation" if count == 0 else f"after {count} update" + "s" * (count > 1)
        ended = "" if taken == env.horizon else f", ended at {taken * physics.timestep:.1f} s"
        films.append(Film(f"{when}: {speed:+.2f} m/s on average{ended}", poses, float(speed)))
    robot = "ant" if config.task.startswith("ant") else "half_cheetah"
    wanted = (
        f"{float(goal):+.0f}" if config.task.endswith("direction") else f"{float(goal):.2f} m/s"
    )
    title = f"{config.task.replace('_', ' ')}, goal {wanted}"
    page, picture = run.workdir / "film.html", run.workdir / "film.gif"
    write_page(page, title, robot, physics, films)
    write_gif(picture, title, robot, physics, films)
    print("\n".join(film.title for film in films) + f"\npage: {page}\nfilm: {picture}")


def _numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 0 or len(found) > len(COLORS) or len({*found}) < len(found):
        raise ConfigError(
            f"--film_updates must be 1 to {len(COLORS)} numbers of updates, 0 or more, separated "
            f"by commas, each once; received {text!r}."
        )
    return found


def _goal(text: str, task: str) -> Array:
    usual = {"ant_velocity": 1.5, "cheetah_velocity": 1.0}.get(task, -1.0)
    try:
        goal = float(text) if text else usual
    except ValueError:
        raise ConfigError(f"--film_goal must be a number; received {text!r}.") from None
    if not math.isfinite(goal):
        raise ConfigError(f"--film_goal must be a finite number; received {text!r}.")
    if task.endswith("direction") and goal not in (-1.0, 1.0):
        raise ConfigError(f"--film_goal must be -1 or 1 for {task}; received {goal:g}.")
    return jnp.asarray(goal, jnp.float32)


def _adapted(
    config: Any, env: Environment, policy: Policy, params: Params, goal: Array, count: int
) -> list[Params]:
    """The parameters after 0 to `count` updates, as the evaluation makes them."""
    loss = inner_objective(policy, config.inner_objective)

    @jax.jit
    def update(params: Params, key: Array, rate: Array) -> Params:
        episodes = rollout(env, policy, params, goal, key, config.eval_episodes)
        return inner_update(loss, params, to_samples(episodes, config.estimation), rate)[0]

    found = [params]
    for step, rate in enumerate(update_rates(config, config.inner_lr, count)):
        key = jax.random.fold_in(jax.random.key(TEST_SEED + 2), step)
        found.append(update(found[-1], key, rate))
    return found


def _player(
    env: Environment, policy: Policy, goal: Array, pose: Callable[[Any], Array]
) -> Callable[[Params], tuple[Array, Array]]:
    """`play(params) -> (poses [H + 1, nq], steps taken)` of one episode.

    The same noise for every policy. A robot whose episode has ended lies still.
    """

    def shown(state: State) -> Array:
        while isinstance(state.inner, State):
            state = state.inner
        return pose(state.inner[0])

    def play(params: Params) -> tuple[Array, Array]:
        start_key, action_key = jax.random.split(jax.random.key(TEST_SEED + 3))
        state = env.reset(start_key, goal)

        def body(carry: Any, key: Array) -> tuple[Any, Any]:
            state, memory, ended = carry
            distribution, memory = policy.act(params, state.observation, memory)
            after = env.step(state, distribution.sample(key))
            finite = jnp.all(jnp.isfinite(after.observation)) & jnp.isfinite(after.reward)
            moves = ~ended & finite
            after = jax.tree.map(lambda new, old: jnp.where(moves, new, old), after, state)
            return (after, memory, ended | ~finite | after.done), (shown(after), moves)

        keys = jax.random.split(action_key, env.horizon)
        _, (poses, moved) = jax.lax.scan(body, (state, policy.start(), state.done), keys)
        return jnp.concatenate([shown(state)[None], poses]), jnp.sum(moved)

    return jax.jit(play)


def write_page(path: Path, title: str, robot: str, physics: Any, films: Sequence[Film]) -> None:
    """One HTML file with the poses and what draws them; loads nothing from elsewhere."""
    policies, radii = [], np.zeros(0)
    for film, color in zip(films, COLORS, strict=False):
        ends, radii = _shapes(physics, film)
        policies.append(
            {
                "title": film.title,
                "colour": color,
                "ends": np.round(ends.reshape(len(ends), -1, 6), 3).tolist(),
                "centre": np.round(ends.mean((1, 2)), 3).tolist(),
            }
        )
    azimuth, elevation = ANGLES[robot]
    data = {
        "policies": policies,
        "radii": radii.tolist(),
        "timestep": physics.timestep,
        "width": WIDTH[robot],
        "azimuth": azimuth,
        "elevation": elevation,
    }
    text = TEMPLATE.read_text(encoding="utf-8").replace("TITLE", html.escape(title))
    path.write_text(text.replace("DATA", json.dumps(data, separators=(",", ":"))), "utf-8")


def write_gif(path: Path, title: str, robot: str, physics: Any, films: Sequence[Film]) -> None:
    """The same as an animated picture, at half speed where a step is short."""
    stride = max(1, round(0.5 / FRAMES_A_SECOND / physics.timestep))
    width, (azimuth, elevation) = WIDTH[robot], ANGLES[robot]
    size = 3.2  # inches
    with plt.rc_context(plotting.STYLE):
        figure, axes = plt.subplots(
            1, len(films), figsize=(size * len(films), size + 0.3), squeeze=False,
            layout="constrained",
        )  # fmt: skip
        figure.suptitle(title, fontsize=10)
        drawn = []
        for ax, film, color in zip(axes[0], films, COLORS, strict=False):
            ends, radii = _shapes(physics, film)
            ax.set_title(film.title, fontsize=8)
            ax.set_xlim(-width / 2, width / 2)
            ax.set_ylim(-0.28 * width, 0.72 * width)
            ax.set_aspect("equal")
            ax.axis("off")
            points = 2 * radii / width * (size * 72 * 0.95)
            ground = LineCollection([], colors="#aaaaaa", linewidths=0.8, zorder=0)
            body = LineCollection(
                [], colors=color, linewidths=points, capstyle="round", joinstyle="round"
            )
            ax.add_collection(ground)
            ax.add_collection(body)
            drawn.append((ends, ground, body))

        def draw(frame: int) -> list[Any]:
            for ends, ground, body in drawn:
                at = min(frame * stride, len(ends) - 1)
                centre = ends[at].mean((0, 1))
                body.set_segments(list(_project(ends[at], centre, azimuth, elevation)))
                ground.set_segments(list(_project(_ground(centre), centre, azimuth, elevation)))
            return [part for _, *parts in drawn for part in parts]

        frames = (max(len(film.poses) for film in films) - 1) // stride + 1
        moving = animation.FuncAnimation(figure, draw, frames=frames)
        moving.save(path, writer=animation.PillowWriter(fps=FRAMES_A_SECOND), dpi=80)
        plt.close(figure)


def _shapes(physics: Any, film: Film) -> tuple[np.ndarray, np.ndarray]:
    from maml_jax.reinforcement.locomotion import capsules

    found = capsules(physics.model, film.poses)
    return found.ends, found.radii


def _ground(centre: np.ndarray) -> np.ndarray:
    """A line along the way and marks a metre apart [lines, 2, 3]."""
    first, y = np.floor(centre[0]) - 4, centre[1]
    marks = [[[x, y - 0.6, 0], [x, y + 0.6, 0]] for x in np.arange(first, first + 10)]
    posts = [[[x, y, 0], [x, y, -0.06]] for x in np.arange(first, first + 10)]
    return np.array([[[first, y, 0], [first + 9, y, 0]], *marks, *posts])


def _project(points: np.ndarray, centre: np.ndarray, azimuth: float, elevation: float) -> Any:
    """Points [..., 3] on the picture's plane [..., 2]."""
    x, y, z = np.moveaxis(points - [centre[0], centre[1], 0.0], -1, 0)
    right = np.cos(azimuth) * x + np.sin(azimuth) * y
    away = -np.sin(azimuth) * x + np.cos(azimuth) * y
    return np.stack([right, np.cos(elevation) * z + np.sin(elevation) * away], axis=-1)
