"""Mixed mode's meta-gradient equals the other exact modes' for losses with any derivative rule."""

import functools
import inspect

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import ad, mlir

from maml_jax import Task, meta_loss
from maml_jax.derivative_rules import may_not_commute


@jax.custom_jvp
def half_a_product(x, s):
    return x * s


half_a_product.defjvp(lambda p, t: (p[0] * p[1], t[0] * p[1]))


@jax.custom_jvp
def quantized(x, step):
    """Rounds to multiples of a learned step; the rule scales the gradient of the step (LSQ)."""
    return jnp.round(x / step) * step


quantized.defjvp(lambda p, t: (quantized(*p), t[0] + t[1] * 0.1 * jnp.sin(p[0] / p[1])))


@jax.custom_jvp
def skewed(x, s):
    """Has a rule whose matrix depends on the vector and is not symmetric."""
    return x + s


skewed.defjvp(lambda p, t: (p[0] + p[1], jnp.array([0.0, 1.0]) * (p[0][0] ** 2) * t[0][1] + t[1]))


@jax.custom_vjp
def reversed_gradient(x, s):
    return x * s


reversed_gradient.defvjp(lambda x, s: (x * s, (x, s)), lambda r, g: (-g * r[1], jnp.vdot(g, r[0])))


def early_root(x, s):
    """Returns the root of y^3 = x s; the solver in its derivative is wrong by half."""
    return jax.lax.custom_root(
        lambda y: y**3 - x * s,
        x,
        lambda f, y: jnp.cbrt(x * s),
        lambda g, y: 0.5 * y / g(jnp.ones_like(y)) * (1 + x),
    )


def half_transposed(x, s):
    """Solves a linear system; the transposed solver is wrong by half."""
    matrix = jnp.array([[2.0, 0.3], [0.5, 1.0]]) + jnp.diag(x)
    return jax.lax.custom_linear_solve(
        lambda v: matrix @ v,
        x * s,
        lambda _, b: jnp.linalg.solve(matrix, b),
        lambda _, b: 0.5 * jnp.linalg.solve(matrix.T, b),
    )


RULES = (
    half_a_product,
    quantized,
    skewed,
    reversed_gradient,
    early_root,
    half_transposed,
)


def meta_gradient(rule, mode):
    """Differentiates in the parameters and in a learned setting that the inner loss closes over."""

    def outer(theta):
        def inner(p, batch):
            return jnp.sum((jnp.tanh(rule(p, theta["s"])) - batch) ** 2), {}

        judge = lambda p, batch: (jnp.sum((p - batch) ** 2), {})
        task = Task(jnp.array([0.3, -0.2]), jnp.array([1.0, 0.5]))
        return meta_loss(inner, theta["p"], task, 0.1, 2, outer_loss=judge, mode=mode)[0]

    return jax.grad(outer)({"p": jnp.array([0.8, 0.6]), "s": jnp.array(0.7)})


@pytest.mark.parametrize(
    "rule", RULES, ids=lambda rule: getattr(rule, "__wrapped__", rule).__name__
)
def test_a_rule_that_is_not_the_derivative_gives_one_meta_gradient_in_all_modes(rule, x64):
    expected = meta_gradient(rule, "reverse")
    assert abs(expected["s"]) > 1e-6
    for mode in ("remat", "mixed"):
        for name, value in meta_gradient(rule, mode).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-10, err_msg=f"{mode} {name}")
    inside = jax.make_jaxpr(
        lambda x: jax.lax.scan(lambda c, _: (jax.jit(rule)(c, 0.5), None), x, length=2)
    )
    assert may_not_commute(inside(jnp.ones(2)).jaxpr)


def test_rules_that_jax_ships_keep_the_memory_of_mixed_mode():
    """All of these functions have rules inside JAX, and their second derivatives commute."""

    def every_one(x):
        matrix = jnp.outer(x, x) + jnp.eye(x.shape[0])
        nn, special = jax.nn, jax.scipy.special
        pieces = [
            *(fn(x) for fn in (nn.relu, nn.relu6, nn.softplus, nn.silu, nn.gelu, nn.elu, nn.celu)),
            *(fn(x) for fn in (nn.log_softmax, nn.softmax, nn.standardize, jnp.sinc)),
            jnp.logaddexp(x, 1.0),
            special.xlogy(x, x),
            special.xlog1py(x, x),
            special.gammaln(x),
            jnp.linalg.solve(matrix, x),
            jnp.linalg.inv(matrix) @ x,
            jnp.linalg.norm(x)[None],
            nn.logsumexp(x)[None],
        ]
        return jnp.concatenate(pieces)

    assert not may_not_commute(jax.make_jaxpr(every_one)(jnp.array([0.3, 0.5])).jaxpr)


def test_a_jax_function_with_a_users_rule_counts_as_the_users():
    straight_through = jax.custom_jvp(jnp.floor)
    straight_through.defjvps(lambda tangent, answer, x: tangent)
    assert may_not_commute(jax.make_jaxpr(straight_through)(1.0).jaxpr)


def xlogy_with_half_a_rule(x, s):
    """Wraps a function of JAX under its name, with a rule that omits an argument."""
    fn = jax.custom_jvp(jax.scipy.special.xlogy)
    fn.defjvp(lambda p, t: (jax.scipy.special.xlogy(*p), t[0] * jnp.log(p[1])))
    return fn(x, s)


def in_a_name_of_jax(x, s):
    @jax.custom_jvp
    @functools.wraps(inspect.unwrap(jnp.logaddexp))
    def fn(x, s):
        return x * s

    fn.defjvp(lambda p, t: (p[0] * p[1], t[0] * p[1]))
    return fn(x, s)


halved_p = jex.core.Primitive("halved")
halved_p.def_impl(lambda x, s: x * s)
halved_p.def_abstract_eval(lambda x, s: x)
mlir.register_lowering(halved_p, mlir.lower_fun(lambda x, s: x * s, multiple_results=False))
ad.primitive_jvps[halved_p] = lambda p, t: (halved_p.bind(*p), ad.instantiate_zeros(t[0]) * p[1])


def a_custom_primitive(x, s):
    return halved_p.bind(x, jnp.broadcast_to(s, x.shape))


@pytest.mark.parametrize("rule", [xlogy_with_half_a_rule, in_a_name_of_jax, a_custom_primitive])
def test_a_hidden_rule_counts_as_the_users(rule, x64):
    expected = meta_gradient(rule, "reverse")["s"]
    assert abs(expected) > 1e-6
    np.testing.assert_allclose(meta_gradient(rule, "mixed")["s"], expected, rtol=1e-10)


def test_a_custom_transpose_counts_as_the_users():
    call = lambda x, s: jax.custom_derivatives.linear_call(
        lambda s, x: x * s, lambda s, g: g * s**2, s, x
    )
    assert may_not_commute(jax.make_jaxpr(call)(1.0, 2.0).jaxpr)
