"""Evaluates adaptation: query metrics after 0 to S inner steps, with confidence intervals."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from maml_jax import checks, maml, types
from maml_jax import mesh as mesh_lib
from maml_jax.batching import Batching, axis_size, map_tasks, resolve_batching
from maml_jax.inner_loop import Inner, InnerRate
from maml_jax.kernels.dispatch import settle
from maml_jax.types import Batch, LossFn, Metrics, Params, PyTree, Task


class Evaluation(NamedTuple):
    """Metrics of T tasks, from `make_evaluate_fn`; dicts by metric name.

    Attributes:
        per_task: arrays [T, ...]; of an `adaptation_curve` [T, S + 1, ...], where column s holds
            the metric after s inner steps.
        mean: means over tasks, [...].
        ci95: half-widths of the 95 % confidence intervals of these means, [...].

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.evaluation import summarize
        >>> evaluation = summarize({"loss": jnp.array([[4.0, 1.0], [2.0, 1.0]])})  # T = 2, S = 1
        >>> evaluation.mean["loss"].tolist()
        [3.0, 1.0]
    """

    per_task: Metrics
    mean: Metrics
    ci95: Metrics


def adaptation_curve(
    loss_fn: LossFn,
    params: Params,
    task: Task,
    inner_lr: InnerRate,
    num_inner_steps: int,
    *,
    outer_loss: LossFn | None = None,
    initial: Callable[[Params, Batch], Params] | None = None,
    last_only: bool = False,
    **inner: Unpack[Inner],
) -> Metrics:
    """Returns the query metrics of one task before adaptation and after each of S inner steps.

    Args:
        loss_fn: the inner loss, as in `maml_jax.adapt`.
        params: the meta-parameters.
        task: support and query batches.
        inner_lr: alpha, as in `maml_jax.adapt`.
        num_inner_steps: S; may exceed the number of steps in training.
        outer_loss: the loss whose metrics are reported; default `loss_fn`.
        initial: `initial(params, support)` returns initial parameters that depend on the task, for
            example a classifier head of prototypes. Default: `params`.
        last_only: evaluates the query batch after the last step only, which costs less.
        **inner: `inner_optimizer`, `mask` and `batch_per_step` of `maml_jax.adapt`.

    Returns:
        The metrics of the outer loss with `"loss"`; leading axis S + 1, or 1 with `last_only`.

    Raises:
        ValueError, TypeError: as `maml_jax.meta_loss`.

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax import Task, adaptation_curve
        >>> loss_fn = lambda theta, target: ((theta - target) ** 2, {})
        >>> task = Task(support=jnp.array(1.0), query=jnp.array(1.0))
        >>> curve = adaptation_curve(loss_fn, jnp.array(0.0), task, 0.25, num_inner_steps=2)
        >>> curve["loss"].tolist()
        [1.0, 0.25, 0.0625]
    """
    outer = checks.checked_outer_loss(loss_fn, outer_loss, task)
    start = params if initial is None else initial(params, task.support)

    def query_metrics(adapted: Params) -> Metrics:
        return checks.check_metrics(dict(outer(adapted, task.query)[1]), "outer_loss")

    adapted, recorded = maml.adapt(
        loss_fn,
        start,
        task.support,
        inner_lr,
        num_inner_steps,
        monitor=None if last_only else query_metrics,
        **inner,
    )
    if last_only:
        return jax.tree.map(lambda x: jnp.asarray(x)[None], query_metrics(adapted))
    return recorded[1]


def make_evaluate_fn(
    metrics_of_task: Callable[..., Metrics],
    *,
    batching: Batching = None,
    mesh: Mesh | None = None,
) -> Callable[..., Evaluation]:
    """Makes a compiled function that evaluates T tasks and averages their metrics.

    Args:
        metrics_of_task: `metrics_of_task(params, task, *arguments) -> metrics` for one task: an
            `adaptation_curve`, a meta-learner's `evaluate`, or another function that returns a
            dict of arrays.
        batching: how many tasks run at once on each device, see `maml_jax.batching`.
        mesh: a mesh with the one axis "tasks"; default `task_mesh(T)` in each call.

    Returns:
        `evaluate(params, tasks, *arguments) -> Evaluation`, compiled once for each T. `tasks` is a
        pytree with a leading axis of T; all tasks receive the same arguments. It composes with
        `jax.jit` and `jax.vmap`, for example over members.

    Raises:
        ValueError: `batching` is unknown; from `evaluate`: T is 0, or not a multiple of the mesh's
            devices.

    Example:
        >>> import functools
        >>> import jax.numpy as jnp
        >>> from maml_jax import Task, adaptation_curve, make_evaluate_fn
        >>> loss_fn = lambda theta, target: ((theta - target) ** 2, {})
        >>> tasks = Task(support=jnp.array([1.0, 3.0]), query=jnp.array([1.0, 3.0]))
        >>> curve = functools.partial(adaptation_curve, loss_fn, num_inner_steps=1)
        >>> evaluation = make_evaluate_fn(curve)(jnp.array(0.0), tasks, 0.25)
        >>> evaluation.mean["loss"].tolist()  # before and after one inner step
        [5.0, 1.25]
    """
    resolve_batching(batching, 1)

    @functools.partial(jax.jit, static_argnames="used")
    def compiled(params: Params, tasks: PyTree, arguments: tuple[Any, ...], used: Mesh) -> Any:
        def of_tasks(params: Params, tasks: PyTree, arguments: tuple[Any, ...]) -> Metrics:
            return map_tasks(
                lambda task: metrics_of_task(params, task, *arguments), tasks, batching
            )

        whole, split = PartitionSpec(), PartitionSpec(mesh_lib.TASK_AXIS)
        per_task = mesh_lib.on_mesh(of_tasks, used, (whole, split, whole), split)(
            params, tasks, arguments
        )
        return summarize(mesh_lib.gather(per_task, used))

    def evaluate(params: Params, tasks: PyTree, *arguments: Any) -> Evaluation:
        num_tasks = axis_size(tasks)
        if num_tasks < 1:
            raise ValueError("tasks must hold 1 task or more; received a leading axis of 0.")
        used = mesh_lib.task_mesh(num_tasks) if mesh is None else mesh
        mesh_lib.check_mesh(used, num_tasks)
        params, arguments = mesh_lib.replicate((params, arguments), used)
        evaluation = compiled(params, mesh_lib.split_tasks(tasks, used), arguments, used)
        return mesh_lib.bring_home(settle(evaluation, used))

    return evaluate


def summarize(per_task: Metrics) -> Evaluation:
    """Returns the mean and the 95 % interval of each metric over its leading axis of T."""
    return Evaluation(
        per_task,
        jax.tree.map(lambda x: jnp.mean(types.widen(x), axis=0), per_task),
        jax.tree.map(confidence_interval, per_task),
    )


def confidence_interval(values: Any, axis: int = 0) -> Any:
    """Returns `1.96 std / sqrt(T)`, the half-width of the 95 % interval of a mean (paper table 1).

    The standard deviation divides by T, as in the original code.

    Args:
        values: one value per task along `axis`. NumPy arrays are reduced on the host.
        axis: the task axis.

    Example:
        >>> import numpy as np
        >>> from maml_jax import confidence_interval
        >>> accuracy = np.array([0.0, 1.0, 0.0, 1.0])
        >>> round(float(confidence_interval(accuracy)), 2)
        0.49
    """
    if isinstance(values, np.ndarray):  # keeps float64
        return 1.96 * np.std(values, axis=axis) / np.sqrt(values.shape[axis])
    values = types.widen(values)
    return 1.96 * jnp.std(values, axis=axis) / jnp.sqrt(jnp.shape(values)[axis])
