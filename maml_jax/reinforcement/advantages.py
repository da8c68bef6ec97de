"""Returns, the linear feature baseline, and advantages: from what was recorded to what is learned.

All functions are of the episodes of one task, time first, and count only steps that were taken.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from maml_jax.kernels.factorizations import factorized_at_once, in_pieces
from maml_jax.types import Array

OBSERVATION_BOUND = 10.0  # observations are clipped there before they become features
ROUNDINGS = 8.0  # deviations of a return's rounding that returns differ by if they differ
RIDGE = 1e-5
RIDGE_TRIES = 5


def masked_mean(values: Array, alive: Array) -> Array:
    """Mean of [H, E] over all steps that were taken; 0 if there is none."""
    total = jnp.sum(jnp.where(alive, values, 0.0))
    return total / jnp.maximum(jnp.sum(alive), 1)


def discounted_returns(rewards: Array, discount: float) -> Array:
    """Discounted sum of the rewards from each step on.

    Args:
        rewards: [H, E], 0 after an episode's end.
        discount: gamma, from 0 to 1.

    Returns:
        [H, E]. What follows step H counts as 0, as in the original code.
    """

    def body(following, reward):
        total = reward + discount * following
        return total, total

    start = jnp.zeros(rewards.shape[1:], rewards.dtype)
    return jax.lax.scan(body, start, rewards, reverse=True)[1]


def generalized_advantages(
    rewards: Array, values: Array, alive: Array, discount: float, gae_lambda: float
) -> Array:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16).

    Args:
        rewards: [H, E], 0 after an episode's end.
        values: of the state before each step [H, E].
        alive: steps that were taken, bool [H, E].
        discount: gamma, from 0 to 1.
        gae_lambda: from 0 (one step) to 1 (the whole return).

    Returns:
        [H, E], 0 for steps that were not taken. The value of what follows an episode's end, or
        step H, is 0.
    """
    values = jnp.where(alive, values, 0.0)
    following = jnp.concatenate([values[1:], jnp.zeros_like(values[:1])])
    errors = jnp.where(alive, rewards + discount * following - values, 0.0)
    return discounted_returns(errors, discount * gae_lambda)


def normalized(advantages: Array, alive: Array) -> Array:
    """Advantages of mean 0 and deviation 1 over the steps of one task that were taken, [H, E].

    All 0 where they do not differ. Whether a difference is more than rounding is for `has_signal`.
    """
    mean = masked_mean(advantages, alive)
    deviation = jnp.sqrt(masked_mean((advantages - mean) ** 2, alive))
    scaled = (advantages - mean) / jnp.where(deviation > 0, deviation, 1.0)
    return jnp.where(alive & (deviation > 0), scaled, 0.0)


def has_signal(rewards: Array, alive: Array, discount: float) -> Array:
    """Whether the episodes of one task say anything about which actions are better, a bool.

    They do if at some step the returns of two episodes differ by more than their rounding.
    Otherwise advantages are what rounding and the baseline's misfit leave (returns of a constant
    reward are no cubic in time: up to a few percent), whatever the actions were. In a single
    episode rewards have to differ.

    The rounding of a return is that of the rewards in it and of the sums on its way: independent
    errors of about half a unit in the last place each. `ROUNDINGS` such deviations leave room for
    rewards that are exact to a few units only, and for the range of many episodes.

    Args:
        rewards: [H, E], 0 after an episode's end.
        alive: steps that were taken, bool [H, E].
        discount: gamma, from 0 to 1.
    """
    if rewards.shape[1] == 1:
        values, squares, axis = rewards, rewards**2, 0
    else:
        values, axis = discounted_returns(rewards, discount), 1
        squares = discounted_returns(rewards**2 + values**2, discount**2)
    rounding = jnp.finfo(rewards.dtype).eps * jnp.sqrt(
        jnp.max(squares, axis, where=alive, initial=0)
    )
    highest = jnp.max(values, axis, where=alive, initial=-jnp.inf)
    lowest = jnp.min(values, axis, where=alive, initial=jnp.inf)
    return jnp.any(highest - lowest > ROUNDINGS * rounding)


def worst_reward(rewards: Array) -> Array:
    """The lowest reward of a task's episodes [H, E], or 0 if that is less: of an episode's end."""
    return jnp.minimum(jnp.min(rewards), 0.0)


def credited(rewards: Array, alive: Array, nonfinite: Array, discount: float) -> Array:
    """Rewards in which an episode that blew up counts as H + 1 steps of the task's worst reward.

    Each step that such an episode took gets the worst reward; the step that blew up gets, besides,
    what the rest of the horizon is worth at that rate, and the worst reward once more. An episode
    that stayed sound got at least the worst reward in each step, or 0 after its end. So an episode
    that blew up has, at every step, at most the return of each sound one, and less at the step that
    blew up if any reward was negative. Blowing up never pays, whether rewards are costs or gains,
    and whatever came on the way there.

    Args:
        rewards: [H, E], 0 for steps that were not taken and for those that blew up.
        alive: steps that were taken, bool [H, E].
        nonfinite: whether the episode blew up, bool [E]; at its last step that was taken, or at
            step 0 if there is none.
        discount: gamma, from 0 to 1.

    Returns:
        [H, E]; rewards of episodes that did not blow up are as they were.
    """
    horizon = rewards.shape[0]
    worst = worst_reward(rewards)
    steps = jnp.arange(horizon)[:, None]
    last = jnp.maximum(jnp.sum(alive, axis=0) - 1, 0)
    following = jnp.cumsum(discount ** jnp.arange(horizon, dtype=rewards.dtype))
    rest = worst * (1.0 + following[horizon - 1 - last])
    blown = jnp.where(steps == last, rest, jnp.where(alive, worst, 0.0))
    return jnp.where(nonfinite, blown, rewards)


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


def features(observations: Array) -> Array:
    """Features [H, E, 2 O + 4] of observations [H, E, O].

    Observations clipped, their squares, t/100, its square and cube, and 1.
    """
    clipped = jnp.clip(observations, -OBSERVATION_BOUND, OBSERVATION_BOUND)
    steps = jnp.arange(observations.shape[0], dtype=observations.dtype)
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
    explained = 1.0 - left / jnp.where(variance > 0, variance, 1.0)
    return LinearBaseline(weights, ridge, explained)


def predict(baseline: LinearBaseline, observations: Array) -> Array:
    """Values [H, E] of observations [H, E, O]."""
    return jnp.matmul(features(observations), baseline.weights, precision=jax.lax.Precision.HIGHEST)


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
    weights = jnp.where(jnp.any(sound), solutions[first], jnp.zeros_like(moments))
    return weights, ridges[first]
