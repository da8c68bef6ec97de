"""Convolutions as matrix products that fit into the cache, closed under differentiation.

Output y, input x and kernel w of a convolution define a trilinear form. Its partial derivatives are
the convolution and its gradients in x and in w. Each is bilinear, and their derivatives are again
these three. The module therefore defines one primitive with three forms, as `products.py` does with
four. Each form is computed as follows:

- It gathers the input patches under the kernel into a matrix and takes one matrix product. The
  patches are larger than the image by the size of the kernel; the backward pass recomputes them.
- On a CPU it processes a few images at a time, whose patches fit into the cache, and one task after
  the other (measurements on two cores: benchmarks/README.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from maml_jax.kernels import products
from maml_jax.types import Array

FORMS = ("output", "input", "kernel")
CACHE_BYTES = 600_000  # patches at a time on a CPU, whose second-level cache has 1 to 2 MB a core


class Geometry(NamedTuple):
    """The static parameters of a convolution.

    Attributes:
        image: height and width of the image, H and W.
        size: height and width of the kernel, h and w.
        strides: along rows and columns.
        padding: ((top, bottom), (left, right)).
        precision: precision of the products, in the form of `jnp.matmul`.
    """

    image: tuple[int, int]
    size: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    precision: str | None = None

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of the padded image."""
        return tuple(n + sum(p) for n, p in zip(self.image, self.padding, strict=True))  # pyright: ignore

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of the output, H' and W'."""
        pairs = zip(self.padded, self.size, self.strides, strict=True)
        return tuple((n - k) // s + 1 for n, k, s in pairs)  # pyright: ignore


def convolve(inputs: Array, kernel: Array, geometry: Geometry) -> Array:
    """Convolves images [n, H, W, C] with a kernel [h, w, C, F] to outputs [n, H', W', F].

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.kernels.convolution_products import Geometry, convolve
        >>> geometry = Geometry((4, 4), (3, 3), strides=(1, 1), padding=((1, 1), (1, 1)))
        >>> convolve(jnp.ones((2, 4, 4, 1)), jnp.ones((3, 3, 1, 5)), geometry).shape
        (2, 4, 4, 5)
    """
    # Fixes the precision here: `jax.default_matmul_precision` may differ when JAX lowers the
    # primitive.
    geometry = geometry._replace(precision=geometry.precision or products.default_precision())
    return conv_p.bind(inputs, kernel, form="output", geometry=geometry)


conv_p = Primitive("conv")


def _bind(a: Array, b: Array, form: str, geometry: Geometry) -> Array:
    return conv_p.bind(a, b, form=form, geometry=geometry)


def _abstract(a: Any, b: Any, *, form: str, geometry: Geometry) -> Any:
    lead, n = a.shape[:-4], a.shape[-4]
    if b.shape[:-4] != lead:
        raise TypeError(f"convolution of incompatible shapes {a.shape} and {b.shape}.")
    if form == "output":
        shape = (n, *geometry.output, b.shape[-1])
    elif form == "input":
        shape = (n, *geometry.image, b.shape[-2])
    else:
        shape = (*geometry.size, a.shape[-1], b.shape[-1])
    return a.update(shape=(*lead, *shape), weak_type=False)


# With x the input, y the output and w the kernel: output(x, w), input(y, w), kernel(x, y).


def _transpose_in_a(ct: Array, a: Any, b: Array, *, form: str, geometry: Geometry) -> Array:
    del a
    if form == "kernel":  # ct is a kernel, b an output
        return _bind(b, ct, "input", geometry)
    return _bind(ct, b, "input" if form == "output" else "output", geometry)


def _transpose_in_b(ct: Array, a: Array, b: Any, *, form: str, geometry: Geometry) -> Array:
    del b
    if form == "output":  # ct is an output, a an input
        return _bind(a, ct, "kernel", geometry)
    if form == "input":  # ct is an input, a an output
        return _bind(ct, a, "kernel", geometry)
    return _bind(a, ct, "output", geometry)  # ct is a kernel, a an input


def _batch(args: Any, axes: Any, *, form: str, geometry: Geometry) -> tuple[Array, int]:
    (a, b), (axis_a, axis_b) = args, axes
    size = next(x.shape[axis] for x, axis in zip(args, axes, strict=True) if axis is not None)
    if axis_b is None and form != "kernel" and b.ndim == 4:  # a shared kernel: more images
        a = jnp.moveaxis(a, axis_a, 0)
        out = _bind(a.reshape(-1, *a.shape[2:]), b, form, geometry)
        return out.reshape(*a.shape[:2], *out.shape[1:]), 0

    def lead(x: Array, axis: int | None) -> Array:
        if axis is None:
            return jnp.broadcast_to(x, (size, *x.shape))
        return jnp.moveaxis(x, axis, 0)

    return _bind(lead(a, axis_a), lead(b, axis_b), form, geometry), 0


def _patches(x: Array, geometry: Geometry) -> Array:
    """Returns the input patch of each output position, [n * H' * W', h * w * C]."""
    n, channels = x.shape[0], x.shape[-1]
    padded = jnp.pad(x, ((0, 0), *geometry.padding, (0, 0)))
    (rows, columns), (down, right) = geometry.output, geometry.strides
    windows = [
        jax.lax.slice(
            padded,
            (0, i, j, 0),
            (n, i + (rows - 1) * down + 1, j + (columns - 1) * right + 1, channels),
            (1, down, right, 1),
        )
        for i in range(geometry.size[0])
        for j in range(geometry.size[1])
    ]
    return jnp.concatenate(windows, axis=-1).reshape(n * rows * columns, -1)


def _output(x: Array, w: Array, geometry: Geometry) -> Array:
    weights = w.reshape(-1, w.shape[-1])
    y = jnp.matmul(_patches(x, geometry), weights, precision=geometry.precision)
    return y.reshape(x.shape[0], *geometry.output, -1)


def _kernel(x: Array, y: Array, geometry: Geometry) -> Array:
    """Returns the kernel gradient as a matrix [h * w * C, F], or [F, h * w * C] if `_turned`."""
    left, right = _patches(x, geometry), y.reshape(-1, y.shape[-1])
    if _turned(x, y, geometry):
        left, right = right, left
    # Copies the transpose: products with a transposed left side are slow, see products.py.
    left = jax.lax.optimization_barrier(left.T)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.matmul(left, right, precision=geometry.precision, preferred_element_type=wide)


def _turned(x: Array, y: Array, geometry: Geometry) -> bool:
    """Returns whether outputs are narrower than patches; the narrower one is transposed."""
    return y.shape[-1] < geometry.size[0] * geometry.size[1] * x.shape[-1]


def _unfold(matrix: Array, x: Array, y: Array, geometry: Geometry) -> Array:
    """Reshapes the matrix of `_kernel` to a kernel [h, w, C, F]."""
    matrix = matrix.T if _turned(x, y, geometry) else matrix
    return matrix.reshape(*geometry.size, x.shape[-1], y.shape[-1]).astype(x.dtype)


def _input(y: Array, w: Array, geometry: Geometry) -> Array:
    """Returns the input gradient: sums the shares of all output positions."""
    n, channels = y.shape[0], w.shape[-2]
    outputs, weights = y.reshape(-1, y.shape[-1]), w.reshape(-1, w.shape[-1])
    shares = jnp.matmul(outputs, weights.T, precision=geometry.precision)
    shares = shares.reshape(n, *geometry.output, *geometry.size, channels)
    edges = zip(geometry.image, geometry.output, geometry.strides, geometry.padding, strict=True)
    (height, rows, down, (top, _)), (width, columns, right, (left, _)) = edges
    total = jnp.zeros((n, height, width, channels), y.dtype)
    for i in range(geometry.size[0]):
        for j in range(geometry.size[1]):
            # Negative edges crop the padding.
            below = height + top - i - ((rows - 1) * down + 1)
            beside = width + left - j - ((columns - 1) * right + 1)
            total += jax.lax.pad(
                shares[:, :, :, i, j],
                jnp.zeros((), y.dtype),
                ((0, 0, 0), (i - top, below, down - 1), (j - left, beside, right - 1),
                 (0, 0, 0)),
            )  # fmt: skip
    return total


def _once(a: Array, b: Array, form: str, geometry: Geometry) -> Array:
    """Computes one task, all images at once."""
    if form == "kernel":
        return _unfold(_kernel(a, b, geometry), a, b, geometry)
    return (_output if form == "output" else _input)(a, b, geometry)


def _in_cache(a: Array, b: Array, form: str, geometry: Geometry) -> Array:
    """Computes one task, a few images at a time."""
    n = a.shape[0]
    channels = b.shape[-2] if form == "input" else a.shape[-1]
    rows, columns = geometry.output
    each = rows * columns * geometry.size[0] * geometry.size[1] * channels * a.dtype.itemsize
    chunk = max(d for d in range(1, n + 1) if n % d == 0 and (d == 1 or d * each <= CACHE_BYTES))
    if chunk == n:
        return _once(a, b, form, geometry)

    def split(x: Array) -> Array:
        return x.reshape(n // chunk, chunk, *x.shape[1:])

    if form != "kernel":
        out = jax.lax.map(lambda part: _once(part, b, form, geometry), split(a))
        return out.reshape(n, *out.shape[2:])

    def add(total: Array, parts: tuple[Array, Array]) -> tuple[Array, None]:
        return total + _kernel(*parts, geometry), None

    wide = jnp.promote_types(a.dtype, jnp.float32)
    sides = geometry.size[0] * geometry.size[1] * a.shape[-1], b.shape[-1]
    zero = jnp.zeros(sides[::-1] if _turned(a, b, geometry) else sides, wide)
    total, _ = jax.lax.scan(add, zero, (split(a), split(b)))
    return _unfold(total, a, b, geometry)


def _each_task(one: Callable[..., Array], loop: bool) -> Callable[..., Array]:
    """Maps `one` over leading axes, in one batched program or in a loop."""

    def fn(a: Array, b: Array, *, form: str, geometry: Geometry) -> Array:
        if a.ndim == 4:
            return one(a, b, form, geometry)
        lead = a.shape[:-4]
        a, b = (x.reshape(-1, *x.shape[-4:]) for x in (a, b))
        if loop and a.shape[0] > 1:
            out = jax.lax.map(lambda pair: one(*pair, form, geometry), (a, b))
        elif a.shape[0] == 1:
            out = one(a[0], b[0], form, geometry)[None]
        else:
            out = jax.vmap(lambda x, y: one(x, y, form, geometry))(a, b)
        return out.reshape(*lead, *out.shape[1:])

    return fn


_anywhere = _each_task(_once, loop=False)
_on_cpu = _each_task(_in_cache, loop=True)

conv_p.def_impl(jax.jit(_anywhere, static_argnames=("form", "geometry")))
conv_p.def_abstract_eval(_abstract)
ad.defbilinear(conv_p, _transpose_in_a, _transpose_in_b)
batching.primitive_batchers[conv_p] = _batch
mlir.register_lowering(conv_p, mlir.lower_fun(_anywhere, multiple_results=False))
mlir.register_lowering(conv_p, mlir.lower_fun(_on_cpu, multiple_results=False), platform="cpu")
