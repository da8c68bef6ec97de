"""Modes of differentiating the inner loop, which trade time for memory.

The meta-gradient needs a Hessian-vector product of the inner loss for each inner step. The modes
compute it in different ways:

=============== ================================================================ ================
mode            Hessian-vector product                                           stored per step
=============== ================================================================ ================
`"reverse"`     reverse over reverse: `jax.grad` of a loss that calls `jax.grad` activations
`"remat"`       as reverse; the backward pass recomputes each inner step         parameters
`"mixed"`       forward over reverse, in each inner step's backward pass         parameters
`"first_order"` zero (paper section 5.2): approximates the meta-gradient         nothing
=============== ================================================================ ================

Remat differentiates the inner gradient in reverse and holds the intermediates of a second-order
gradient for one step at a time. Mixed mode pushes a tangent forward through the inner gradient and
holds only those of a first-order gradient, as MixFlow-MG does (Kemaev et al. 2025, arXiv
2505.00793).

Mixed mode assumes that second derivatives commute. The functions of JAX satisfy this. Derivative
rules that users write (`jax.custom_jvp`, `jax.custom_vjp`, `jax.lax.custom_root`, ...) may not:
straight-through, clipped or reversed gradients, quantisers with a learned step, implicit solvers
that stop early. Mixed mode falls back to remat for inner losses with such rules, so that all exact
modes return the same meta-gradient.

JAX raises a TypeError for forward-mode derivatives (`jax.jvp`, `jax.jacfwd`) of the meta-loss in
mixed mode. The other modes support them.
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
    """Returns a function for the gradient of an inner loss, differentiable in the given mode.

    Args:
        loss_fn: `loss_fn(params, batch) -> (scalar, metrics)`, of floating-point parameters.
        mode: one of `MODES`. `"remat"` equals `"reverse"` here; `maml.adapt` recomputes whole
            inner steps.

    Returns:
        `fn(params, batch) -> (gradient, metrics)`: the gradient in the form of `params`, and the
        loss's metrics with `"loss"`.

    Raises:
        ValueError: `mode` is unknown; from `fn`: the batch is empty, or the loss is not a scalar.
        TypeError: from `fn`: `loss_fn` does not return a loss and a dict.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from maml_jax.meta_gradient import gradient
        >>> grad = gradient(lambda p, batch: (p**3, {}), "mixed")
        >>> float(jax.grad(lambda p: grad(p, ())[0])(jnp.array(2.0)))  # 6 p
        12.0
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
        if mode == "first_order":  # drops the second-order terms
            grads = jax.lax.stop_gradient(grads)
        return grads, {**metrics, "loss": loss}

    return fn


def _mixed_gradient(loss_fn: LossFn, recomputed: LossAndGradientFn) -> LossAndGradientFn:
    """Returns a gradient function whose reverse derivative is a forward-over-reverse product.

    Uses `recomputed` instead where second derivatives may not commute.
    """

    def fn(params: Params, batch: Batch) -> tuple[Params, tuple[Array, Metrics]]:
        # Closed-over values become arguments too: a custom derivative rule must propagate their
        # derivatives and must not leak their tracers.
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
    """Returns `(params, smooth, rest) -> (gradient, (loss, metrics))` with a custom derivative.

    With L the loss, p the parameters, z the other differentiable inputs and v the cotangent of the
    gradient dL/dp, reverse mode has to return v' d2L/dp2 and v' d2L/dpdz. Second derivatives
    commute, so both are the tangent of (dL/dp, dL/dz) along (v, 0): one `jvp` of one `grad`. The
    cotangent of the loss multiplies the primal output, (dL/dp, dL/dz).
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
