"""What a device can do at most, and which of its limits a meta-step is near."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from benchmarks.harness import Row, rotating, sample_times
from maml_jax import task_mesh
from maml_jax.mesh import TASK_AXIS, on_mesh, split_tasks

SPLIT = PartitionSpec(TASK_AXIS)
NEAR = 0.25  # of a limit, from which on a program is said to be bound by it


class Peaks(NamedTuple):
    """Measured limits of the devices.

    Attributes:
        gflops: of large float32 matrix products at the default precision, 1e9 operations a second.
        gflops_highest: of the same at precision "highest".
        gflops_bfloat16: of bfloat16 matrix products.
        copy_gb_s: bytes read and written by a large elementwise operation, 1e9 a second.
        kernel_us: microseconds of a small operation that needs the one before it.
    """

    gflops: float
    gflops_highest: float
    gflops_bfloat16: float
    copy_gb_s: float
    kernel_us: float


def measure_peaks(side: int = 8192, copy_mb: int = 1024, seconds: float = 0.5) -> Peaks:
    """Measures the limits of the devices that JAX sees.

    Args:
        side: of the square matrices.
        copy_mb: size of what is copied, 1e6 bytes.
        seconds: of the copy and of the small operations.
    """
    default = product_peak(side)
    with jax.default_matmul_precision("highest"):
        highest = product_peak(side)
    half = product_peak(side, dtype=jnp.bfloat16)
    loop = jax.jit(lambda x: jax.lax.fori_loop(0, 1000, lambda _, y: jnp.sin(y), x))
    small = sample_times(rotating(loop, [(jnp.zeros(8),), (jnp.ones(8),)]), seconds)
    return Peaks(default, highest, half, copy_peak(copy_mb, seconds), min(small) * 1e3)


def product_peak(side: int = 1024, repeats: int = 10, dtype: Any = jnp.float32) -> float:
    """GFLOP/s of large matrix products, all devices at once, at the matrix precision that is set.

    Args:
        side: of the square matrices.
        repeats: products of a call.
        dtype: of the matrices.
    """
    mesh = task_mesh(len(jax.devices()))

    def chain(a: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, repeats, lambda _, x: x @ a[0], a[0])[None]

    run = jax.jit(on_mesh(chain, mesh, SPLIT, SPLIT))
    a = jnp.broadcast_to(jnp.eye(side, dtype=dtype) * 0.999, (mesh.size, side, side))
    best = min(sample_times(rotating(run, [(a,)]), 0.0))
    return 2.0 * side**3 * repeats * mesh.size / best / 1e9


def copy_peak(megabytes: int, seconds: float = 0.5) -> float:
    """GB/s that an elementwise operation reads and writes, all devices at once.

    Args:
        megabytes: read, and as many written, 1e6 bytes; more than a cache.
        seconds: about how long to time for.
    """
    mesh = task_mesh(len(jax.devices()))
    move = jax.jit(on_mesh(lambda x: x + 1, mesh, SPLIT, SPLIT))
    shape = (mesh.size, megabytes * 10**6 // 4 // mesh.size)
    inputs = [(split_tasks(jnp.full(shape, fill), mesh),) for fill in (0.0, 1.0)]
    return 8 * float(np.prod(shape)) / min(sample_times(rotating(move, inputs), seconds)) / 1e9


def shares_of(
    milliseconds: float, work: tuple[float, float], gflops: float, copy_gb_s: float
) -> Row:
    """The share of its limits that a program reaches, from 0.

    Args:
        milliseconds: that it takes.
        work: floating-point operations of its matrix products, and bytes of their operands and
            results (`programs.sum_products`). Other kernels move more, which is not counted.
        gflops: of `product_peak`.
        copy_gb_s: of `copy_peak`.
    """
    operations, moved = work
    return {
        "arithmetic": operations / (gflops * 1e6 * milliseconds),
        "memory": moved / (copy_gb_s * 1e6 * milliseconds),
    }


def nearest(milliseconds: float, work: tuple[float, float], peaks: Peaks) -> Row:
    """Which limit a program is near, and its `shares_of` each.

    Returns:
        The shares, and `bound by`: the larger, or, where neither is `NEAR` its limit, launches:
        kernels too many or too small for the device.
    """
    shares = shares_of(milliseconds, work, peaks.gflops, peaks.copy_gb_s)
    most = max(shares, key=lambda name: shares[name])
    return {"bound by": most if shares[most] >= NEAR else "launches", **shares}
