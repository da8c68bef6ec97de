"""Sums loss gradients over tasks on one device and detects tasks with non-finite gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from maml_jax import checks, types
from maml_jax.batching import Batching, axis_size, resolve_batching
from maml_jax.types import Array, Metrics, Params, Task, TaskLoss


class TaskGradients(NamedTuple):
    """Losses and summed gradient of T tasks.

    Attributes:
        losses: the loss of each task, [T].
        metrics: metrics with a leading axis of T.
        gradient: the gradient of the summed loss, in the form of the parameters, at least float32.
        nonfinite: whether the loss or gradient of each task is not finite, bool [T].
    """

    losses: Array
    metrics: Metrics
    gradient: Params
    nonfinite: Any


def sum_gradient(
    task_loss: TaskLoss,
    params: Params,
    tasks: Task,
    batching: Batching = None,
    single_out: bool = True,
) -> TaskGradients:
    """Returns the gradient of the summed loss of T tasks, in the memory of one chunk of tasks.

    Differentiates one chunk after the other and accumulates their gradients, at least in float32.

    If the sum is not finite although some losses are, the program runs again for single tasks to
    identify those with a non-finite gradient. The loop for this has no reverse-mode derivative;
    `"scan"` does not need it.

    Args:
        task_loss: `task_loss(params, task) -> (scalar, metrics)` for one task.
        params: the parameters to differentiate in.
        tasks: a task pytree with a leading axis of T on every leaf.
        batching: see `maml_jax.batching`.
        single_out: whether to identify single tasks; False marks all tasks of a chunk with a
            non-finite gradient. Set it to False for losses that communicate between devices, which
            must not run again on one device alone.

    Raises:
        ValueError: T is 0, or `batching` is unknown.
        TypeError: `task_loss` does not return a scalar and real metrics.

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.task_gradients import sum_gradient
        >>> loss = lambda theta, target: ((theta - target) ** 2, {})
        >>> terms = sum_gradient(loss, jnp.array(0.0), jnp.array([1.0, 2.0]), batching="scan")
        >>> float(terms.gradient), terms.losses.tolist()
        (-6.0, [1.0, 4.0])
    """
    num_tasks = axis_size(tasks)
    if num_tasks < 1:
        raise ValueError("tasks must hold 1 task or more; received a leading axis of 0.")
    chunk = resolve_batching(batching, num_tasks)

    if chunk == 1 or not single_out:  # a single pass suffices
        terms, bad = _gradients(task_loss, params, tasks, chunk, None)
        bad = jnp.repeat(bad, chunk)[:num_tasks]
        return terms._replace(nonfinite=bad | ~jnp.isfinite(terms.losses))

    def one_pass(turn: Array) -> tuple[TaskGradients, Array]:
        return _gradients(task_loss, params, tasks, chunk, turn)

    # One trace provides both the shapes of the loop's carry and its body.
    closed, shapes = jax.make_jaxpr(one_pass, return_shape=True)(np.int32(0))
    evaluate, form = jex.jaxpr_as_fun(closed), jax.tree.structure(shapes)
    # Pass i >= 1 checks task i of each chunk, or the last task of a shorter chunk.
    starts = jnp.arange(0, num_tasks, chunk)
    sizes = jnp.minimum(chunk, num_tasks - starts)

    def body(carry: Any) -> Any:
        turn, _, nonfinite, terms = carry
        new, bad = jax.tree.unflatten(form, evaluate(turn))
        first = turn == 0
        terms = jax.tree.map(lambda a, b: jnp.where(first, a, b), new, terms)
        index = starts + jnp.clip(turn, 1, sizes) - 1
        nonfinite = nonfinite.at[index].set(jnp.where(first, nonfinite[index], bad))
        # If no loss is finite, the cause is in the parameters, not in single tasks.
        search = jnp.any(jnp.isfinite(new.losses)) & ~types.all_finite(new.gradient)
        return turn + 1, jnp.where(first, search, turn < chunk), nonfinite, terms

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes[0])
    start = (np.int32(0), np.bool_(True), jnp.zeros((num_tasks,), bool), zeros)
    _, _, nonfinite, terms = jax.lax.while_loop(lambda carry: carry[1], body, start)
    return terms._replace(nonfinite=nonfinite | ~jnp.isfinite(terms.losses))


def _gradients(
    task_loss: TaskLoss, params: Params, tasks: Task, chunk: int, turn: Array | None
) -> tuple[TaskGradients, Array]:
    """Runs one pass over the tasks; also returns whether each chunk's gradient is not finite.

    Pass `turn` = 0 takes all tasks of each chunk and skips the check. Pass i >= 1 replaces them by
    the chunk's i-th task. With `turn` None, the pass takes all tasks and checks their gradient.
    """
    num_tasks = axis_size(tasks)

    def checked(p: Params, task: Task) -> tuple[Array, Metrics]:
        loss, metrics = checks.check_loss_output(task_loss(p, task), "task_loss")
        return loss, checks.check_metrics(metrics, "task_loss")

    def part(chunk_tasks: Task) -> tuple[TaskGradients, Array]:
        size = axis_size(chunk_tasks)
        if turn is not None:
            index = jnp.where(turn == 0, jnp.arange(size), jnp.minimum(turn, size) - 1)
            chunk_tasks = jax.tree.map(lambda x: jnp.asarray(x)[index], chunk_tasks)
        losses, metrics, grads = _chunk_gradient(checked, params, chunk_tasks)
        if turn is None:
            bad = ~types.all_finite(grads)
        else:
            bad = jax.lax.cond(turn > 0, lambda g: ~types.all_finite(g), lambda _: False, grads)
        return TaskGradients(losses, metrics, grads, None), bad

    if chunk == num_tasks:
        terms, bad = part(tasks)
        return terms, bad[None]

    whole = num_tasks // chunk
    head = jax.tree.map(lambda x: x[: whole * chunk].reshape(whole, chunk, *x.shape[1:]), tasks)

    def body(total, chunk_tasks):
        terms, bad = part(chunk_tasks)
        total = jax.tree.map(jnp.add, total, terms.gradient)
        return total, (terms.losses, terms.metrics, bad)

    zero = jax.tree.map(lambda p: jnp.zeros_like(types.widen(p)), params)
    total, (*stacked, bad) = jax.lax.scan(body, zero, head)
    losses, metrics = jax.tree.map(lambda x: x.reshape(whole * chunk, *x.shape[2:]), stacked)
    if whole * chunk < num_tasks:
        last, last_bad = part(jax.tree.map(lambda x: x[whole * chunk :], tasks))
        total = jax.tree.map(jnp.add, total, last.gradient)
        losses, metrics, bad = jax.tree.map(
            lambda a, b: jnp.concatenate([a, b]),
            (losses, metrics, bad),
            (last.losses, last.metrics, last_bad[None]),
        )
    return TaskGradients(losses, metrics, total, None), bad


def _chunk_gradient(
    task_loss: TaskLoss, params: Params, tasks: Task
) -> tuple[Array, Metrics, Params]:
    """Returns losses, metrics and the gradient of the summed loss of vmapped tasks."""
    if axis_size(tasks) == 1:  # avoids copies between layouts on a CPU
        alone = jax.tree.map(lambda x: jnp.asarray(x)[0], tasks)
        (loss, metrics), grads = jax.value_and_grad(task_loss, has_aux=True)(params, alone)
        loss, metrics = jax.tree.map(lambda x: jnp.asarray(x)[None], (loss, metrics))
        return loss, metrics, jax.tree.map(types.widen, grads)
    if any(types.is_half(leaf) for leaf in jax.tree.leaves(params)):
        differentiate = jax.vmap(jax.value_and_grad(task_loss, has_aux=True), (None, 0))
        (losses, metrics), grads = differentiate(params, tasks)
        return losses, metrics, jax.tree.map(lambda g: jnp.sum(types.widen(g), axis=0), grads)

    def total(p: Params) -> tuple[Array, tuple[Array, Metrics]]:
        losses, metrics = jax.vmap(task_loss, (None, 0))(p, tasks)
        return jnp.sum(losses), (losses, metrics)

    (_, (losses, metrics)), grads = jax.value_and_grad(total, has_aux=True)(params)
    return losses, metrics, grads
