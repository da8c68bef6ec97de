"""Bounds batches of factorisations, because jaxlib 0.10 deadlocks on large ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("brax", reason="locomotion needs the rl extra")

from maml_jax.reinforcement import locomotion as lib
from maml_jax.reinforcement.advantages import fit_baseline

KEY = jax.random.key(0)


def factorizations(jaxpr):
    """Counts the operations of each batch of factorisations and triangular solves in a jaxpr."""
    for equation in jaxpr.eqns:
        shape = equation.invars[0].aval.shape if equation.invars else ()
        if equation.primitive.name == "cholesky":
            yield np.prod(shape[:-2]) * shape[-1] ** 3 / 3
        elif equation.primitive.name == "triangular_solve":
            yield np.prod(equation.outvars[0].aval.shape) * shape[-1]
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
        ):
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                yield from factorizations(getattr(value, "jaxpr", value))


@pytest.mark.parametrize(
    ("physics", "backend"),
    [
        ("paper", "spring"),
        ("brax", "generalized"),
        pytest.param("brax", "mjx", marks=pytest.mark.slow),
    ],
)
def test_factorisations_stay_below_the_limit(physics, backend):
    made = lib.make_physics("ant", physics, backend=backend)
    inner, _ = jax.eval_shape(made.reset, jax.random.key(0))
    many = lambda x: jax.ShapeDtypeStruct((20, 20, *x.shape), x.dtype)
    states, actions = jax.tree.map(many, (inner, jnp.zeros(made.num_actions)))
    keys = jax.eval_shape(lambda key: jax.random.split(key, (20, 20)), KEY)
    costs = []
    for fn, args in ((made.reset, (keys,)), (made.step, (states, actions))):
        costs += factorizations(jax.make_jaxpr(jax.vmap(jax.vmap(fn)))(*args).jaxpr)
    assert costs
    assert max(costs) < 200_000


def test_the_baselines_factorisations_stay_below_the_limit():
    """20 tasks and five ridges; a matrix beyond the limit is factorised alone."""
    fit = jax.vmap(lambda o, r: fit_baseline(o, r, jnp.ones((4, 2), bool)))
    for observations, largest in ((20, 200_000), (41, 86**3 / 3)):
        shapes = jnp.zeros((20, 4, 2, observations)), jnp.zeros((20, 4, 2))
        assert 0 < max(factorizations(jax.make_jaxpr(fit)(*shapes).jaxpr)) <= largest
