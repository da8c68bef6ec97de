"""The task axis on one device: applies a function of one task to a meta-batch.

Problems and losses are written for one task. `batching` sets how many tasks run at once:

============= ========================================================
`"vmap"`      all tasks, as one batched program; the default
`"scan"`      one task after the other
an integer n  chunks of n vmapped tasks, one chunk after the other
============= ========================================================

The choice changes time and memory (benchmarks/README.md), not the result. `kernels.preferences`
lists the fastest choice for convolutional networks on each platform.
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
    """Returns how many tasks are vmapped together, from 1 (scan) to `num_tasks` (vmap).

    Args:
        batching: "vmap", "scan", a chunk size of 1 or more, or None for "vmap".
        num_tasks: T.

    Raises:
        ValueError: `batching` has another value.

    Example:
        >>> from maml_jax.batching import resolve_batching
        >>> [resolve_batching(batching, num_tasks=32) for batching in ("vmap", "scan", 8)]
        [32, 1, 8]
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
    """Applies `fn` to each task, as `jax.vmap(fn)(tasks)` does, with bounded memory.

    Args:
        fn: a function of one task.
        tasks: a pytree with a leading axis of T on every leaf.
        batching: how many tasks run at once, see the module.

    Returns:
        The outputs of `fn`, with a leading axis of T.

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.batching import map_tasks
        >>> map_tasks(jnp.sum, jnp.ones((4, 3)), batching=2).tolist()
        [3.0, 3.0, 3.0, 3.0]
    """
    chunk = resolve_batching(batching, axis_size(tasks))
    if chunk == axis_size(tasks):
        return jax.vmap(fn)(tasks)
    return jax.lax.map(fn, tasks, batch_size=None if chunk == 1 else chunk)


def axis_size(tasks: PyTree) -> int:
    """Returns T, the length of the leading axis that all leaves of `tasks` share.

    Raises:
        ValueError: the tree has no leaves, or leaves of different lengths.

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.batching import axis_size
        >>> axis_size({"inputs": jnp.ones((4, 3)), "targets": jnp.ones(4)})
        4
    """
    leaves = jax.tree.leaves(tasks)
    sizes = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else -1 for leaf in leaves}
    if len(sizes) != 1 or -1 in sizes:
        raise ValueError(
            "tasks must have one leading axis of T tasks on every leaf; received shapes "
            f"{[jnp.shape(leaf) for leaf in leaves]}."
        )
    return sizes.pop()
