"""Ways to differentiate the inner loop: the same meta-gradient, other memory and time.

The meta-gradient needs, for each inner step, the product of a vector with the Hessian of the inner
loss. The modes differ in how they come by it:

=============== ==================================================================== ==============
mode            how                                                                  kept per step
=============== ==================================================================== ==============
`"reverse"`     reverse over reverse: `jax.grad` of a loss that contains `jax.grad`  activations
`"remat"`       the same, each inner step recomputed in the backward pass            parameters
`"mixed"`       each inner step's backward pass is a forward-over-reverse product    parameters
`"first_order"` the Hessian is taken as zero (paper section 5.2): another gradient   nothing
=============== ==================================================================== ==============

Remat recomputes an inner step and then differentiates its gradient in reverse, which holds the
intermediates of a gradient's gradient while it does so; mixed mode pushes a tangent forward through
the gradient instead and holds those of a plain gradient. The idea of mixed mode is that of
MixFlow-MG (Kemaev et al. 2025, arXiv 2505.00793).

Mixed mode assumes that second derivatives commute. JAX's own functions satisfy that. A derivative
rule that a user writes need not (`jax.custom_jvp`, `jax.custom_vjp`, `jax.lax.custom_root`, ...:
straight-through, clipped or reversed gradients, quantisers with a learned step, implicit solvers
that stop early). An inner loss with such a rule is therefore differentiated as in remat mode, which
assumes nothing: the meta-gradient is that of every exact mode, the memory is remat's.

In mixed mode the meta-loss itself cannot be differentiated in forward mode (`jax.jvp`,
`jax.jacfwd`): JAX raises a TypeError. Any other mode can.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend import core as jex

from maml_jax import checks, derivative_rules, types
from maml_jax.types import Array, Batch, LossFn, Metrics, Params, PyTree

MODES = ("reverse", "remat", "mixed", "first_order")

LossAndGradientFn = Callable[[Params, Batch], tuple[Params, tuple[Array, Metrics]]]


def gradient(
    loss_fn: LossFn, mode: str = "reverse"
) -> Callable[[Params, Batch], tuple[Params, Metrics]]:
    """Returns the gradient of an inner loss, to be differentiated again in the given mode.

    Args:
        loss_fn: `loss_fn(params, batch) -> (scalar, metrics)`, of floating-point parameters.
        mode: one of `MODES`. `"remat"` is the same as `"reverse"` here: what is recomputed is a
            whole inner step, by `maml.adapt`.

    Returns:
        `fn(params, batch) -> (gradient, metrics)`: the gradient in the form of `params`, and the
        loss's metrics with `"loss"`.

    Raises:
        ValueError: an unknown mode; from the function, a batch without elements, or a loss that is
            not a scalar.
        TypeError: from the function, a loss function that does not return a loss and a dict.
    """
    checks.check_choice(mode, MODES, "mode")

    def checked(params: Params, batch: Batch) -> tuple[Array, Metrics]:
        return checks.check_loss_output(loss_fn(params, batch), "loss_fn")

    def plain(params: Params, batch: Batch) -> tuple[Params, tuple[Array, Metrics]]:
        (loss, metrics), grads = jax.value_and_grad(checked, has_aux=True)(params, batch)
        return grads, (loss, metrics)

    differentiate = _mixed_gradient(checked, jax.checkpoint(plain)) if mode == "mixed" else plain

    def fn(params: Params, batch: Batch) -> tuple[Params, Metrics]:
        checks.check_not_empty(batch, "batch")
        grads, (loss, metrics) = differentiate(params, batch)
        if mode == "first_order":  # the one place where second-order terms are dropped
            grads = jax.lax.stop_gradient(grads)
        return grads, {**metrics, "loss": loss}

    return fn


def _mixed_gradient(loss_fn: LossFn, recomputed: LossAndGradientFn) -> LossAndGradientFn:
    """The gradient whose own reverse derivative is a forward-over-reverse product.

    `recomputed` takes over where second derivatives need not commute.
    """

    def fn(params: Params, batch: Batch) -> tuple[Params, tuple[Array, Metrics]]:
        # Everything the loss depends on becomes an argument, what it closes over included: a
        # custom derivative rule may neither lose a derivative nor keep a tracer past its time.
        closed, shape = jax.make_jaxpr(loss_fn, return_shape=True)(params, batch)
        if derivative_rules.may_not_commute(closed.jaxpr):
            return recomputed(params, batch)
        out_tree = jax.tree.structure(shape)
        others = (jax.tree.leaves(batch), list(closed.consts))
        leaves, others_tree = jax.tree.flatten(others)
        smooth = [leaf if types.is_float(leaf) else None for leaf in leaves]
        rest = [None if types.is_float(leaf) else leaf for leaf in leaves]

        def pure_loss(params: Params, smooth: list[Any], rest: list[Any]) -> tuple[Array, Metrics]:
            merged = [r if s is None else s for s, r in zip(smooth, rest, strict=True)]
            batch_leaves, consts = jax.tree.unflatten(others_tree, merged)
            call = jex.jaxpr_as_fun(jex.ClosedJaxpr(closed.jaxpr, consts))
            return jax.tree.unflatten(out_tree, call(*jax.tree.leaves(params), *batch_leaves))

        return _forward_over_reverse(pure_loss)(params, smooth, rest)

    return fn


def _forward_over_reverse(
    pure_loss: Callable[[Params, PyTree, PyTree], tuple[Array, Metrics]],
) -> Callable[[Params, PyTree, PyTree], tuple[Params, tuple[Array, Metrics]]]:
    """`(params, smooth, rest) -> (gradient, (loss, metrics))` with a derivative rule of its own.

    With L the loss, p the parameters, z the other differentiable inputs and v the cotangent of the
    gradient dL/dp, reverse mode has to return v' d2L/dp2 and v' d2L/dpdz. Second derivatives
    commute, so both are the tangent of (dL/dp, dL/dz) along (v, 0): one `jvp` of one `grad`. Its
    primal output, (dL/dp, dL/dz), is what the cotangent of the loss itself multiplies.
    """

    def value(params, smooth, rest):
        (loss, metrics), grads = jax.value_and_grad(pure_loss, has_aux=True)(params, smooth, rest)
        return grads, (loss, metrics)

    def forward(params, smooth, rest):
        args = jax.tree.map(lambda p: p.value, (params, smooth, rest))
        return value(*args), args

    def backward(residuals, cotangents):
        params, smooth, rest = residuals
        grads_bar, (loss_bar, metrics_bar) = cotangents
        direction = jax.tree.map(_instantiate, grads_bar, params, is_leaf=_is_zero)

        def joint_gradient(p):
            return jax.grad(lambda p, z: pure_loss(p, z, rest)[0], argnums=(0, 1))(p, smooth)

        first, out = jax.jvp(joint_gradient, (params,), (direction,))
        if not _is_zero(loss_bar):
            out = jax.tree.map(lambda o, g: o + loss_bar * g, out, first)
        if not all(_is_zero(leaf) for leaf in jax.tree.leaves(metrics_bar, is_leaf=_is_zero)):
            metrics, pull = jax.vjp(lambda p, z: pure_loss(p, z, rest)[1], params, smooth)
            bar = jax.tree.map(_instantiate, metrics_bar, metrics, is_leaf=_is_zero)
            out = jax.tree.map(jnp.add, out, pull(bar))
        return *out, None

    grad_fn = jax.custom_vjp(value)
    grad_fn.defvjp(forward, backward, symbolic_zeros=True)
    return grad_fn


def _is_zero(leaf: Any) -> bool:
    return isinstance(leaf, SymbolicZero) or getattr(leaf, "dtype", None) == jax.dtypes.float0


def _instantiate(leaf: Any, like: Any) -> Any:
    if not isinstance(leaf, SymbolicZero):
        return leaf
    dtype = jnp.result_type(like) if types.is_float(like) else jax.dtypes.float0
    return np.zeros(jnp.shape(like), dtype)
