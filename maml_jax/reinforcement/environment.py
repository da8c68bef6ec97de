"""What an environment is: two pure functions of one episode, and a distribution of tasks.

    state = reset(key, task)          # an episode of a task begins
    state = step(state, action)       # one time step

`vmap` over keys gives episodes, over tasks a meta-batch. Whatever differs between tasks travels in
the state; nothing is closed over. docs/reinforcement.md shows how to write one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from maml_jax.networks import Policy
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
        task_features: `task_features(task) -> [F]`: what an oracle is told about the task.
    """

    sample_task: Callable[[Array], PyTree]
    reset: Callable[[Array, PyTree], State]
    step: Callable[[State, Array], State]
    num_observations: int
    num_actions: int
    horizon: int
    task_features: Callable[[PyTree], Array]


def informed(env: Environment) -> Environment:
    """The environment with the task's features appended to every observation, for an oracle."""
    features = jax.eval_shape(lambda k: env.task_features(env.sample_task(k)), jax.random.key(0))

    def show(state: State, task: PyTree) -> State:
        seen = jnp.concatenate([state.observation, env.task_features(task)])
        return state._replace(observation=seen, inner=(state, task))

    def reset(key: Array, task: PyTree) -> State:
        return show(env.reset(key, task), task)

    def step(state: State, action: Array) -> State:
        inner, task = state.inner
        return show(env.step(inner, action), task)

    return env._replace(
        reset=reset, step=step, num_observations=env.num_observations + features.shape[0]
    )


def with_feedback(env: Environment) -> Environment:
    """The environment with its last action (one-hot, if discrete) and reward in its observations.

    For policies with memory, which can then find out within an episode what the task is.
    """

    def show(state: State, action: Array) -> State:
        if jnp.issubdtype(action.dtype, jnp.integer):
            action = jax.nn.one_hot(action, env.num_actions)
        seen = jnp.concatenate([state.observation, action, state.reward[None]])
        return state._replace(observation=seen, inner=state)

    def reset(key: Array, task: PyTree) -> State:
        return show(env.reset(key, task), jnp.zeros(env.num_actions))

    def step(state: State, action: Array) -> State:
        return show(env.step(state.inner, action), action)

    size = env.num_observations + env.num_actions + 1
    return env._replace(reset=reset, step=step, num_observations=size)


def check_environment(env: Environment, policy: Policy | None = None) -> None:
    """Checks shapes and dtypes of an environment, and that a policy fits it, without running it.

    Raises:
        ValueError: a shape or dtype is not what `Environment` promises, or what `step` takes is
            not what it returns, or the policy's distribution does not fit; names the field,
            what was expected and what was received.
        TypeError: `reset` or `step` does not return a `State`.
    """
    key = jax.random.key(0)
    task = jax.eval_shape(env.sample_task, key)
    begun = jax.eval_shape(env.reset, key, task)
    _check_state(env, begun, "reset")
    if policy is None:
        action: Any = jax.ShapeDtypeStruct((env.num_actions,), jnp.float32)
    else:
        action = _check_policy(env, policy, begun.observation)
    after = jax.eval_shape(env.step, begun, action)
    _check_state(env, after, "step")
    _check_same(begun, after)


def _check_state(env: Environment, state: Any, source: str) -> None:
    if not isinstance(state, State):
        raise TypeError(f"{source} must return a State; received {type(state).__name__}.")
    expected = {"observation": (env.num_observations,), "reward": (), "done": ()}
    for name, shape in expected.items():
        found = jnp.shape(getattr(state, name))
        if found != shape:
            raise ValueError(f"{source}: {name} must have shape {shape}; received {found}.")
    for name in ("observation", "reward"):
        dtype = jnp.result_type(getattr(state, name))
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"{source}: {name} must be floating point; received {dtype}.")
    if jnp.result_type(state.done) != jnp.bool_:
        raise ValueError(f"{source}: done must be bool; received {jnp.result_type(state.done)}.")


def _check_policy(env: Environment, policy: Policy, observation: Any) -> Any:
    def act(key: Array, seen: Array) -> tuple[Any, Array, Array]:
        params = policy.init(key)
        distribution, _ = policy.act(params, seen, policy.start())
        action = distribution.sample(key)
        whole = policy.unroll(params, jnp.zeros((3, 2, env.num_observations), seen.dtype))
        return action, distribution.log_prob(action), whole.log_prob(whole.sample(key))

    try:
        action, one, whole = jax.eval_shape(act, jax.random.key(0), observation)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the policy does not take the environment's observations of "
            f"{env.num_observations} numbers: {error}"
        ) from error
    continuous = jnp.issubdtype(action.dtype, jnp.floating)
    expected = (env.num_actions,) if continuous else ()
    if action.shape != expected:
        raise ValueError(
            f"the policy must give actions of shape {expected} for this environment; received "
            f"{action.shape}."
        )
    if one.shape != () or whole.shape != (3, 2):
        raise ValueError(
            "a policy's log-probabilities must be one number an action: expected shapes () from "
            f"act and (3, 2) from unroll of 3 steps of 2 episodes; received {one.shape} and "
            f"{whole.shape}."
        )
    return action


def _check_same(before: State, after: State) -> None:
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise ValueError(
            "step must return a State of the structure that reset returns; expected "
            f"{jax.tree.structure(before)}, received {jax.tree.structure(after)}."
        )
    pairs = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    for (path, old), new in pairs:
        if old.shape != new.shape or old.dtype != new.dtype:
            raise ValueError(
                f"step must return what it takes: State{jax.tree_util.keystr(path)} is "
                f"{old.dtype}{list(old.shape)} after reset and {new.dtype}{list(new.shape)} after "
                "step."
            )
