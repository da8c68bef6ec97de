"""Measures the limits of a device and names the limit that bounds a meta-step."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import SPLIT, Row, rotating, sample_times
from maml_jax import task_mesh
from maml_jax.mesh import on_mesh, split_tasks

NEAR = 0.25  # the share of a limit from which `nearest` reports that limit


class Peaks(NamedTuple):
    """Measured limits of the devices.

    Attributes:
        gflops: rate of large float32 matrix products at the default precision, in GFLOP/s.
        gflops_highest: the same at precision "highest".
        gflops_bfloat16: rate of large bfloat16 matrix products, in GFLOP/s.
        copy_gb_s: rate at which a large elementwise operation reads and writes, in GB/s.
        kernel_us: microseconds of a small operation that depends on the previous one.
    """

    gflops: float
    gflops_highest: float
    gflops_bfloat16: float
    copy_gb_s: float
    kernel_us: float


def measure_peaks(side: int = 8192, copy_mb: int = 1024, seconds: float = 0.5) -> Peaks:
    """Measures the limits of the devices that JAX uses.

    Args:
        side: rows and columns of the matrices.
        copy_mb: size of the copied array, in MB of 1e6 bytes.
        seconds: approximate time spent on the copy and on the small operations, each.
    """
    default = product_peak(side)
    with jax.default_matmul_precision("highest"):
        highest = product_peak(side)
    half = product_peak(side, dtype=jnp.bfloat16)
    loop = jax.jit(lambda x: jax.lax.fori_loop(0, 1000, lambda _, y: jnp.sin(y), x))
    small = sample_times(rotating(loop, [(jnp.zeros(8),), (jnp.ones(8),)]), seconds)
    return Peaks(default, highest, half, copy_peak(copy_mb, seconds), min(small) * 1e3)


def product_peak(side: int = 1024, repeats: int = 10, dtype: Any = jnp.float32) -> float:
    """Measures GFLOP/s of large matrix products on all devices at once.

    The products use the current default matrix precision.

    Args:
        side: rows and columns of the matrices.
        repeats: products in a call.
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
    """Measures the GB/s that an elementwise operation reads and writes on all devices at once.

    Args:
        megabytes: MB read, and as many written; choose more than the caches hold.
        seconds: approximate time to measure for.
    """
    mesh = task_mesh(len(jax.devices()))
    move = jax.jit(on_mesh(lambda x: x + 1, mesh, SPLIT, SPLIT))
    shape = (mesh.size, megabytes * 10**6 // 4 // mesh.size)
    inputs = [(split_tasks(jnp.full(shape, fill), mesh),) for fill in (0.0, 1.0)]
    return 8 * float(np.prod(shape)) / min(sample_times(rotating(move, inputs), seconds)) / 1e9


def shares_of(
    milliseconds: float, work: tuple[float, float], gflops: float, copy_gb_s: float
) -> Row:
    """Returns the share of each limit that a program reaches; 0 means none of it.

    Args:
        milliseconds: run time of the program.
        work: floating-point operations of the program's matrix products, and bytes of their
            operands and results (`programs.sum_products`). The traffic of other kernels is not
            counted.
        gflops: result of `product_peak`.
        copy_gb_s: result of `copy_peak`.
    """
    operations, moved = work
    return {
        "arithmetic": operations / (gflops * 1e6 * milliseconds),
        "memory": moved / (copy_gb_s * 1e6 * milliseconds),
    }


def nearest(milliseconds: float, work: tuple[float, float], peaks: Peaks) -> Row:
    """Names the limit that bounds a program.

    Args:
        milliseconds: as for `shares_of`.
        work: as for `shares_of`.
        peaks: limits of the devices.

    Returns:
        The `shares_of` each limit, and `bound by`: the limit with the larger share, or "launches"
        where both shares are below `NEAR`. There are then too many or too small kernels for the
        device.
    """
    shares = shares_of(milliseconds, work, peaks.gflops, peaks.copy_gb_s)
    most = max(shares, key=lambda name: shares[name])
    return {"bound by": most if shares[most] >= NEAR else "launches", **shares}
