"""Returns, the linear feature baseline, and advantages: from what was recorded to what is learned.

All functions are of the episodes of one task, time first, and count only steps that were taken.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from maml_jax.batching import factorized_at_once, in_pieces
from maml_jax.types import Array

OBSERVATION_BOUND = 10.0  # observations are clipped there before they become features
RIDGE = 1e-5
RIDGE_TRIES = 5


def masked_mean(values: Array, alive: Array) -> Array:
    """Mean of [H, E] over all steps that were taken; 0 if there is none."""
    total = jnp.sum(jnp.where(alive, values, 0.0))
    return total / jnp.maximum(jnp.sum(alive), 1)


def discounted_returns(rewards: Array, discount: float, last_values: Array | None = None) -> Array:
    """Discounted sum of the rewards from each step on.

    Args:
        rewards: [H, E], 0 after an episode's end.
        discount: gamma, from 0 to 1.
        last_values: value of what follows step H [E], for episodes that the time limit cut off;
            default 0, as in the original code.

    Returns:
        [H, E].
    """
    start = jnp.zeros(rewards.shape[1:], rewards.dtype) if last_values is None else last_values

    def body(following, reward):
        total = reward + discount * following
        return total, total

    return jax.lax.scan(body, start, rewards, reverse=True)[1]


def generalized_advantages(
    rewards: Array,
    values: Array,
    alive: Array,
    discount: float,
    gae_lambda: float,
    last_values: Array | None = None,
) -> Array:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16).

    Args:
        rewards: [H, E], 0 after an episode's end.
        values: of the state before each step [H, E].
        alive: steps that were taken, bool [H, E].
        discount: gamma, from 0 to 1.
        gae_lambda: from 0 (one step) to 1 (the whole return).
        last_values: value of the state after step H [E], for episodes that the time limit cut off;
            default 0. After an episode's own end the value is 0 in any case.

    Returns:
        [H, E], 0 for steps that were not taken.
    """
    values = jnp.where(alive, values, 0.0)
    last = jnp.zeros_like(values[0]) if last_values is None else last_values
    following = jnp.concatenate([values[1:], jnp.where(alive[-1], last, 0.0)[None]])
    errors = jnp.where(alive, rewards + discount * following - values, 0.0)
    return discounted_returns(errors, discount * gae_lambda)


def normalized(advantages: Array, alive: Array) -> Array:
    """Advantages of mean 0 and deviation 1 over the steps of one task that were taken, [H, E]."""
    mean = masked_mean(advantages, alive)
    variance = masked_mean((advantages - mean) ** 2, alive)
    return jnp.where(alive, (advantages - mean) / (jnp.sqrt(variance) + 1e-8), 0.0)


class LinearBaseline(NamedTuple):
    """A value function linear in simple features of observation and time (Duan et al. 2016).

    Attributes:
        weights: of the features [2 O + 4].
        ridge: that the fit needed.
        explained_variance: share of the returns' variance that the fit explains, at most 1.
    """

    weights: Array
    ridge: Array
    explained_variance: Array


def features(observations: Array, first_step: int = 0) -> Array:
    """Observations clipped, their squares, t/100, its square and cube, and 1.

    Args:
        observations: [H, E, O].
        first_step: t of the first of them.

    Returns:
        [H, E, 2 O + 4].
    """
    clipped = jnp.clip(observations, -OBSERVATION_BOUND, OBSERVATION_BOUND)
    steps = first_step + jnp.arange(observations.shape[0], dtype=observations.dtype)
    time = jnp.broadcast_to(steps[:, None, None] / 100.0, (*observations.shape[:2], 1))
    return jnp.concatenate(
        [clipped, clipped**2, time, time**2, time**3, jnp.ones_like(time)], axis=-1
    )


def fit_baseline(observations: Array, returns: Array, alive: Array) -> LinearBaseline:
    """Least squares on the returns of one task, by the normal equations.

    The ridge starts at `RIDGE` and grows tenfold, up to `RIDGE_TRIES` times in all, while the
    Cholesky factorisation fails (the original code does the same where its solver fails). If all
    fail the weights are 0.

    Args:
        observations: [H, E, O].
        returns: discounted, [H, E].
        alive: steps that were taken, bool [H, E].
    """
    table = jnp.where(alive[..., None], features(observations), 0.0)
    rows = table.reshape(-1, table.shape[-1])
    targets = jnp.where(alive, returns, 0.0).reshape(-1)
    highest = jax.lax.Precision.HIGHEST  # accelerators round products otherwise
    gram = jnp.matmul(rows.T, rows, precision=highest)
    moments = jnp.matmul(rows.T, targets, precision=highest)
    weights, ridge = _solve(gram, moments)
    errors = returns - jnp.matmul(table, weights, precision=highest)
    mean = masked_mean(returns, alive)
    variance = masked_mean((returns - mean) ** 2, alive)
    left = masked_mean((errors - masked_mean(errors, alive)) ** 2, alive)
    return LinearBaseline(weights, ridge, 1.0 - left / jnp.maximum(variance, 1e-8))


def predict(baseline: LinearBaseline, observations: Array, first_step: int = 0) -> Array:
    """Values [H, E] of observations [H, E, O], the first of them at time `first_step`."""
    table = features(observations, first_step)
    return jnp.matmul(table, baseline.weights, precision=jax.lax.Precision.HIGHEST)


def _solve(gram: Array, moments: Array) -> tuple[Array, Array]:
    """Weights, and the smallest ridge of those tried for which they are finite.

    Not to be differentiated in reverse mode: see `in_pieces`.
    """
    identity = jnp.eye(gram.shape[0], dtype=gram.dtype)

    def solve(gram: Array, moments: Array) -> Array:
        return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(gram, lower=True), moments)

    solve = in_pieces(solve, factorized_at_once(gram.shape[0]))

    def attempt(ridge: Array) -> Array:
        return solve(gram + ridge * identity, moments)

    # All of them, side by side: the systems are small, and vmap would run every one in any case.
    ridges = RIDGE * 10.0 ** jnp.arange(RIDGE_TRIES, dtype=gram.dtype)
    solutions = jax.vmap(attempt)(ridges)
    sound = jnp.all(jnp.isfinite(solutions), axis=1)
    first = jnp.argmax(sound)
    found = jnp.where(jnp.any(sound), solutions[first], jnp.zeros_like(moments))
    return found, ridges[first]
