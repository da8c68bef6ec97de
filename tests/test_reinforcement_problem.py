"""Reinforcement learning as a problem of the core: sampling adapts as the replay does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from conftest import assert_trees_close
from test_reinforcement_errors import KEY, POLICY, PROBLEM, problem_of

from maml_jax import PerStep, make_evaluate_fn
from maml_jax.reinforcement import (
    adaptation_returns,
    surrogate,
)


def test_alpha_does_not_depend_on_the_number_of_tasks():
    params = POLICY.init(KEY)

    @functools.partial(jax.jit, static_argnums=1)
    def adapted(keys, count):
        one = lambda key: PROBLEM.learner.adapt(params, PROBLEM.sample(params, key).support)
        return jax.vmap(one)(keys[:count])

    keys = jax.random.split(jax.random.key(9), 3)
    one, three = (jax.tree.map(lambda x: x[0], adapted(keys, count)) for count in (1, 3))
    assert_trees_close(one, three, 1e-5)


def test_rates_for_each_step():
    """Sampling, replay and evaluation use each step's rate; each step has new episodes."""
    params = POLICY.init(KEY)
    rates = {"mean": jnp.array([0.5, 0.0]), "log_std": jnp.array([0.0, 0.25])}
    problem = problem_of(inner_lr=PerStep(rates), num_inner_steps=2)
    task = jax.jit(problem.sample)(params, jax.random.key(2))
    slope = jax.jit(jax.grad(problem.inner_loss, has_aux=True))
    assert not np.any(task.support.actions[0] == task.support.actions[1])
    by_hand = params
    for step in range(2):
        samples = jax.tree.map(lambda x, s=step: x[s], task.support)
        full = jax.tree.broadcast({name: rate[step] for name, rate in rates.items()}, params)
        grads = slope(by_hand, samples)[0]
        by_hand = jax.tree.map(lambda p, g, rate: p - rate * g, by_hand, grads, full)
    assert_trees_close(jax.jit(problem.learner.adapt)(params, task.support), by_hand, 1e-6)
    ratio = jax.jit(surrogate(POLICY))(by_hand, task.query)[1]["ratio"]
    np.testing.assert_allclose(ratio, 1.0, atol=1e-6)
    returns = functools.partial(
        adaptation_returns,
        PROBLEM,
        num_updates=2,
        monitor=lambda t: {"log_std": t.distribution.log_std[0, 0]},
    )
    tasks = jnp.ones((1, 2)), KEY[None]
    spread = make_evaluate_fn(returns)(params, tasks, PerStep(rates)).per_task["log_std"][0]
    np.testing.assert_array_equal(spread[0], spread[1])  # only the second update changes it
    assert np.any(spread[2] != spread[1])


def test_replaced_settings_apply_everywhere():
    """In sampling, adaptation and the outer loss; for other outer losses: test_meta_updates.py."""
    params = POLICY.init(KEY)
    still = PROBLEM._replace(inner_lr=0.0, num_episodes=3)
    task = jax.jit(still.sample)(params, KEY)
    assert task.query.alive.shape == (3, 3)
    assert_trees_close(jax.jit(still.learner.adapt)(params, task.support), params, 0)
    distribution = POLICY.unroll(params, task.query.observations)
    assert_trees_close(task.query.distribution, distribution, 1e-6)
    uphill = PROBLEM._replace(
        inner_loss=lambda p, samples: (-PROBLEM.inner_loss(p, samples)[0], {})
    )
    task = jax.jit(uphill.sample)(params, KEY)
    adapted = jax.jit(uphill.learner.adapt)(params, task.support)
    distribution = POLICY.unroll(adapted, task.query.observations)
    assert_trees_close(task.query.distribution, distribution, 1e-5)
    twice = PROBLEM._replace(outer_loss=lambda p, s: (2.0 * PROBLEM.outer_loss(p, s)[0], {}))
    one, two = (jax.jit(p.learner.loss)(params, task)[0] for p in (PROBLEM, twice))
    np.testing.assert_allclose(two, 2.0 * one, rtol=1e-5)
