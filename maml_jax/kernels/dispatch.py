"""When a program's results are waited for: an XLA deadlock on a CPU."""

from __future__ import annotations

import jax
from jax.sharding import Mesh

from maml_jax.types import PyTree


def settle(values: PyTree, mesh: Mesh) -> PyTree:
    """Waits for the results of a program over several devices of a CPU; else does nothing.

    XLA's CPU client runs programs that do not depend on each other at the same time, on as few
    threads as there are devices; where they hold all-reduces, each can end up waiting for a thread
    that the other has. On accelerators the next program may be dispatched before this one ends.
    """
    if mesh.size > 1 and mesh.devices.flat[0].platform == "cpu":
        return jax.block_until_ready(values)
    return values
