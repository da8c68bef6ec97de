"""Works around a deadlock of XLA's CPU client between programs with all-reduces."""

from __future__ import annotations

import jax
from jax.sharding import Mesh

from maml_jax.types import PyTree


def settle(values: PyTree, mesh: Mesh) -> PyTree:
    """Waits for the results of a program over several CPU devices; does nothing elsewhere.

    XLA's CPU client runs independent programs concurrently, on one thread per device. Two programs
    with all-reduces can each hold threads that the other one waits for. Accelerators have no such
    deadlock and may queue the next program early.
    """
    if mesh.size > 1 and mesh.devices.flat[0].platform == "cpu":
        return jax.block_until_ready(values)
    return values
