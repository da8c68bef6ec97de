"""What adaptation achieves: metrics after 0 to S inner steps, with intervals over tasks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from maml_jax import batching as tasks_lib
from maml_jax import maml, types
from maml_jax.types import Array, LossFn, Metrics, Params, Task

EvaluateFn = Callable[[Params, Task, maml.InnerRate], "Evaluation"]


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
    inner_lr: maml.InnerRate,
    num_steps: int,
    *,
    outer_loss: LossFn | None = None,
    inner_optimizer: optax.GradientTransformation | None = None,
    mask: maml.Mask = None,
    last_only: bool = False,
    batch_per_step: bool = False,
) -> Metrics:
    """The query metrics of one task before adaptation and after each of its S steps.

    Arguments and errors as in `maml.meta_loss`; with `last_only` the query is judged after the
    last step alone, which saves time where judging is expensive.

    Returns:
        The metrics of the outer loss with `"loss"`, each with a leading axis of S + 1 (or of 1).
    """
    if outer_loss is None or outer_loss is loss_fn:
        types.check_same_structure(task)
    else:
        types.check_is_task(task)
    types.check_not_empty(task.query, "query")
    judge = loss_fn if outer_loss is None else outer_loss

    def query_metrics(adapted: Params) -> Metrics:
        loss, metrics = types.check_loss_output(judge(adapted, task.query), "outer_loss")
        return {**types.check_metrics(metrics, "outer_loss"), "loss": loss}

    adapted, seen = maml.adapt(
        loss_fn,
        params,
        task.support,
        inner_lr,
        num_steps,
        inner_optimizer=inner_optimizer,
        mask=mask,
        batch_per_step=batch_per_step,
        monitor=None if last_only else query_metrics,
    )
    if last_only:
        return jax.tree.map(lambda x: jnp.asarray(x)[None], query_metrics(adapted))
    return seen[1]


def make_evaluate_fn(
    loss_fn: LossFn,
    num_steps: int,
    *,
    outer_loss: LossFn | None = None,
    inner_optimizer: optax.GradientTransformation | None = None,
    mask: maml.Mask = None,
    last_only: bool = False,
    batch_per_step: bool = False,
    batching: tasks_lib.Batching = None,
    mesh: Mesh | None = None,
) -> EvaluateFn:
    """Compiles the evaluation of any number of tasks into one call.

    Args:
        loss_fn: the inner loss, `loss_fn(params, batch) -> (loss, metrics)`.
        num_steps: S, inner steps; may be more than in training.
        outer_loss: the loss whose metrics are reported; default `loss_fn`.
        inner_optimizer: as in `maml.adapt`.
        mask: as in `maml.adapt`.
        last_only: whether to judge after the last step alone: the axis of S + 1 is then one of 1.
        batch_per_step: as in `maml.adapt`: whether the support holds a batch for each step.
        batching: how tasks are batched on each device, see `maml_jax.batching`.
        mesh: a mesh with the one axis "tasks"; default one that fits the tasks of each call.

    Returns:
        `evaluate(params, tasks, inner_lr) -> Evaluation`, compiled once for each number of tasks.
    """
    types.check_num_steps(num_steps)

    def curve(params: Params, task: Task, inner_lr: maml.InnerRate) -> Metrics:
        return adaptation_curve(
            loss_fn,
            params,
            task,
            inner_lr,
            num_steps,
            outer_loss=outer_loss,
            inner_optimizer=inner_optimizer,
            mask=mask,
            last_only=last_only,
            batch_per_step=batch_per_step,
        )

    def curves(params: Params, tasks: Task, inner_lr: maml.InnerRate) -> Metrics:
        return tasks_lib.map_tasks(lambda task: curve(params, task, inner_lr), tasks, batching)

    @functools.partial(jax.jit, static_argnames="used")
    def compiled(params: Params, tasks: Task, inner_lr: maml.InnerRate, used: Mesh) -> Evaluation:
        whole, split = PartitionSpec(), PartitionSpec(tasks_lib.TASK_AXIS)
        per_task = jax.shard_map(
            curves, mesh=used, in_specs=(whole, split, whole), out_specs=split, check_vma=False
        )(params, tasks, inner_lr)
        return summarize(tasks_lib.gather(per_task, used))

    def evaluate(params: Params, tasks: Task, inner_lr: maml.InnerRate) -> Evaluation:
        tasks_lib.check_tasks(tasks)
        num_tasks = tasks_lib.axis_size(tasks)
        used = tasks_lib.task_mesh(num_tasks) if mesh is None else mesh
        tasks_lib.check_mesh(used, num_tasks)
        params, inner_lr = tasks_lib.replicate((params, inner_lr), used)
        found = compiled(params, tasks_lib.split_tasks(tasks, used), inner_lr, used)
        return tasks_lib.bring_home(tasks_lib.settle(found, used))

    return evaluate


def summarize(per_task: Metrics) -> Evaluation:
    """Mean and 95 % interval over the leading axis of T of every metric."""
    return Evaluation(
        per_task,
        jax.tree.map(lambda x: jnp.mean(types.widen(x), axis=0), per_task),
        jax.tree.map(confidence_interval, per_task),
    )


def confidence_interval(values: Array, axis: int = 0) -> Array:
    """Half-width of the 95 % interval of a mean, `1.96 std / sqrt(T)`, as the paper reports it.

    The standard deviation is the population's (divided by T), as in the original code.

    Args:
        values: one value a task along `axis`.
        axis: the axis of tasks.
    """
    values = types.widen(values)
    return 1.96 * jnp.std(values, axis=axis) / jnp.sqrt(jnp.shape(values)[axis])
