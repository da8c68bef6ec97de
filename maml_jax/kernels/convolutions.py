"""Two-dimensional convolutions with a choice of lowering, behind the signature of JAX.

MAML has separate weights for each task. `jax.vmap` turns convolutions with such weights into
grouped ones, which are slow on most back ends: on a CPU thirty times slower than the same
arithmetic as a matrix product. All lowerings return the same values.
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
    """Returns a replacement of `jax.lax.conv_general_dilated`, for `flax.linen.Conv`.

    Args:
        lowering: default: the platform's preference, see `preferences`. One of

            =========== ==================================================================
            `"native"`  JAX's convolution
            `"patches"` one matrix product of all input patches, see `convolution_products`
            `"shifts"`  the sum of one product for each position of the kernel
            =========== ==================================================================

    Returns:
        `conv(inputs [N, H, W, C], kernel [h, w, C, F], strides, padding, ...)`. `"patches"` and
        `"shifts"` pass inputs of other ranks, dilation and groups on to JAX's convolution.

    Raises:
        ValueError: `lowering` is none of `LOWERINGS`.

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.kernels.convolutions import convolution
        >>> images, kernel = jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 2))
        >>> outputs = convolution("patches")(
        ...     images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        >>> outputs.shape, float(outputs[0, 0, 0, 0])
        ((1, 2, 2, 2), 9.0)
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
