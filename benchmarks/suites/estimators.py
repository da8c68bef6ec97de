"""Compares the policy gradients' meta-gradients, estimated from episodes, with the exact ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from benchmarks.harness import Row
from maml_jax.networks import categorical_policy
from maml_jax.reinforcement import Estimation, reinforcement_problem
from maml_jax.reinforcement.objectives import INNER_OBJECTIVES
from maml_jax.reinforcement.tabular import Tables, expected_adapted_return, tabular
from maml_jax.types import Array


def estimators_suite(repeats: int = 2_000, episodes: int = 20) -> Iterator[Row]:
    """Measures bias and standard deviation of each inner objective's meta-gradient.

    The problems are random: a bandit of 3 actions, and a process of 3 states, 3 actions and 5
    steps. Each estimate uses E episodes before and E after one inner step, no baseline, and
    advantages that are not normalised. Errors are relative to the norm of the exact meta-gradient.
    "bias" is the error of the mean over all repeats; its standard error is "deviation" divided by
    the square root of their number. The noise of the inner step biases all estimators; this bias
    falls as 1/E.

    Args:
        repeats: number of estimates.
        episodes: E.
    """
    worlds = [
        World("bandit", _random_tables(jax.random.key(3), 1, 3), 1, 1.0),
        World("5 steps", _random_tables(jax.random.key(3), 3, 3), 5, 1.0),
    ]
    for world in worlds:
        for form in INNER_OBJECTIVES:
            yield _estimator_row(world, form, repeats, episodes)


class World(NamedTuple):
    """A decision process with a known meta-gradient.

    Attributes:
        name: of the process.
        tables: rewards and transitions.
        horizon: H.
        inner_lr: alpha, for the mean over time steps.
    """

    name: str
    tables: Tables
    horizon: int
    inner_lr: float


def _estimator_row(world: World, form: str, repeats: int, episodes: int) -> Row:
    states, actions = world.tables.rewards.shape
    policy = categorical_policy(states, actions, ())
    params = policy.init(jax.random.key(0))

    def exact_loss(p: Any) -> Array:
        value = expected_adapted_return(policy, p, world.tables, world.horizon, world.inner_lr)
        return -value / world.horizon

    target = ravel_pytree(jax.jit(jax.grad(exact_loss))(params))[0]
    problem = reinforcement_problem(
        tabular(lambda key: world.tables, states, actions, world.horizon),
        policy,
        num_episodes=episodes,
        inner_lr=world.inner_lr,
        objective=form,
        estimation=Estimation(1.0, 1.0, use_baseline=False, normalize=False),
    )

    def estimate(key: Array) -> Array:
        gradient = jax.grad(problem.learner.loss, has_aux=True)
        return ravel_pytree(gradient(params, problem.sample(params, key))[0])[0]

    keys = jax.random.split(jax.random.key(7), repeats)
    estimates = np.asarray(jax.jit(jax.vmap(estimate))(keys), np.float64)
    scale = np.linalg.norm(target)
    return {
        "name": f"{world.name}: {form}",
        "bias": float(np.linalg.norm(estimates.mean(0) - target) / scale),
        "deviation": float(np.sqrt(estimates.var(0).sum()) / scale),
        "episodes": episodes,
        "repeats": repeats,
    }


def _random_tables(key: Array, states: int, actions: int) -> Tables:
    a, b, c = jax.random.split(key, 3)
    return Tables(
        jax.random.normal(a, (states, actions)),
        jax.nn.softmax(jax.random.normal(b, (states, actions, states))),
        jax.nn.softmax(jax.random.normal(c, (states,))),
    )
