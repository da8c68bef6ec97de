"""The task axis on one device: one task's function becomes a meta-batch's.

Problems and losses are written for one task. `"vmap"` runs all tasks as one batched program,
`"scan"` one task after the other, and a whole number runs chunks of that many vmapped tasks one
after the other. The result is the same; time and memory are not (measured:
benchmarks/README.md). `kernels.preferences` says what networks with convolutions prefer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maml_jax.types import PyTree

Batching = str | int | None


def resolve_batching(batching: Batching, num_tasks: int) -> int:
    """The number of tasks that are vmapped together, from 1 (scan) to `num_tasks` (vmap).

    Args:
        batching: "vmap", "scan", a chunk size of 1 or more, or None for "vmap".
        num_tasks: T.

    Raises:
        ValueError: `batching` is none of these.
    """
    if batching is None or batching == "vmap":
        return num_tasks
    if batching == "scan":
        return 1
    if isinstance(batching, (int, np.integer)) and not isinstance(batching, bool) and batching > 0:
        return min(int(batching), num_tasks)
    raise ValueError(
        "batching must be None, 'vmap', 'scan' or a chunk size of 1 or more tasks; "
        f"received {batching!r}."
    )


def map_tasks(fn: Callable[[Any], Any], tasks: PyTree, batching: Batching = None) -> PyTree:
    """Applies `fn` to each task: `jax.vmap(fn)(tasks)`, in the batches of `batching`."""
    chunk = resolve_batching(batching, axis_size(tasks))
    if chunk == axis_size(tasks):
        return jax.vmap(fn)(tasks)
    return jax.lax.map(fn, tasks, batch_size=None if chunk == 1 else chunk)


def axis_size(tasks: PyTree) -> int:
    """T, the length of the leading axis that every leaf of `tasks` shares.

    Raises:
        ValueError: there is no leaf, or leaves disagree.
    """
    leaves = jax.tree.leaves(tasks)
    sizes = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else -1 for leaf in leaves}
    if len(sizes) != 1 or -1 in sizes:
        raise ValueError(
            "tasks must have one leading axis of T tasks on every leaf; received shapes "
            f"{[jnp.shape(leaf) for leaf in leaves]}."
        )
    return sizes.pop()
