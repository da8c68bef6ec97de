"""Checks on numbers, environments and policies.

Shapes and dtypes are known while JAX traces: the checks cost nothing in a compiled program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from maml_jax import checks
from maml_jax.networks import Categorical, Policy
from maml_jax.reinforcement.environment import Environment, State
from maml_jax.types import Array, PyTree


def check_number(name: str, value: Any, expected: str, fits: Callable[[float], bool]) -> None:
    """Raises a ValueError unless `value` is a number in range; traced values pass.

    Args:
        name: name of the argument.
        value: the received value.
        expected: the range in words, for example "from 0 to 1".
        fits: whether a float is in range; False for NaN.
    """
    if isinstance(value, Tracer):
        return
    kinds = (int, float, np.number, np.ndarray, jax.Array)
    is_number = isinstance(value, kinds) and not isinstance(value, bool) and np.ndim(value) == 0
    if not (is_number and fits(float(value))):
        raise ValueError(f"{name} must be a number {expected}; received {value!r}.")


def checked(env: Environment) -> Environment:
    """Adds checks of actions and states to an environment's `reset` and `step`.

    Raises:
        ValueError: a size of the environment is below 1. When `reset` or `step` is traced: the
            errors of `check_environment`.
        TypeError: a size is not an int. When `reset` or `step` is traced: it does not return a
            `State`.
    """
    checks.check_counts(
        num_observations=env.num_observations, num_actions=env.num_actions, horizon=env.horizon
    )

    def reset(key: Array, task: PyTree) -> State:
        state = env.reset(key, task)
        _check_state(env, state, "reset")
        return state

    def step(state: State, action: Array) -> State:
        _check_action(env, action)
        try:
            after = env.step(state, action)
        except (TypeError, ValueError, IndexError) as error:
            raise ValueError(
                f"step failed on an action of type {jnp.result_type(action)} and shape "
                f"{jnp.shape(action)}: {type(error).__name__}: {error}"
            ) from error
        _check_state(env, after, "step")
        _check_same(state, after)
        return after

    return env._replace(reset=reset, step=step)


def check_environment(env: Environment, policy: Policy | None = None) -> None:
    """Checks the shapes and dtypes of an environment and its policy, without running them.

    Without a policy, `step` has to accept either a continuous or a discrete action.

    Args:
        env: the environment.
        policy: a policy for it; optional.

    Raises:
        ValueError: a shape or dtype differs from those of `Environment`, `step` changes the
            structure, a shape or a dtype of the state, or the policy does not fit. The message
            names the field, the expected and the received.
        TypeError: `reset` or `step` does not return a `State`, or `policy` is not a `Policy`.

    Example:
        >>> from maml_jax.networks import gaussian_policy
        >>> from maml_jax.reinforcement import check_environment, navigation
        >>> check_environment(navigation(), gaussian_policy(2, 2, hidden_sizes=(4,)))
        >>> check_environment(navigation()._replace(num_observations=3))
        Traceback (most recent call last):
        ValueError: reset: observation must have shape (3,); received (2,)...
    """
    env = checked(env)
    key = jax.random.key(0)
    begun = jax.eval_shape(env.reset, key, jax.eval_shape(env.sample_task, key))
    if policy is not None:
        jax.eval_shape(env.step, begun, _check_policy(env, policy, begun.observation))
        return
    continuous = jax.ShapeDtypeStruct((env.num_actions,), jnp.result_type(float))
    discrete = jax.ShapeDtypeStruct((), jnp.int32)
    try:
        jax.eval_shape(env.step, begun, continuous)
    except (TypeError, ValueError) as error:
        try:
            jax.eval_shape(env.step, begun, discrete)
        except (TypeError, ValueError) as other:
            if str(error) == str(other):
                raise
            raise ValueError(
                f"step takes neither continuous actions ({error}) nor discrete ones ({other})"
            ) from other


def _check_state(env: Environment, state: Any, source: str) -> None:
    if not isinstance(state, State):
        raise TypeError(f"{source} must return a State; received {type(state).__name__}.")
    expected = {"observation": (env.num_observations,), "reward": (), "done": ()}
    for name, shape in expected.items():
        received = jnp.shape(getattr(state, name))
        if received != shape:
            hint = (
                " Observations are vectors: flatten images with jnp.ravel, and restore their "
                "shape in the policy."
                if len(received) > 1
                else ""
            )
            raise ValueError(
                f"{source}: {name} must have shape {shape}; received {received}.{hint}"
            )
    for name in ("observation", "reward"):
        dtype = jnp.result_type(getattr(state, name))
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"{source}: {name} must be floating point; received {dtype}.")
    if jnp.result_type(state.done) != jnp.bool_:
        raise ValueError(f"{source}: done must be bool; received {jnp.result_type(state.done)}.")


def _check_action(env: Environment, action: Any) -> None:
    shape, dtype = jnp.shape(action), jnp.result_type(action)
    discrete = jnp.issubdtype(dtype, jnp.integer)
    if not discrete and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"actions must be floats, or integers if discrete; received {dtype}.")
    if discrete and shape != ():
        raise ValueError(
            "the policy must return discrete actions one at a time, integers of shape (); received "
            f"shape {shape}. For several choices at once, number their combinations from 0 on, and "
            "decode the number in step with jnp.unravel_index."
        )
    if not discrete and shape != (env.num_actions,):
        raise ValueError(
            f"the policy must return actions of shape {(env.num_actions,)} for this environment; "
            f"received {shape}."
        )


def _check_policy(env: Environment, policy: Policy, observation: Any) -> Any:
    """Checks that a policy fits an environment; returns its action's shape and dtype."""
    if not isinstance(policy, Policy):
        raise TypeError(
            "policy must be a Policy (maml_jax.networks: gaussian_policy, memoryless_policy, ...); "
            f"received {type(policy).__name__}."
        )
    lead = 3, 2  # steps, episodes

    def act(key: Array, observation: Array) -> tuple[Any, ...]:
        params = policy.init(key)
        memory = policy.start()
        distribution, after = policy.act(params, observation, memory)
        action = distribution.sample(key)
        whole = policy.unroll(params, jnp.zeros((*lead, env.num_observations), observation.dtype))
        several = whole.log_prob(whole.sample(key)), whole.kl(whole)
        return action, distribution.log_prob(action), several, (memory, after), distribution

    try:
        action, one, several, memories, distribution = jax.eval_shape(
            act, jax.random.key(0), observation
        )
    except Exception as error:  # a user's function or the network library may raise any
        raise ValueError(
            f"the policy does not take the environment's observations of "
            f"{env.num_observations} numbers: {type(error).__name__}: {error}"
        ) from error
    _check_action(env, action)
    if isinstance(distribution, Categorical) and distribution.logits.shape != (env.num_actions,):
        raise ValueError(
            f"the policy must choose between the environment's {env.num_actions} actions; received "
            f"logits of shape {distribution.logits.shape}."
        )
    for name, part in zip(("log-probabilities", "divergences"), several, strict=True):
        if one.shape != () or part.shape != lead:
            raise ValueError(
                f"a policy's {name} must be one number per action: expected shape () from act, and "
                f"{lead} from unroll for 3 steps of 2 episodes; received {one.shape} and "
                f"{part.shape}."
            )
    start, after = memories
    checks.check_fits(
        "the memory that act returns", start, after, "It must match the memory of start()."
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
        if (_dtype(old), jnp.shape(old)) != (_dtype(new), jnp.shape(new)):
            raise ValueError(
                f"step must keep shapes and dtypes: State{jax.tree_util.keystr(path)} is "
                f"{_dtype(old)}{list(jnp.shape(old))} after reset and "
                f"{_dtype(new)}{list(jnp.shape(new))} after step."
            )


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
