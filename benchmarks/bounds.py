"""What a device can do at most, and which of its limits a meta-step is near."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.classification import product_peak
from benchmarks.harness import rotating, sample_times

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
    size = copy_mb * 10**6 // 4
    move = jax.jit(lambda x: x + 1)
    moved = sample_times(rotating(move, [(jnp.zeros(size),), (jnp.ones(size),)]), seconds)
    loop = jax.jit(lambda x: jax.lax.fori_loop(0, 1000, lambda _, y: jnp.sin(y), x))
    small = sample_times(rotating(loop, [(jnp.zeros(8),), (jnp.ones(8),)]), seconds)
    return Peaks(default, highest, half, 8 * size / min(moved) / 1e9, min(small) * 1e3)


def nearest(milliseconds: float, operations: float, moved: float, peaks: Peaks) -> dict[str, Any]:
    """Which limit a program is near, and what share of each it reaches.

    Args:
        milliseconds: it takes.
        operations: of its matrix products, floating point.
        moved: bytes of their operands and results. Other kernels move more, which is not counted.
        peaks: of the device.

    Returns:
        `arithmetic` and `memory`, shares from 0; `bound by`: the larger, or, where neither is
        `NEAR` its limit, launches: kernels too many or too small for the device.
    """
    shares = {
        "arithmetic": operations / (peaks.gflops * 1e6 * milliseconds),
        "memory": moved / (peaks.copy_gb_s * 1e6 * milliseconds),
    }
    most = max(shares, key=lambda name: shares[name])
    return {"bound by": most if shares[most] >= NEAR else "launches", **shares}
