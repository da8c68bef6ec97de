"""Bandits and small Markov decision processes with an exact expected return.

Tests compare estimators with their exact meta-gradient.
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
    """A Markov decision process with n states and A actions: a task of `tabular`.

    Attributes:
        rewards: reward of an action in a state [n, A].
        transitions: probabilities of the next state [n, A, n]; the last axis sums to 1.
        start: probabilities of the first state [n]; they sum to 1.
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
    """Makes an environment from `Tables`; it observes the state as a one-hot vector [n].

    Args:
        sample_task: `sample_task(key) -> Tables`.
        num_states: n.
        num_actions: A; actions are integers from 0 to A - 1.
        horizon: H, time steps; 1 for a bandit.

    Raises:
        ValueError: a size below 1, or tables of other shapes.
        TypeError: a size is not an integer.
    """
    checks.check_counts(num_states=num_states, num_actions=num_actions, horizon=horizon)
    n, A = num_states, num_actions
    expected = Tables(jnp.zeros((n, A)), jnp.zeros((n, A, n)), jnp.zeros((n,)))
    sampled = jax.eval_shape(sample_task, jax.random.key(0))
    checks.check_fits(
        "sample_task: Tables", expected, sampled, "num_states and num_actions set the shapes."
    )

    def state(index: Array, reward: Array, key: Array, tables: Tables) -> State:
        observation = jax.nn.one_hot(index, num_states)
        return State(observation, reward, jnp.zeros((), bool), _Inner(index, key, tables))

    def reset(key: Array, task: Tables) -> State:
        key, first_key = jax.random.split(key)
        index = jax.random.choice(first_key, num_states, p=task.start)
        return state(index, jnp.zeros(()), key, task)

    def step(before: State, action: Array) -> State:
        index, key, tables = before.inner
        key, next_key = jax.random.split(key)
        reward = tables.rewards[index, action]
        next_index = jax.random.choice(next_key, num_states, p=tables.transitions[index, action])
        return state(next_index, reward, key, tables)

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
    """Makes a bandit of A arms; a task draws each arm's reward from a standard normal.

    Example:
        >>> import jax
        >>> from maml_jax.reinforcement.tabular import bandit
        >>> env = bandit(num_actions=3)
        >>> env.sample_task(jax.random.key(0)).rewards.shape
        (1, 3)
    """

    def sample_task(key: Array) -> Tables:
        rewards = jax.random.normal(key, (1, num_actions))
        return Tables(rewards, jnp.ones((1, num_actions, 1)), jnp.ones(1))

    return tabular(sample_task, 1, num_actions, 1)


def expected_return(policy: Policy, params: Params, task: Tables, horizon: int) -> Array:
    """Computes the exact undiscounted expected return, a scalar; differentiable in `params`.

    Args:
        policy: a memoryless policy with `Categorical` actions.
        params: parameters of the policy.
        task: the decision process.
        horizon: H, time steps.

    Raises:
        ValueError: a horizon below 1.
        TypeError: actions that are not `Categorical`.

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.networks import Categorical, memoryless_policy
        >>> from maml_jax.reinforcement.tabular import Tables, expected_return
        >>> policy = memoryless_policy(
        ...     lambda key: jnp.zeros(2),
        ...     lambda logits, x: Categorical(jnp.broadcast_to(logits, (*x.shape[:-1], 2))),
        ... )
        >>> task = Tables(jnp.array([[1.0, 3.0]]), jnp.ones((1, 2, 1)), jnp.ones(1))
        >>> float(expected_return(policy, jnp.zeros(2), task, horizon=2))
        4.0
    """
    checks.check_counts(horizon=horizon)
    distribution = policy.unroll(params, jnp.eye(task.start.shape[0])[None])
    if not isinstance(distribution, Categorical):
        raise TypeError(
            f"the policy must return Categorical actions; received {type(distribution).__name__}."
        )
    probabilities = jax.nn.softmax(distribution.logits[0])

    def body(occupancy: Array, _: None) -> tuple[Array, Array]:
        joint = occupancy[:, None] * probabilities
        next_occupancy = jnp.einsum("sa,san->n", joint, task.transitions)
        return next_occupancy, jnp.sum(joint * task.rewards)

    return jnp.sum(jax.lax.scan(body, task.start, None, length=horizon)[1])


def expected_adapted_return(
    policy: Policy, params: Params, task: Tables, horizon: int, inner_lr: float
) -> Array:
    """Computes the exact return after one exact inner step; its gradient is the meta-gradient.

    As in `inner_objective` the inner step is on the mean over time steps: the return divided by H.
    """
    gradient = jax.grad(lambda p: expected_return(policy, p, task, horizon) / horizon)(params)
    adapted = jax.tree.map(lambda p, g: p + inner_lr * g, params, gradient)
    return expected_return(policy, adapted, task, horizon)
