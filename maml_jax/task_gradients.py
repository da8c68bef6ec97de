"""The gradient of a sum of losses over tasks on one device, chunk by chunk, and who spoils it."""

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
    """The terms of T tasks in a meta-step.

    Attributes:
        losses: [T].
        metrics: with a leading axis of T.
        gradient: of the sum of the losses, in the form of the parameters, at least float32.
        nonfinite: bool [T]: whether the loss or the gradient of a task is not finite.
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
    """The gradient of the sum of a loss over tasks, in bounded memory.

    Chunks are differentiated one by one and their gradients added up, so that the memory needed is
    that of one chunk, whatever the number of tasks. Gradients of half-precision parameters are
    added up in float32.

    Where the gradient is not finite although losses are, the same program runs again for single
    tasks, to tell which they are. The loop around it has no reverse-mode derivative; only `"scan"`
    does without it.

    Args:
        task_loss: `task_loss(params, task) -> (scalar, metrics)` for one task.
        params: what to differentiate in.
        tasks: a task pytree with a leading axis of T on every leaf.
        batching: see `maml_jax.batching`.
        single_out: whether to tell which task of a chunk has a gradient that is not finite; else
            all tasks of that chunk are named. For losses that talk to other devices, which must
            not run again on one of them alone.
    """
    num_tasks = axis_size(tasks)
    if num_tasks < 1:
        raise ValueError("tasks must hold 1 task or more; received a leading axis of 0.")
    chunk = resolve_batching(batching, num_tasks)

    if chunk == 1 or not single_out:  # no task is looked at again
        terms, bad = _gradients(task_loss, params, tasks, chunk, None)
        bad = jnp.repeat(bad, chunk)[:num_tasks]
        return terms._replace(nonfinite=bad | ~jnp.isfinite(terms.losses))

    def one_pass(turn: Array) -> tuple[TaskGradients, Array]:
        return _gradients(task_loss, params, tasks, chunk, turn)

    # Traced once, for the shapes of what the loop carries and for the loop.
    closed, shapes = jax.make_jaxpr(one_pass, return_shape=True)(np.int32(0))
    evaluate, form = jex.jaxpr_as_fun(closed), jax.tree.structure(shapes)
    # The task of each chunk that pass i looks at, from i = 1; of a shorter last chunk, the last.
    starts = jnp.arange(0, num_tasks, chunk)
    sizes = jnp.minimum(chunk, num_tasks - starts)

    def body(carry: Any) -> Any:
        turn, _, nonfinite, terms = carry
        new, bad = jax.tree.unflatten(form, evaluate(turn))
        first = turn == 0
        terms = jax.tree.map(lambda a, b: jnp.where(first, a, b), new, terms)
        index = starts + jnp.clip(turn, 1, sizes) - 1
        nonfinite = nonfinite.at[index].set(jnp.where(first, nonfinite[index], bad))
        # Where no loss is finite the parameters are to blame, and no task.
        search = jnp.any(jnp.isfinite(new.losses)) & ~types.all_finite(new.gradient)
        return turn + 1, jnp.where(first, search, turn < chunk), nonfinite, terms

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes[0])
    start = (np.int32(0), np.bool_(True), jnp.zeros((num_tasks,), bool), zeros)
    _, _, nonfinite, terms = jax.lax.while_loop(lambda carry: carry[1], body, start)
    return terms._replace(nonfinite=nonfinite | ~jnp.isfinite(terms.losses))


def _gradients(
    task_loss: TaskLoss, params: Params, tasks: Task, chunk: int, turn: Array | None
) -> tuple[TaskGradients, Array]:
    """One pass over the tasks, and whether the gradient of each chunk is not finite.

    Pass 0 takes the tasks of a chunk and checks nothing; pass i takes its i-th task in the place of
    all. Without a number of the pass it takes the tasks and checks their gradient.
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
    """Losses, metrics, and the gradient of the losses' sum, of tasks that are vmapped."""
    if axis_size(tasks) == 1:  # an axis of one task costs copies between layouts on a CPU
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
