"""2D navigation: a point moves to an unknown goal on the plane (paper section 5.3)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from maml_jax import checks
from maml_jax.reinforcement.environment import Environment, State, check_continuous
from maml_jax.types import Array

REWARDS = ("distance", "squared_distance")
MAX_VELOCITY = 0.1  # units a step, per coordinate
GOAL_BOUND = 0.5  # goals are uniform on [-GOAL_BOUND, GOAL_BOUND]^2
ARRIVED = 0.01  # units from the goal, per coordinate, at which an episode ends


class _Inner(NamedTuple):
    position: Array
    goal: Array


def navigation(reward: str = "distance", horizon: int = 100) -> Environment:
    """Makes the point navigation environment; its task is the goal [2].

    An episode starts at the origin. The observation is the position [2]. The action is the
    velocity [2], clipped to [-1, 1] and scaled to +-`MAX_VELOCITY` units a step (as in the original
    code). The episode ends when the point is within `ARRIVED` of the goal in both coordinates.

    Args:
        reward: "distance" for minus the distance to the goal (the original code and the published
            returns), or "squared_distance" for minus its square (the paper's text).
        horizon: H, time steps.

    Raises:
        ValueError: an unknown reward, or a horizon below 1.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from maml_jax.reinforcement import navigation
        >>> env = navigation()
        >>> state = env.reset(jax.random.key(0), jnp.array([0.4, 0.4]))
        >>> state = env.step(state, jnp.array([1.0, 0.0]))
        >>> round(float(state.reward), 2), bool(state.done)
        (-0.5, False)
    """
    checks.check_choice(reward, REWARDS, "reward")
    checks.check_counts(horizon=horizon)

    def sample_task(key: Array) -> Array:
        return jax.random.uniform(key, (2,), minval=-GOAL_BOUND, maxval=GOAL_BOUND)

    def reset(key: Array, task: Array) -> State:
        del key
        position = jnp.zeros((2,))
        return State(position, jnp.zeros(()), jnp.zeros((), bool), _Inner(position, task))

    def step(state: State, action: Array) -> State:
        check_continuous(action, 2)
        goal = state.inner.goal
        velocity = jnp.clip(action, -1.0, 1.0) * MAX_VELOCITY
        position = state.inner.position + velocity
        offset = position - goal
        square = jnp.sum(offset**2)
        step_reward = -(jnp.sqrt(square) if reward == "distance" else square)
        arrived = jnp.all(jnp.abs(offset) < ARRIVED)
        return State(position, step_reward, arrived, _Inner(position, goal))

    return Environment(
        sample_task,
        reset,
        step,
        num_observations=2,
        num_actions=2,
        horizon=horizon,
        task_features=lambda task: task,
    )
