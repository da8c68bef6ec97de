"""Discounted returns, the linear feature baseline, and advantages.

Each function takes the episodes of one task, time axis first. `alive` masks the steps that an
episode took; steps after its end count nowhere.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from maml_jax.kernels.factorizations import factorized_at_once, in_pieces
from maml_jax.types import Array

OBSERVATION_BOUND = 10.0  # clips observations before they become features
ROUNDINGS = 8.0  # least difference of returns, in standard deviations of their rounding error
RIDGE = 1e-5  # smallest ridge
RIDGE_TRIES = 5  # ridges, each ten times the one before


def masked_mean(values: Array, alive: Array) -> Array:
    """Averages values [H, E] over the steps taken, a scalar; 0 without any step."""
    total = jnp.sum(jnp.where(alive, values, 0.0))
    return total / jnp.maximum(jnp.sum(alive), 1)


def discounted_returns(rewards: Array, discount: float) -> Array:
    """Sums the discounted rewards from each step to the episode's end.

    Args:
        rewards: [H, E], 0 after an episode's end.
        discount: gamma, from 0 to 1.

    Returns:
        Returns [H, E]. Rewards beyond step H count as 0, as in the original code.
    """

    def body(next_return, reward):
        total = reward + discount * next_return
        return total, total

    start = jnp.zeros(rewards.shape[1:], rewards.dtype)
    return jax.lax.scan(body, start, rewards, reverse=True)[1]


def generalized_advantages(
    rewards: Array, values: Array, alive: Array, discount: float, gae_lambda: float
) -> Array:
    """Estimates generalised advantages (Schulman et al. 2016, equation 16).

    Args:
        rewards: [H, E], 0 after an episode's end.
        values: value of the state before each step [H, E].
        alive: mask of the steps taken, bool [H, E].
        discount: gamma, from 0 to 1.
        gae_lambda: lambda, from 0 (temporal difference) to 1 (whole return).

    Returns:
        Advantages [H, E], 0 after an episode's end. The state after an episode's end, or after
        step H, has value 0.
    """
    values = jnp.where(alive, values, 0.0)
    next_values = jnp.concatenate([values[1:], jnp.zeros_like(values[:1])])
    errors = jnp.where(alive, rewards + discount * next_values - values, 0.0)
    return discounted_returns(errors, discount * gae_lambda)


def normalized(advantages: Array, alive: Array) -> Array:
    """Scales advantages [H, E] to mean 0 and standard deviation 1 over the steps taken.

    Equal advantages become 0. `has_signal` decides whether a difference exceeds rounding errors.
    """
    mean = masked_mean(advantages, alive)
    deviation = jnp.sqrt(masked_mean((advantages - mean) ** 2, alive))
    scaled = (advantages - mean) / jnp.where(deviation > 0, deviation, 1.0)
    return jnp.where(alive & (deviation > 0), scaled, 0.0)


def has_signal(rewards: Array, alive: Array, discount: float) -> Array:
    """Tests whether the episodes of one task differ by more than rounding errors.

    Several episodes differ if at some step the returns of two do; a single episode, if two of its
    rewards do. Without a difference no action is better than another: advantages then hold only
    rounding errors and the misfit of the baseline (up to a few percent, because returns of a
    constant reward are not cubic in time).

    A return's rounding error combines those of its rewards and its partial sums: independent, each
    about half a unit in the last place. The threshold of `ROUNDINGS` standard deviations leaves
    room for rewards that are exact to a few units only, and for the range of many episodes.

    Args:
        rewards: [H, E], 0 after an episode's end.
        alive: mask of the steps taken, bool [H, E].
        discount: gamma, from 0 to 1.

    Returns:
        A bool scalar.
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
    """Returns the minimum of a task's rewards [H, E] and 0, the reward after an episode's end."""
    return jnp.minimum(jnp.min(rewards), 0.0)


def credited(rewards: Array, alive: Array, nonfinite: Array, discount: float) -> Array:
    """Replaces the rewards of an episode that blew up by H + 1 steps of the task's worst reward.

    Each of its steps gets the worst reward. The last of them also gets the discounted worst rewards
    of the rest of the horizon, and the worst reward once more.

    Blowing up therefore never pays, for costs and gains alike: a sound episode gets at least the
    worst reward in each step and 0 after its end, so its return is no lower at any step. It is
    higher at the step of the blow-up if any reward was negative.

    Args:
        rewards: [H, E], 0 after an episode's end and for the step that blew up.
        alive: mask of the steps taken, bool [H, E].
        nonfinite: whether the episode blew up, bool [E]; at its last step taken, or at step 0 if it
            took none.
        discount: gamma, from 0 to 1.

    Returns:
        Rewards [H, E]; those of sound episodes are unchanged.
    """
    horizon = rewards.shape[0]
    worst = worst_reward(rewards)
    steps = jnp.arange(horizon)[:, None]
    last = jnp.maximum(jnp.sum(alive, axis=0) - 1, 0)
    discounts = jnp.cumsum(discount ** jnp.arange(horizon, dtype=rewards.dtype))
    rest = worst * (1.0 + discounts[horizon - 1 - last])
    penalties = jnp.where(steps == last, rest, jnp.where(alive, worst, 0.0))
    return jnp.where(nonfinite, penalties, rewards)


class LinearBaseline(NamedTuple):
    """A value function linear in features of observation and time (Duan et al. 2016).

    Attributes:
        weights: weights of the features [2 O + 4].
        ridge: ridge of the fit.
        explained_variance: share of the returns' variance that the fit explains, at most 1.
    """

    weights: Array
    ridge: Array
    explained_variance: Array


def features(observations: Array) -> Array:
    """Computes the baseline's features [H, E, 2 O + 4] from observations [H, E, O].

    They are the clipped observations, their squares, t / 100, its square and cube, and 1.
    """
    clipped = jnp.clip(observations, -OBSERVATION_BOUND, OBSERVATION_BOUND)
    steps = jnp.arange(observations.shape[0], dtype=observations.dtype)
    time = jnp.broadcast_to(steps[:, None, None] / 100.0, (*observations.shape[:2], 1))
    return jnp.concatenate(
        [clipped, clipped**2, time, time**2, time**3, jnp.ones_like(time)], axis=-1
    )


def fit_baseline(observations: Array, returns: Array, alive: Array) -> LinearBaseline:
    """Fits the baseline to the returns of one task by ridge regression.

    Solves the normal equations by a Cholesky factorisation. Of `RIDGE_TRIES`
    ridges (`RIDGE`, 10 `RIDGE`, ...) the smallest with finite weights counts, as in the original
    code. Without any, the weights are 0.

    Args:
        observations: [H, E, O].
        returns: discounted returns [H, E].
        alive: mask of the steps taken, bool [H, E].
    """
    table = jnp.where(alive[..., None], features(observations), 0.0)
    rows = table.reshape(-1, table.shape[-1])
    targets = jnp.where(alive, returns, 0.0).reshape(-1)
    highest = jax.lax.Precision.HIGHEST  # accelerators use fewer bits by default
    gram = jnp.matmul(rows.T, rows, precision=highest)
    moments = jnp.matmul(rows.T, targets, precision=highest)
    weights, ridge = _solve(gram, moments)
    errors = returns - jnp.matmul(table, weights, precision=highest)
    mean = masked_mean(returns, alive)
    variance = masked_mean((returns - mean) ** 2, alive)
    unexplained = masked_mean((errors - masked_mean(errors, alive)) ** 2, alive)
    explained = 1.0 - unexplained / jnp.where(variance > 0, variance, 1.0)
    return LinearBaseline(weights, ridge, explained)


def predict(baseline: LinearBaseline, observations: Array) -> Array:
    """Predicts the values [H, E] of observations [H, E, O]."""
    return jnp.matmul(features(observations), baseline.weights, precision=jax.lax.Precision.HIGHEST)


def _solve(gram: Array, moments: Array) -> tuple[Array, Array]:
    """Returns the weights and the smallest ridge with finite weights.

    Has no reverse-mode derivative: see `in_pieces`.
    """
    identity = jnp.eye(gram.shape[0], dtype=gram.dtype)

    def solve(gram: Array, moments: Array) -> Array:
        return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(gram, lower=True), moments)

    solve = in_pieces(solve, factorized_at_once(gram.shape[0]))

    def attempt(ridge: Array) -> Array:
        return solve(gram + ridge * identity, moments)

    # All ridges at once: the systems are small, and a conditional under vmap runs all branches.
    ridges = RIDGE * 10.0 ** jnp.arange(RIDGE_TRIES, dtype=gram.dtype)
    solutions = jax.vmap(attempt)(ridges)
    sound = jnp.all(jnp.isfinite(solutions), axis=1)
    first = jnp.argmax(sound)
    weights = jnp.where(jnp.any(sound), solutions[first], jnp.zeros_like(moments))
    return weights, ridges[first]
