"""Two-dimensional convolution in the ways that machines like, behind one signature.

Second-order MAML gives every task weights of its own, and on those `jax.vmap` turns a convolution
into a grouped one, which most back ends run slowly: on a CPU thirty times slower than the same
arithmetic as a matrix product. So the lowering is a choice. All give the same values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from maml_jax import checks
from maml_jax.kernels import products
from maml_jax.kernels.convolution_products import Geometry, convolve
from maml_jax.kernels.preferences import preferred
from maml_jax.types import Array

LOWERINGS = ("patches", "shifts", "native")


def convolution(lowering: str | None = None) -> Callable[..., Array]:
    """A convolution in the form of `jax.lax.conv_general_dilated`, for `flax.linen.Conv`.

    Args:
        lowering: `"native"` is JAX's own; `"patches"` gathers the shifted inputs under the kernel
            side by side and takes one matrix product, see `convolution_products`; `"shifts"` adds
            up one product for each position of the kernel. Default: see `preferences`.

    Returns:
        `conv(inputs [..., H, W, C], kernel [h, w, C, F], strides, padding, ...)`. The latter two
        are for inputs [N, H, W, C] without dilation or groups, and leave others to JAX's own.

    Raises:
        ValueError: the lowering is none of `LOWERINGS`.
    """
    lowering = preferred("lowering") if lowering is None else lowering
    checks.check_choice(lowering, LOWERINGS, "lowering")
    if lowering == "native":
        return jax.lax.conv_general_dilated

    def conv(
        inputs: Array,
        kernel: Array,
        window_strides: Sequence[int],
        padding: str | Sequence[tuple[int, int]],
        lhs_dilation: Sequence[int] | None = None,
        rhs_dilation: Sequence[int] | None = None,
        dimension_numbers: Any = None,
        feature_group_count: int = 1,
        precision: Any = None,
        **kwargs: Any,
    ) -> Array:
        plain = (
            inputs.ndim == 4
            and _all_one(lhs_dilation)
            and _all_one(rhs_dilation)
            and feature_group_count == 1
            and precision is None
            and all(value in (None, 1) for value in kwargs.values())
            and _is_nhwc(dimension_numbers, inputs.ndim)
        )
        if not plain:
            return jax.lax.conv_general_dilated(
                inputs,
                kernel,
                window_strides,
                padding,
                lhs_dilation=lhs_dilation,
                rhs_dilation=rhs_dilation,
                dimension_numbers=dimension_numbers,
                feature_group_count=feature_group_count,
                precision=precision,
                **kwargs,
            )
        down, right = window_strides
        if isinstance(padding, str):
            sides = inputs.shape[1:3]
            padding = jax.lax.padtype_to_pads(sides, kernel.shape[:2], (down, right), padding)
        (top, bottom), (left, beside) = padding
        height, width = inputs.shape[1:3]
        size = (kernel.shape[0], kernel.shape[1])
        geometry = Geometry((height, width), size, (down, right), ((top, bottom), (left, beside)))
        if lowering == "patches":
            return convolve(inputs, kernel, geometry)
        return _shifts(inputs, kernel, geometry)

    return conv


def _shifts(inputs: Array, kernel: Array, geometry: Geometry) -> Array:
    padded = jnp.pad(inputs, ((0, 0), *geometry.padding, (0, 0)))
    (rows, columns), (down, right) = geometry.output, geometry.strides
    total = jnp.zeros((), inputs.dtype)
    for i in range(geometry.size[0]):
        for j in range(geometry.size[1]):
            window = padded[:, i:, j:][:, : down * rows : down, : right * columns : right]
            total = total + products.matmul(window, kernel[i, j])
    return total


def _all_one(dilation: Sequence[int] | None) -> bool:
    return dilation is None or all(d == 1 for d in dilation)


def _is_nhwc(numbers: Any, ndim: int) -> bool:
    if isinstance(numbers, jax.lax.ConvDimensionNumbers):
        last, first = ndim - 1, (0, ndim - 1, *range(1, ndim - 1))
        return tuple(numbers) == (first, (last, ndim - 2, *range(ndim - 2)), first)
    return numbers is not None and tuple(numbers) == ("NHWC", "HWIO", "NHWC")
