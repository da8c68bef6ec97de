"""`--mode=render`: films of a run's policy before and after gradient steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from maml_jax import inner_update
from maml_jax.networks import Policy
from maml_jax.reinforcement import (
    Environment,
    ReinforcementProblem,
    State,
    rollout,
    to_samples,
)
from maml_jax.reinforcement.robots import ROBOTS
from maml_jax.types import Array, Params

from ..core.config import ConfigError
from ..core.plotting import after_steps
from ..meta_rl.config import ADAPTED, make_problem
from ..meta_rl.evaluation import TEST_SEED, update_rates
from .config import Config, make_environment, make_physics
from .films import COLORS, Film, write_gif, write_page

FLAGS = (
    (
        "film_goal",
        "",
        "The goal, metres a second for a velocity, -1 or 1 for a direction. "
        "Default: an example of the task.",
    ),
    (
        "film_updates",
        "0,1,3",
        "Numbers of gradient steps to show side by side; 0 is before adaptation.",
    ),
)


def render(run: Any, film_goal: str, film_updates: str) -> None:
    """Adapts the run's trained policy to a goal and writes `film.html` and `film.gif`.

    Args:
        run: a finished run of one member; the files go into its directory.
        film_goal: metres a second, or -1 or 1; "" for the task's example.
        film_updates: numbers of gradient steps, separated by commas.

    Raises:
        ConfigError: an argument is not of this form, or the run trained no method that adapts.
    """
    config = run.settings
    updates = _parse_updates(film_updates)
    method = next((name for name in ADAPTED if name in run.params), None)
    if method is None:
        raise ConfigError("the run trained no policy that adapts: it needs --methods=maml.")
    goal = _parse_goal(film_goal, config)
    physics = make_physics(config)
    problem = make_problem(config, make_environment(config), method)
    policies = _adapted(config, problem, run.params[method], goal, max(updates))
    play = make_player(problem.env, problem.policy, goal, physics.pose)
    films = []
    for count in updates:
        poses, taken = jax.device_get(play(policies[count]))
        speed = (poses[-1, 0] - poses[0, 0]) / (physics.timestep * max(1, taken))
        whole = taken == problem.env.horizon
        ended = "" if whole else f", ended at {taken * physics.timestep:.1f} s"
        films.append(Film(f"{after_steps(count)}: {speed:+.2f} m/s on average{ended}", poses))
    wanted = f"{goal:+.0f}" if config.family.goal == "direction" else f"{goal:.2f} m/s"
    title = f"{config.task.replace('_', ' ')}, goal {wanted}"
    robot = ROBOTS[config.family.robot]
    page, picture = run.workdir / "film.html", run.workdir / "film.gif"
    write_page(page, title, robot, physics, films)
    write_gif(picture, title, robot, physics, films)
    print("\n".join(film.title for film in films) + f"\npage: {page}\nanimation: {picture}")


def _parse_updates(text: str) -> list[int]:
    try:
        updates = [int(part) for part in text.split(",")]
    except ValueError:
        updates = []
    once = len({*updates}) == len(updates)
    if not updates or min(updates) < 0 or len(updates) > len(COLORS) or not once:
        raise ConfigError(
            f"--film_updates must be 1 to {len(COLORS)} different numbers of gradient steps, 0 or "
            f"more, separated by commas; received {text!r}."
        )
    return updates


def _parse_goal(text: str, config: Config) -> float:
    try:
        goal = float(text) if text else config.family.example_goal
    except ValueError:
        raise ConfigError(f"--film_goal must be a number; received {text!r}.") from None
    if not math.isfinite(goal):
        raise ConfigError(f"--film_goal must be a finite number; received {text!r}.")
    if config.family.goal == "direction" and goal not in (-1.0, 1.0):
        raise ConfigError(f"--film_goal must be -1 or 1 for {config.task}; received {goal:g}.")
    return goal


def _adapted(
    config: Config, problem: ReinforcementProblem, params: Params, goal: float, count: int
) -> list[Params]:
    """The parameters after 0 to `count` gradient steps, taken as in the evaluation."""
    task = jnp.asarray(goal, jnp.float32)

    @jax.jit
    def update(params: Params, key: Array, rate: Array) -> Params:
        episodes = rollout(problem.env, problem.policy, params, task, key, config.eval_episodes)
        samples = to_samples(episodes, problem.estimation)
        return inner_update(problem.inner_loss, params, samples, rate)[0]

    policies = [params]
    for step, rate in enumerate(update_rates(config, config.inner_lr, count)):
        key = jax.random.fold_in(jax.random.key(TEST_SEED + 2), step)
        policies.append(update(policies[-1], key, rate))
    return policies


def make_player(
    env: Environment, policy: Policy, goal: float, pose: Callable[[Any], Array]
) -> Callable[[Params], tuple[Array, Array]]:
    """Compiles one episode, with the same noise for every policy.

    Args:
        env: locomotion; the first part of its inner state is the state of the physics.
        policy: maps observations to actions.
        goal: the task, metres a second, or -1 or 1.
        pose: `pose(state of the physics) -> [nq]`.

    Returns:
        `play(params) -> (poses [H + 1, nq], steps taken)`. After the end of the episode the pose
        stays the same.
    """

    def shown(state: State) -> Array:
        while isinstance(state.inner, State):
            state = state.inner
        return pose(state.inner[0])

    def play(params: Params) -> tuple[Array, Array]:
        start_key, action_key = jax.random.split(jax.random.key(TEST_SEED + 3))
        state = env.reset(start_key, jnp.asarray(goal, jnp.float32))

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
