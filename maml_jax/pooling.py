"""Reduces task results over tasks and devices to the metrics of a meta-step.

Every meta-update ends with these functions: `pool` sums over tasks and devices with one all-reduce,
and `report` makes the metrics that `check_finite` reads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from maml_jax import mesh, types
from maml_jax.batching import axis_size
from maml_jax.types import Array, Metrics, Params, PyTree


class Pooled(NamedTuple):
    """Results of the tasks of a meta-step, equal on all devices.

    Attributes:
        losses: the loss of each task, [T].
        nonfinite: whether the loss or gradient of each task is not finite, bool [T].
        metrics: means over tasks.
        values: means over tasks of `sums` in `pool`, for example the meta-gradient.
    """

    losses: Array
    nonfinite: Array
    metrics: Metrics
    values: PyTree

    @property
    def loss(self) -> Array:
        """The mean loss, a scalar."""
        return jnp.mean(self.losses)


def pool(losses: Array, nonfinite: Array | None, metrics: Metrics, sums: PyTree = ()) -> Pooled:
    """Averages the results of all devices' tasks, by one all-reduce.

    Args:
        losses: losses of this device's t tasks, [t].
        nonfinite: whether the loss or gradient of each task is not finite, bool [t]. None is for
            updates without a gradient per task: it counts the tasks with a non-finite loss.
        metrics: metrics of the tasks, leaves [t, ...].
        sums: pytree of sums over this device's tasks, for example the gradient of the summed loss.

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.pooling import pool
        >>> pooled = pool(jnp.array([1.0, 3.0]), None, {}, sums={"gradient": jnp.array(4.0)})
        >>> float(pooled.loss), float(pooled.values["gradient"])
        (2.0, 2.0)
    """
    losses = types.widen(losses)
    bad = ~jnp.isfinite(losses) if nonfinite is None else nonfinite
    local_tasks = axis_size(losses)
    num_tasks = local_tasks * mesh.num_devices()
    counts = bad.astype(jnp.float32)
    means = jax.tree.map(lambda x: jnp.sum(_as_float(x), axis=0) / num_tasks, metrics)
    values = jax.tree.map(lambda x: x / num_tasks, sums)
    if mesh.num_devices() > 1:  # the sum then joins the tasks of all devices
        start = mesh.first_task(local_tasks)
        losses, counts = (
            jax.lax.dynamic_update_slice(jnp.zeros((num_tasks,), x.dtype), x, (start,))
            for x in (losses, counts)
        )
    losses, counts, means, values = mesh.sum_over_devices((losses, counts, means, values))
    return Pooled(losses, counts > 0, means, values)


def report(pooled: Pooled, gradient: PyTree, params: Params) -> Metrics:
    """Returns the metrics of a meta-step: means over tasks, and counts of non-finite values.

    Args:
        pooled: the results of the step's tasks.
        gradient: the meta-gradient, or its norm.
        params: the parameters after the step.

    Returns:
        `pooled.metrics` and these scalars:

        ======================== ===================================================================
        `"loss"`                 mean loss over tasks
        `"nonfinite_losses"`     number of tasks with a non-finite loss
        `"nonfinite_tasks"`      number of tasks with a non-finite loss or gradient
        `"first_nonfinite_task"` index of the first of these tasks, or -1
        `"nonfinite_update"`     1 if the meta-gradient or a new parameter is not finite, else 0
        ======================== ===================================================================

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.pooling import pool, report
        >>> pooled = pool(jnp.array([1.0, jnp.nan]), None, {})
        >>> metrics = report(pooled, gradient=(), params=jnp.zeros(3))
        >>> [int(metrics[name]) for name in ("first_nonfinite_task", "nonfinite_update")]
        [1, 0]
    """
    bad = pooled.nonfinite
    return {
        **pooled.metrics,
        "loss": pooled.loss,
        "nonfinite_losses": jnp.sum(~jnp.isfinite(pooled.losses)),
        "nonfinite_tasks": jnp.sum(bad),
        "first_nonfinite_task": jnp.where(jnp.any(bad), jnp.argmax(bad), -1),
        "nonfinite_update": 1 - types.all_finite((gradient, params)).astype(jnp.int32),
    }


def mean_over_tasks(values: PyTree) -> PyTree:
    """Returns the mean over the leading task axis and the devices of a task mesh.

    Args:
        values: floating-point arrays with a leading axis of this device's tasks. All devices hold
            the same number of tasks. One all-reduce carries all values.

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.pooling import mean_over_tasks
        >>> float(mean_over_tasks(jnp.array([1.0, 3.0])))
        2.0
    """
    return mesh.mean_over_devices(jax.tree.map(lambda x: jnp.mean(types.widen(x), axis=0), values))


def _as_float(x: Any) -> Array:
    return types.widen(x) if types.is_float(x) else jnp.asarray(x, jnp.result_type(float))
