"""From the tasks of all devices to one report: the place that forms means and counts.

Every meta-update ends here: `pool` adds up over tasks and devices with one all-reduce, `report`
makes the metrics that `training.check_finite` reads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from maml_jax import mesh, types
from maml_jax.batching import axis_size
from maml_jax.types import Array, Metrics, Params, PyTree


class Pooled(NamedTuple):
    """The results of a meta-step's tasks, the same on every device.

    Attributes:
        losses: of every task, [T].
        nonfinite: whether a task's loss or gradient is not finite, bool [T].
        metrics: means over tasks.
        values: means over tasks: the meta-gradient, most often.
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
    """Adds up what each device has of its tasks, by one all-reduce.

    Args:
        losses: of this device's tasks, [t].
        nonfinite: whether the loss or gradient of a task is not finite, bool [t]; None to go by
            the losses.
        metrics: of the tasks, leaves [t, ...].
        sums: pytree of sums over this device's tasks, such as the gradient of the sum of losses.
    """
    losses = types.widen(losses)
    bad = ~jnp.isfinite(losses) if nonfinite is None else nonfinite
    local_tasks = axis_size(losses)
    num_tasks = local_tasks * mesh.num_devices()
    counts = bad.astype(jnp.float32)
    means = jax.tree.map(lambda x: jnp.sum(_as_float(x), axis=0) / num_tasks, metrics)
    values = jax.tree.map(lambda x: x / num_tasks, sums)
    if mesh.num_devices() > 1:  # each device fills in its tasks
        start = mesh.first_task(local_tasks)
        losses, counts = (
            jax.lax.dynamic_update_slice(jnp.zeros((num_tasks,), x.dtype), x, (start,))
            for x in (losses, counts)
        )
    losses, counts, means, values = mesh.sum_over_devices((losses, counts, means, values))
    return Pooled(losses, counts > 0, means, values)


def report(pooled: Pooled, gradient: PyTree, params: Params) -> Metrics:
    """The metrics of a meta-step: means over tasks, and what is not finite.

    Args:
        pooled: of the step's tasks.
        gradient: of all tasks together, or its norm.
        params: after the step.

    Returns:
        `pooled.metrics` with `"loss"`, `"nonfinite_losses"` and `"nonfinite_tasks"` (how many
        tasks had a loss, or a loss or a gradient, that is not finite), `"first_nonfinite_task"`
        (the first of these, or -1) and `"nonfinite_update"` (1 if the gradient of all tasks, or a
        parameter after the step, is not finite).
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
    """The mean over the leading axis of T, and over the devices of a task mesh.

    Args:
        values: floating-point arrays with a leading axis of a device's tasks; on a mesh every
            device has the same number of tasks, and one all-reduce carries all values.
    """
    return mesh.mean_over_devices(jax.tree.map(lambda x: jnp.mean(types.widen(x), axis=0), values))


def _as_float(x: Any) -> Array:
    return types.widen(x) if types.is_float(x) else jnp.asarray(x, jnp.result_type(float))
