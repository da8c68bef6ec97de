"""Matrix products that are fast on a CPU when small, batched and differentiated twice.

The weight gradient of `x @ w` is `x.T @ g`. XLA's CPU backend is slow for small batched products
with a transposed left side. Times of 25 x [40, 10] @ [10, 40] on one core:

======================================= ===============
plain product                           11 microseconds
product with a transposed left side     33 microseconds
copy of the transposed left side        3 microseconds
======================================= ===============

Networks cannot insert this copy, because automatic differentiation makes the products. This module
therefore defines a primitive with the four forms `op(a) @ op(b)` of BLAS, which is closed under
differentiation, and one lowering per platform.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from maml_jax.types import Array


def matmul(a: Array, b: Array) -> Array:
    """Returns `a @ b` for a [..., I] and b [I, O], with the derivatives of `jnp.matmul`.

    Raises:
        TypeError: `a` and `b` have other shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.kernels.products import matmul
        >>> matmul(jnp.ones((5, 2, 3)), jnp.ones((3, 4))).shape
        (5, 2, 4)
    """
    if a.ndim < 1 or b.ndim != 2 or a.shape[-1] != b.shape[0]:
        raise TypeError(f"matmul needs [..., I] and [I, O]; received {a.shape} and {b.shape}.")
    rows = a.reshape(-1, a.shape[-1])
    # Reads `jax.default_matmul_precision` here, because the primitive is lowered outside this
    # context.
    out = _gemm(rows, b, False, False, default_precision())
    return out.reshape(*a.shape[:-1], b.shape[-1])


def dot_general(lhs: Array, rhs: Array, dimension_numbers: Any, *args: Any, **kwargs: Any) -> Array:
    """Replaces `jax.lax.dot_general` in `flax.linen.Dense`; uses `matmul` for plain products."""
    plain = (((lhs.ndim - 1,), (0,)), ((), ()))
    same_type = lhs.dtype == rhs.dtype
    if rhs.ndim == 2 and same_type and dimension_numbers == plain and _default(args, kwargs):
        return matmul(lhs, rhs)
    return jax.lax.dot_general(lhs, rhs, dimension_numbers, *args, **kwargs)


def _default(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return all(value is None for value in (*args, *kwargs.values()))


def default_precision() -> str | None:
    """Returns the current value of `jax.default_matmul_precision`."""
    return getattr(jax.config, "jax_default_matmul_precision")  # noqa: B009  # unknown to pyright


gemm_p = Primitive("gemm")


def _gemm(a: Array, b: Array, transpose_a: bool, transpose_b: bool, precision: Any) -> Array:
    return gemm_p.bind(a, b, transpose_a=transpose_a, transpose_b=transpose_b, precision=precision)


def _plain(a: Array, b: Array, *, transpose_a: bool, transpose_b: bool, precision: Any) -> Array:
    a = jnp.swapaxes(a, -1, -2) if transpose_a else a
    b = jnp.swapaxes(b, -1, -2) if transpose_b else b
    return jnp.matmul(a, b, precision=precision)


def _written_out(
    a: Array, b: Array, *, transpose_a: bool, transpose_b: bool, precision: Any
) -> Array:
    """Computes `_plain` after copying a transposed left side."""
    if transpose_a:
        a = jax.lax.optimization_barrier(jnp.swapaxes(a, -1, -2))
    return _plain(a, b, transpose_a=False, transpose_b=transpose_b, precision=precision)


def _abstract(a: Any, b: Any, *, transpose_a: bool, transpose_b: bool, precision: Any) -> Any:
    rows, inner = a.shape[-2:][:: -1 if transpose_a else 1]
    inner_b, columns = b.shape[-2:][:: -1 if transpose_b else 1]
    if inner != inner_b or a.shape[:-2] != b.shape[:-2]:
        raise TypeError(f"product of incompatible shapes {a.shape} and {b.shape}.")
    return a.update(shape=(*a.shape[:-2], rows, columns), weak_type=False)


def _transpose_in_a(
    g: Array, a: Any, b: Array, *, transpose_a: bool, transpose_b: bool, precision: Any
) -> Array:
    del a
    if transpose_a:
        return _gemm(b, g, transpose_b, True, precision)
    return _gemm(g, b, False, not transpose_b, precision)


def _transpose_in_b(
    g: Array, a: Array, b: Any, *, transpose_a: bool, transpose_b: bool, precision: Any
) -> Array:
    del b
    if transpose_b:
        return _gemm(g, a, True, transpose_a, precision)
    return _gemm(a, g, not transpose_a, False, precision)


def _batch(
    args: Any, axes: Any, *, transpose_a: bool, transpose_b: bool, precision: Any
) -> tuple[Array, int]:
    (a, b), (axis_a, axis_b) = args, axes
    size = next(x.shape[axis] for x, axis in zip(args, axes, strict=True) if axis is not None)
    if axis_b is None and not transpose_a and b.ndim == 2:  # a shared matrix: one tall product
        a = jnp.moveaxis(a, axis_a, 0)
        out = _gemm(a.reshape(-1, a.shape[-1]), b, False, transpose_b, precision)
        return out.reshape(*a.shape[:-1], out.shape[-1]), 0

    def lead(x: Array, axis: int | None) -> Array:
        if axis is None:
            return jnp.broadcast_to(x, (size, *x.shape))
        return jnp.moveaxis(x, axis, 0)

    return _gemm(lead(a, axis_a), lead(b, axis_b), transpose_a, transpose_b, precision), 0


gemm_p.def_impl(jax.jit(_plain, static_argnames=("transpose_a", "transpose_b", "precision")))
gemm_p.def_abstract_eval(_abstract)
ad.defbilinear(gemm_p, _transpose_in_a, _transpose_in_b)
batching.primitive_batchers[gemm_p] = _batch
mlir.register_lowering(gemm_p, mlir.lower_fun(_plain, multiple_results=False))
mlir.register_lowering(gemm_p, mlir.lower_fun(_written_out, multiple_results=False), platform="cpu")
