"""Bandits and small Markov decision processes, whose expected return can be computed exactly.

Their exact meta-gradient is what estimators are tested against; and they are the shortest example
of an environment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from maml_jax import checks
from maml_jax.networks import Categorical, Policy
from maml_jax.reinforcement.environment import Environment, State
from maml_jax.types import Array, Params


class Tables(NamedTuple):
    """A Markov decision process of n states and A actions; as a task, one of a family.

    Attributes:
        rewards: of an action in a state [n, A].
        transitions: probability of the next state [n, A, n]; each row sums to 1.
        start: probability of the first state [n]; sums to 1.
    """

    rewards: Array
    transitions: Array
    start: Array


class _Inner(NamedTuple):
    index: Array
    key: Array
    tables: Tables


def tabular(
    sample_task: Callable[[Array], Tables], num_states: int, num_actions: int, horizon: int
) -> Environment:
    """An environment of `Tables`; the observation is the state as a one-hot vector [n].

    Args:
        sample_task: `sample_task(key) -> Tables`.
        num_states: n.
        num_actions: A; actions are whole numbers below it.
        horizon: H, time steps; 1 for a bandit.

    Raises:
        ValueError: a size below 1, or tables of another shape.
    """
    checks.check_counts(num_states=num_states, num_actions=num_actions, horizon=horizon)
    n, A = num_states, num_actions
    expected = Tables(jnp.zeros((n, A)), jnp.zeros((n, A, n)), jnp.zeros((n,)))
    sampled = jax.eval_shape(sample_task, jax.random.key(0))
    checks.check_fits(
        "what sample_task returns: Tables", expected, sampled, "See num_states, num_actions."
    )

    def state(index: Array, reward: Array, key: Array, tables: Tables) -> State:
        observation = jax.nn.one_hot(index, num_states)
        return State(observation, reward, jnp.zeros((), bool), _Inner(index, key, tables))

    def reset(key: Array, task: Tables) -> State:
        key, first = jax.random.split(key)
        index = jax.random.choice(first, num_states, p=task.start)
        return state(index, jnp.zeros(()), key, task)

    def step(before: State, action: Array) -> State:
        index, key, tables = before.inner
        key, following = jax.random.split(key)
        gained = tables.rewards[index, action]
        next_index = jax.random.choice(following, num_states, p=tables.transitions[index, action])
        return state(next_index, gained, key, tables)

    return Environment(
        sample_task,
        reset,
        step,
        num_observations=num_states,
        num_actions=num_actions,
        horizon=horizon,
        task_features=lambda task: task.rewards.ravel(),
    )


def bandit(num_actions: int) -> Environment:
    """A bandit with rewards drawn from a standard normal distribution for each task."""

    def sample_task(key: Array) -> Tables:
        rewards = jax.random.normal(key, (1, num_actions))
        return Tables(rewards, jnp.ones((1, num_actions, 1)), jnp.ones(1))

    return tabular(sample_task, 1, num_actions, 1)


def expected_return(policy: Policy, params: Params, task: Tables, horizon: int) -> Array:
    """The exact undiscounted expected return, a scalar; differentiable in `params`.

    Args:
        policy: memoryless, with `Categorical` actions.
        params: of the policy.
        task: the process.
        horizon: H.

    Raises:
        ValueError: a horizon below 1.
        TypeError: actions that are not `Categorical`.
    """
    checks.check_counts(horizon=horizon)
    distribution = policy.unroll(params, jnp.eye(task.start.shape[0])[None])
    if not isinstance(distribution, Categorical):
        raise TypeError(
            f"the policy must give Categorical actions; received {type(distribution).__name__}."
        )
    chances = jax.nn.softmax(distribution.logits[0])

    def body(occupancy: Array, _: None) -> tuple[Array, Array]:
        joint = occupancy[:, None] * chances
        following = jnp.einsum("sa,san->n", joint, task.transitions)
        return following, jnp.sum(joint * task.rewards)

    return jnp.sum(jax.lax.scan(body, task.start, None, length=horizon)[1])


def expected_adapted_return(
    policy: Policy, params: Params, task: Tables, horizon: int, inner_lr: float
) -> Array:
    """The exact return after one exact inner step; its gradient is the exact meta-gradient.

    The inner step is on the mean over time steps, as `inner_objective` is: the gradient of the
    return divided by H.
    """
    slope = jax.grad(lambda p: expected_return(policy, p, task, horizon) / horizon)(params)
    adapted = jax.tree.map(lambda p, g: p + inner_lr * g, params, slope)
    return expected_return(policy, adapted, task, horizon)
