"""Parts of a trust-region step: conjugate gradients, line search, curvature products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from test_meta_updates import KEY, draw, small_problem

from maml_jax.reinforcement import trust_region


def test_conjugate_gradients_solve_a_system(x64):
    a = jax.random.normal(KEY, (6, 6))
    matrix = a @ a.T + jnp.eye(6)
    target = jnp.arange(6.0)
    result, residual = trust_region.conjugate_gradients(lambda v: matrix @ v, target, 6)
    np.testing.assert_allclose(result, jnp.linalg.solve(matrix, target), rtol=1e-6)
    assert residual < 1e-6


def test_line_search_shrinks_until_both_conditions_hold():
    def score(x):  # lower left of 1; the divergence grows with the step
        return jnp.sum((x - 1.0) ** 2), jnp.sum(x**2)

    start = jnp.zeros(1)
    result = trust_region.line_search(score, start, -4.0 * jnp.ones(1), 1.0, 0.5, 0.5, 15)
    np.testing.assert_allclose(result.params, 0.5)  # 4, 2: no better; 1: too far; 0.5
    assert result.accepted
    assert result.backtracks == 3


@pytest.mark.parametrize("value", [jnp.inf, jnp.nan, 2.0])
def test_line_search_restores_the_parameters(value):
    start = jnp.arange(3.0)
    result = trust_region.line_search(
        lambda x: (jnp.asarray(value), jnp.zeros(())), start, jnp.ones(3), 1.0, 0.5, 0.8, 4
    )
    np.testing.assert_array_equal(result.params, start)
    assert not result.accepted
    assert result.backtracks == 4
    assert result.loss == 1.0


def test_a_divergence_that_is_nan_is_not_accepted():
    result = trust_region.line_search(
        lambda x: (jnp.zeros(()), jnp.full((), jnp.nan)),
        jnp.zeros(2),
        jnp.ones(2),
        1.0,
        0.5,
        0.8,
        3,
    )
    np.testing.assert_array_equal(result.params, 0)


def multiplied(problem, params, tasks, vector, kind):
    flat, unravel = ravel_pytree(params)

    def distributions(p):
        def one(t):
            adapted = problem.learner.adapt(unravel(p), t.support)
            return problem.policy.unroll(adapted, t.query.observations)

        return jax.vmap(one)(tasks)

    if kind == "gauss_newton":
        distribution, push = jax.linearize(distributions, flat)
        pull = jax.linear_transpose(push, flat)
        multiply = trust_region.gauss_newton(distribution, tasks, push, lambda u: pull(u)[0])
    else:
        multiply = trust_region.second_derivative(distributions, tasks, flat, kind)
    return jax.jit(multiply)(vector)


def test_products_agree(x64):
    """Gauss-Newton equals exact up to rounding; finite differences up to their squared step."""
    problem = small_problem()
    to_64 = lambda tree: jax.tree.map(
        lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, tree
    )
    params = to_64(problem.init(KEY))
    tasks = to_64(draw(problem, params))
    vector = jax.random.normal(KEY, ravel_pytree(params)[0].shape)
    result = {k: multiplied(problem, params, tasks, vector, k) for k in trust_region.PRODUCTS}
    scale = jnp.abs(result["exact"]).max()
    assert jnp.abs(result["gauss_newton"] - result["exact"]).max() < 1e-6 * scale
    assert jnp.abs(result["finite_differences"] - result["exact"]).max() < 1e-2 * scale
