"""Model-agnostic meta-learning: Algorithm 1 of the paper and nothing else.

Finn, Abbeel, Levine 2017, arXiv 1703.03400v3; docs/algorithm.md has its lines beside these. Every
function is pure. Parameters and batches are pytrees that nothing here looks into.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import jax
import optax

from maml_jax import checks, inner_loop, meta_gradient, optimizers, pooling, task_gradients
from maml_jax.inner_loop import Inner, InnerRate, Mask
from maml_jax.types import Array, Batch, LossFn, Metrics, Params, PyTree, Task, TaskLoss


def inner_update(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    inner_lr: InnerRate,
    *,
    mask: Mask = None,
    mode: str = "reverse",
) -> tuple[Params, Metrics]:
    """Takes one gradient step on one task: theta' = theta - alpha grad L(theta) (lines 5 and 6).

    Args:
        loss_fn: `loss_fn(params, batch) -> (scalar loss, metrics)` for one task.
        params: theta, any pytree; floating-point leaves are adapted, others pass through.
        batch: the task's support batch, any pytree.
        inner_lr: alpha: a number, or a pytree prefix of `params` whose leaves broadcast against
            the leaves below them (Meta-SGD). Differentiable.
        mask: a pytree prefix of `params` of bools, or a function from `params` to one: what is
            adapted. The rest stays, and still gets its meta-gradient.
        mode: how the step is differentiated, one of `meta_gradient.MODES`.

    Returns:
        theta' in the form of `params`; and the metrics of `loss_fn` with `"loss"`, at theta.

    Raises:
        ValueError: no float leaf, a loss that is not a scalar, an `inner_lr` or `mask` that does
            not fit `params`, an unknown mode, an array without elements in `batch`.
        TypeError: `loss_fn` does not return a loss and a dict; a complex parameter is adapted.
    """
    part = inner_loop.partition(params, mask)
    theta, alpha = part.selected, part.rates(inner_lr)
    gradient, metrics = meta_gradient.gradient(part.loss(loss_fn), mode)(theta, batch)
    theta = jax.tree.map(lambda p, a, g: (p - a * g).astype(p.dtype), theta, alpha, gradient)
    return part.combine(theta), metrics


def adapt(
    loss_fn: LossFn,
    params: Params,
    support: Batch,
    inner_lr: InnerRate,
    num_inner_steps: int = 1,
    *,
    inner_optimizer: optax.GradientTransformation | None = None,
    mask: Mask = None,
    mode: str = "reverse",
    batch_per_step: bool = False,
    monitor: Callable[[Params], PyTree] | None = None,
) -> tuple[Params, Any]:
    """Adapts to one task: `inner_update`, S times.

    Args:
        loss_fn: as in `inner_update`, as are `params`, `mask` and `mode`.
        params: theta.
        support: the task's support batch, the same in every step unless `batch_per_step`.
        inner_lr: as in `inner_update`, or `PerStep(rates)`, rates with a leading axis of S.
        num_inner_steps: S, 0 or more. A Python int.
        inner_optimizer: any optax transformation, started afresh; alpha times its update is
            added. It has to point downhill, as optax's optimizers do, and receives the support
            loss as `value=` and the gradient as `grad=`. With a learning rate of its own,
            `optax.adam(0.01)` say, it goes with `inner_lr=1.0`. Default: the plain gradient step.
        mask: what is adapted.
        mode: how the steps are differentiated.
        batch_per_step: whether every leaf of `support` has a leading axis of S, a batch a step.
        monitor: a function of the parameters, evaluated before the first and after each step.

    Returns:
        The adapted parameters; and the metrics of each step [S], taken before the step. With a
        `monitor` the second is the pair `(metrics, monitored)`, the latter [S + 1].

    Raises:
        ValueError: as `inner_update`; S below 0; rates or batches for another number of steps.
        TypeError: as `inner_update`; S is no int; the optimizer needs more than it receives.
    """
    part = inner_loop.partition(params, mask)
    per_step, of_step = inner_loop.schedule(
        part, inner_lr, support, num_inner_steps, batch_per_step
    )
    loss = part.loss(loss_fn)

    def step(carry: Any, own: Any) -> Any:
        (theta, state), (alpha, batch) = carry, of_step(own)
        if inner_optimizer is None:
            new, metrics = inner_update(loss, theta, batch, alpha, mode=mode)
        else:
            new, state, metrics = optimizers.inner_update(
                inner_optimizer, loss, theta, state, batch, alpha, mode
            )
        return (new, state), (metrics, monitor and monitor(part.combine(theta)))

    start = part.selected, inner_optimizer and inner_optimizer.init(part.selected)
    (theta, _), (metrics, monitored) = inner_loop.repeat(
        step, start, per_step, num_inner_steps, recompute=mode == "remat"
    )
    adapted = part.combine(theta)
    if monitor is None:
        return adapted, metrics
    return adapted, (metrics, inner_loop.append(monitored, monitor(adapted)))


def meta_loss(
    loss_fn: LossFn,
    params: Params,
    task: Task,
    inner_lr: InnerRate,
    num_inner_steps: int = 1,
    *,
    outer_loss: LossFn | None = None,
    **inner: Unpack[Inner],
) -> tuple[Array, Metrics]:
    """The loss on a task's query batch after adapting on its support batch (section 2.2).

    Its gradient in `params` is the task's term of the meta-gradient (line 8).

    Args:
        loss_fn: the inner loss, as in `inner_update`.
        params: the meta-parameters theta.
        task: support and query batch.
        inner_lr: alpha, as in `adapt`.
        num_inner_steps: S. With 0 this is plain multi-task learning on the query batch.
        outer_loss: the loss on the query batch, in the form of `loss_fn`; default `loss_fn`.
        **inner: `inner_optimizer`, `mask`, `mode` and `batch_per_step` of `adapt`.

    Returns:
        The query loss, a scalar; and `{"support": ..., "query": ...}`: the metrics of each inner
        step [S] and those on the query batch, both with `"loss"`.

    Raises:
        ValueError: as `adapt`; support and query of different structure when one loss serves both.
        TypeError: as `adapt`; a task without support and query.
    """
    outer = checks.checked_outer_loss(loss_fn, outer_loss, task)
    adapted, support = adapt(loss_fn, params, task.support, inner_lr, num_inner_steps, **inner)
    loss, query = outer(adapted, task.query)
    return loss, {"support": support, "query": query}


def meta_step(
    task_loss: TaskLoss,
    params: Params,
    optimizer_state: PyTree,
    tasks: Task,
    meta_optimizer: optax.GradientTransformation,
    *,
    batching: str | int | None = None,
    single_out: bool = True,
) -> tuple[Params, PyTree, Metrics]:
    """One meta-step: theta <- theta - beta grad sum_i L_i(theta_i') (lines 4 to 8).

    Args:
        task_loss: `task_loss(params, task) -> (loss, metrics)` for one task: `meta_loss`, by
            `functools.partial(meta_loss, loss_fn, inner_lr=0.1)`, or a meta-learner's loss.
        params: the meta-parameters theta, floating-point leaves only.
        optimizer_state: `meta_optimizer.init(params)`, or from the step before.
        tasks: a batch of tasks, a leading axis of T on every leaf. On a device mesh, this device's.
        meta_optimizer: any optax transformation, for the mean over tasks. It receives the mean
            loss as `value=` and the gradient as `grad=`, if it takes them.
        batching: how many tasks at once, see `maml_jax.batching`.
        single_out: see `task_gradients.sum_gradient`.

    Returns:
        theta, the optimizer's state, and metrics: those of `task_loss` averaged over tasks,
        `"loss"`, and what `check_finite` reads, see `pooling.report`.

    Raises:
        ValueError: `tasks` is no batch of tasks.
        TypeError: the optimizer needs more than it receives.
    """
    terms = task_gradients.sum_gradient(task_loss, params, tasks, batching, single_out)
    pooled = pooling.pool(terms.losses, terms.nonfinite, terms.metrics, terms.gradient)
    gradient = jax.tree.map(lambda g, p: g.astype(p.dtype), pooled.values, params)
    step, optimizer_state = optimizers.update(
        meta_optimizer, gradient, optimizer_state, params, pooled.loss, "meta_optimizer"
    )
    params = optax.apply_updates(params, step)
    return params, optimizer_state, pooling.report(pooled, gradient, params)
