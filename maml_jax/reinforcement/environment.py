"""The interface of environments: two pure functions of one episode and a distribution of tasks.

    state = reset(key, task)          # begins an episode of a task
    state = step(state, action)       # advances it by one time step

`vmap` over keys gives episodes, `vmap` over tasks a meta-batch. The state carries the task.
docs/reinforcement.md shows how to write an environment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from maml_jax.types import Array, PyTree


class State(NamedTuple):
    """The state of one episode at one time step.

    Attributes:
        observation: input of the policy, float [O].
        reward: reward of the last step, a float scalar; 0 after a reset.
        done: whether the episode has terminated, a bool scalar. Leave it False at a time limit,
            which is `Environment.horizon`.
        inner: everything else that the next step needs, the task included; any pytree.

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.reinforcement import State
        >>> goal = jnp.array([0.3, 0.4])
        >>> state = State(jnp.zeros(2), reward=jnp.zeros(()), done=jnp.zeros((), bool), inner=goal)
        >>> state._replace(reward=-jnp.linalg.norm(goal)).reward.shape
        ()
    """

    observation: Array
    reward: Array
    done: Array
    inner: PyTree


class Environment(NamedTuple):
    """A family of tasks with common observations and actions.

    Attributes:
        sample_task: `sample_task(key) -> task`, any pytree of arrays.
        reset: `reset(key, task) -> State`, the first state of an episode.
        step: `step(state, action) -> State`, with the structure, shapes and dtypes of `state`.
        num_observations: O, size of an observation.
        num_actions: A, size of a continuous action or number of discrete actions.
        horizon: H, time limit of an episode in steps.
        task_features: `task_features(task) -> [F]`, the task as an oracle observes it.

    Example:
        A bandit with two arms, whose rewards [2] are the task:

        >>> import jax
        >>> import jax.numpy as jnp
        >>> from maml_jax.reinforcement import Environment, State, check_environment
        >>> bandit = Environment(
        ...     sample_task=lambda key: jax.random.normal(key, (2,)),
        ...     reset=lambda key, task: State(jnp.ones(1), jnp.zeros(()), jnp.array(False), task),
        ...     step=lambda state, action: state._replace(reward=state.inner[action]),
        ...     num_observations=1,
        ...     num_actions=2,
        ...     horizon=1,
        ...     task_features=lambda task: task,
        ... )
        >>> check_environment(bandit)
        >>> state = bandit.reset(jax.random.key(0), jnp.array([-1.0, 2.0]))
        >>> float(bandit.step(state, 1).reward)
        2.0
    """

    sample_task: Callable[[Array], PyTree]
    reset: Callable[[Array, PyTree], State]
    step: Callable[[State, Array], State]
    num_observations: int
    num_actions: int
    horizon: int
    task_features: Callable[[PyTree], Array]


def informed(env: Environment) -> Environment:
    """Appends the task's features to every observation, for an oracle policy.

    Args:
        env: an environment with O observations and F task features.

    Returns:
        The environment with O + F observations.

    Raises:
        ValueError: `task_features` does not return a vector.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from maml_jax.reinforcement import informed, navigation
        >>> env = informed(navigation())
        >>> env.num_observations
        4
        >>> goal = jnp.array([0.25, -0.5])
        >>> env.reset(jax.random.key(0), goal).observation.tolist()
        [0.0, 0.0, 0.25, -0.5]
    """
    features = jax.eval_shape(lambda k: env.task_features(env.sample_task(k)), jax.random.key(0))
    if getattr(features, "ndim", None) != 1:
        raise ValueError(
            "task_features must return one vector of shape (F,); received "
            f"{jax.tree.map(lambda x: x.shape, features)}. Join several with jnp.concatenate."
        )

    def show(state: State, task: PyTree) -> State:
        observation = jnp.concatenate([state.observation, env.task_features(task)])
        return state._replace(observation=observation, inner=(state, task))

    def reset(key: Array, task: PyTree) -> State:
        return show(env.reset(key, task), task)

    def step(state: State, action: Array) -> State:
        inner, task = state.inner
        return show(env.step(inner, action), task)

    return env._replace(
        reset=reset, step=step, num_observations=env.num_observations + features.shape[0]
    )


def check_continuous(action: Array, size: int) -> None:
    """Checks the action in the `step` of an environment with continuous actions.

    Without the check a discrete action would broadcast silently.

    Args:
        action: the action that `step` received.
        size: A.

    Raises:
        ValueError: the action does not have shape [A].
    """
    if jnp.shape(action) != (size,):
        raise ValueError(
            f"this environment takes continuous actions of shape {(size,)}; received "
            f"{jnp.result_type(action)} of shape {jnp.shape(action)}."
        )


def with_feedback(env: Environment) -> Environment:
    """Appends the last action (one-hot if discrete) and reward to every observation.

    A policy with memory can then identify the task within an episode.

    Args:
        env: an environment with O observations and A actions.

    Returns:
        The environment with O + A + 1 observations.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from maml_jax.reinforcement import navigation, with_feedback
        >>> env = with_feedback(navigation())
        >>> state = env.reset(jax.random.key(0), jnp.array([0.4, 0.0]))
        >>> state = env.step(state, jnp.array([1.0, 0.0]))
        >>> [round(x, 2) for x in state.observation.tolist()]
        [0.1, 0.0, 1.0, 0.0, -0.3]
    """

    def show(state: State, action: Array) -> State:
        if jnp.issubdtype(action.dtype, jnp.integer):
            action = jax.nn.one_hot(action, env.num_actions)
        observation = jnp.concatenate([state.observation, action, state.reward[None]])
        return state._replace(observation=observation, inner=state)

    def reset(key: Array, task: PyTree) -> State:
        return show(env.reset(key, task), jnp.zeros(env.num_actions))

    def step(state: State, action: Array) -> State:
        return show(env.step(state.inner, action), action)

    size = env.num_observations + env.num_actions + 1
    return env._replace(reset=reset, step=step, num_observations=size)
