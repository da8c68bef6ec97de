"""What an environment is: two pure functions of one episode, and a distribution of tasks.

    state = reset(key, task)          # an episode of a task begins
    state = step(state, action)       # one time step

`vmap` over keys gives episodes, over tasks a meta-batch. Whatever differs between tasks travels in
the state; nothing is closed over. docs/reinforcement.md shows how to write one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from maml_jax.types import Array, PyTree


class State(NamedTuple):
    """An episode at one time step.

    Attributes:
        observation: what the policy sees, float [O].
        reward: of the step that led here, a float; 0 after a reset.
        done: whether the episode has ended by itself, a bool. A time limit is not an end of this
            kind: it belongs to the rollout.
        inner: whatever else the environment needs for its next step, the task included; any pytree.
    """

    observation: Array
    reward: Array
    done: Array
    inner: PyTree


class Environment(NamedTuple):
    """A family of tasks that share observations and actions.

    Attributes:
        sample_task: `sample_task(key) -> task`, any pytree of arrays.
        reset: `reset(key, task) -> State`.
        step: `step(state, action) -> State`, of the same structure, shapes and dtypes.
        num_observations: O.
        num_actions: A: size of a continuous action, or number of discrete ones.
        horizon: H, time steps of an episode at most.
        task_features: `task_features(task) -> [F]`: what an oracle sees of the task.
    """

    sample_task: Callable[[Array], PyTree]
    reset: Callable[[Array, PyTree], State]
    step: Callable[[State, Array], State]
    num_observations: int
    num_actions: int
    horizon: int
    task_features: Callable[[PyTree], Array]


def informed(env: Environment) -> Environment:
    """The environment with the task's features appended to every observation, for an oracle.

    Raises:
        ValueError: `task_features` does not give a vector.
    """
    features = jax.eval_shape(lambda k: env.task_features(env.sample_task(k)), jax.random.key(0))
    if getattr(features, "ndim", None) != 1:
        raise ValueError(
            "task_features must give one vector of shape (F,); received "
            f"{jax.tree.map(lambda x: x.shape, features)}. Join parts by jnp.concatenate."
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
    """For the `step` of an environment with continuous actions.

    A discrete action would broadcast against its state without an error.

    Raises:
        ValueError: the action is not of shape [A], A the size.
    """
    if jnp.shape(action) != (size,):
        raise ValueError(
            f"this environment takes continuous actions of shape {(size,)}; received "
            f"{jnp.result_type(action)} of shape {jnp.shape(action)}."
        )


def with_feedback(env: Environment) -> Environment:
    """The environment with its last action (one-hot, if discrete) and reward in its observations.

    For policies with memory, which can then find out within an episode what the task is.
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
