"""What adaptation achieves: metrics after 0 to S inner steps, with intervals over tasks."""

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
    """Query metrics over the course of adaptation, each a dict from the metric's name.

    Attributes:
        per_task: arrays of shape [T, S + 1, ...]; column s is after s inner steps.
        mean: over tasks, [S + 1, ...].
        ci95: half-width of the 95 % interval of that mean, [S + 1, ...].
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
    """The query metrics of one task before adaptation and after each of its S steps.

        curve = functools.partial(adaptation_curve, loss_fn, num_inner_steps=10)
        evaluation = make_evaluate_fn(curve)(params, tasks, 0.01)

    Args:
        loss_fn: the inner loss, as in `maml_jax.adapt`.
        params: the meta-parameters.
        task: support and query.
        inner_lr: alpha, as in `maml_jax.adapt`: for all steps, for each parameter, or `PerStep`.
        num_inner_steps: S; may be more than in training.
        outer_loss: the loss whose metrics are reported; default `loss_fn`.
        initial: `initial(params, support)`, the parameters that adaptation starts from, where they
            depend on the task: a head of prototypes, say. Default `params`.
        last_only: evaluates the query after the last step alone, where that is expensive.
        **inner: `inner_optimizer`, `mask` and `batch_per_step` of `maml_jax.adapt`.

    Returns:
        The metrics of the outer loss with `"loss"`, with a leading axis of S + 1 (or of 1).

    Raises:
        ValueError, TypeError: as `maml_jax.meta_loss`.
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
    """Compiles the evaluation of any number of tasks into one call.

    Args:
        metrics_of_task: `metrics_of_task(params, task, *arguments) -> metrics` of one task: an
            `adaptation_curve`, a meta-learner's `evaluate`, or any function that returns a dict of
            arrays.
        batching: how many tasks at once on each device, see `maml_jax.batching`.
        mesh: a mesh with the one axis "tasks"; default one that fits the tasks of each call.

    Returns:
        `evaluate(params, tasks, *arguments) -> Evaluation`, compiled once for each number of
        tasks. `tasks` is any pytree with a leading axis of T; the arguments are the same for all
        tasks.

    Raises:
        ValueError: an unknown batching; from the function, no tasks, or a mesh that does not fit.
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
    """Mean and 95 % interval over the leading axis of T of every metric."""
    return Evaluation(
        per_task,
        jax.tree.map(lambda x: jnp.mean(types.widen(x), axis=0), per_task),
        jax.tree.map(confidence_interval, per_task),
    )


def confidence_interval(values: Any, axis: int = 0) -> Any:
    """Half-width of the 95 % interval of a mean, `1.96 std / sqrt(T)`, as the paper reports it.

    The standard deviation is the population's (divided by T), as in the original code.

    Args:
        values: one value a task along `axis`; NumPy arrays stay on the host.
        axis: the axis of tasks.
    """
    if isinstance(values, np.ndarray):  # in its own precision: float64 stays
        return 1.96 * np.std(values, axis=axis) / np.sqrt(values.shape[axis])
    values = types.widen(values)
    return 1.96 * jnp.std(values, axis=axis) / jnp.sqrt(jnp.shape(values)[axis])
