"""Model-agnostic meta-learning: Algorithm 1 of the paper and nothing else.

Finn, Abbeel, Levine 2017, arXiv 1703.03400v3; docs/algorithm.md has its lines beside these. Every
function is pure and raises ValueError or TypeError for what does not fit. Shared arguments:

    loss_fn          loss_fn(params, batch) -> (scalar loss, metrics), for one task
    params           theta, any pytree; floating-point leaves are adapted, others pass through
    inner_lr         alpha: a number, or a pytree prefix of params (differentiable); for steps that
                     differ, PerStep(rates) with a leading axis of S
    num_inner_steps  S, a Python int
    **inner          mask, mode, inner_optimizer, batch_per_step: see `inner_loop.Inner`
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
    """Takes one gradient step on one task: theta' = theta - alpha grad L(theta) (lines 5, 6).

    Returns:
        theta' in the form of `params`; and the metrics of `loss_fn` with `"loss"`, at theta.
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
    monitor: Callable[[Params], PyTree] | None = None,
    **inner: Unpack[Inner],
) -> tuple[Params, Any]:
    """Adapts to one task: `inner_update`, S times.

    Returns:
        The adapted parameters; and the metrics of each step [S], taken before the step. With a
        `monitor`, a function of the parameters, the second is the pair `(metrics, monitored)`, the
        latter before the first and after each step [S + 1].
    """
    options = inner_loop.options(**inner)
    part = inner_loop.partition(params, options.mask)
    per_step, of_step = inner_loop.schedule(
        part, inner_lr, support, num_inner_steps, options.batch_per_step
    )
    loss, mode, optimizer = part.loss(loss_fn), options.mode, options.inner_optimizer

    def step(carry: Any, this_step: Any) -> Any:
        (theta, state), (alpha, batch) = carry, of_step(this_step)
        if optimizer is None:
            new, metrics = inner_update(loss, theta, batch, alpha, mode=mode)
        else:
            new, state, metrics = optimizers.optimizer_step(
                optimizer, loss, theta, state, batch, alpha, mode
            )
        return (new, state), (metrics, monitor and monitor(part.combine(theta)))

    start = part.selected, optimizer and optimizer.init(part.selected)
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

    Its gradient in `params` is the task's term of the meta-gradient (line 8). `outer_loss` is the
    loss on the query batch, in the form of `loss_fn`, which is the default.

    Returns:
        The query loss, a scalar; and `{"support": ..., "query": ...}`: the metrics of each inner
        step [S] and those on the query batch, both with `"loss"`.
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
    """Takes one meta-step: theta <- theta - beta grad sum_i L_i(theta_i') (lines 4 to 8).

    `task_loss(params, task)` is a meta-learner's loss, or `functools.partial(meta_loss, loss_fn,
    inner_lr=0.1)`; `tasks` has a leading axis of T (on a device mesh, this device's tasks), and
    `batching` says how many are taken at once (`maml_jax.batching`). The optimizer gets the mean
    over tasks, with the loss as `value=` and the gradient as `grad=`, if it takes them.

    Returns:
        theta, the optimizer's state, and metrics: the means of `task_loss`'s over tasks, `"loss"`,
        and those of `pooling.report`, for `check_finite`.
    """
    terms = task_gradients.sum_gradient(task_loss, params, tasks, batching, single_out)
    pooled = pooling.pool(terms.losses, terms.nonfinite, terms.metrics, terms.gradient)
    gradient = jax.tree.map(lambda g, p: g.astype(p.dtype), pooled.values, params)
    step, optimizer_state = optimizers.update(
        meta_optimizer, gradient, optimizer_state, params, pooled.loss, "meta_optimizer"
    )
    params = optax.apply_updates(params, step)
    return params, optimizer_state, pooling.report(pooled, gradient, params)
