"""Model-agnostic meta-learning: lines 4 to 8 of the paper's Algorithm 1.

Finn, Abbeel, Levine 2017, arXiv 1703.03400v3; docs/algorithm.md shows the paper's lines beside this
code. The loop over meta-steps and the draw of their tasks, lines 2 and 3, are in `training`. Every
function is pure and raises ValueError or TypeError for invalid arguments. Shared arguments:

    loss_fn          loss_fn(params, batch) -> (scalar loss, metrics), for one task
    params           theta, any pytree; floating-point leaves are adapted, others pass through
    inner_lr         alpha: a number, a pytree prefix of params, or PerStep(rates) with a leading
                     axis of S for rates that differ between steps; differentiable
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

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax import inner_update
        >>> loss_fn = lambda theta, target: ((theta - target) ** 2, {})
        >>> theta, metrics = inner_update(loss_fn, jnp.array(0.0), jnp.array(1.0), inner_lr=0.25)
        >>> float(theta), float(metrics["loss"])
        (0.5, 1.0)
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
    """Adapts to one task: takes S steps of `inner_update` on the support batch.

    `monitor(params)` returns values to record before the first step and after each step.

    Returns:
        The adapted parameters; and the metrics at the start of each step [S]. With a `monitor`,
        the second output is the pair of these metrics and the recorded values [S + 1].

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax import adapt
        >>> loss_fn = lambda theta, target: ((theta - target) ** 2, {})
        >>> theta, metrics = adapt(loss_fn, jnp.array(0.0), jnp.array(1.0), 0.25, num_inner_steps=2)
        >>> float(theta), metrics["loss"].tolist()
        (0.75, [1.0, 0.25])
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
    """Returns a task's query loss after adaptation on its support batch (section 2.2).

    Its gradient in `params` is the task's term of the meta-gradient (line 8). `outer_loss` is the
    loss on the query batch, in the form of `loss_fn`, which is the default.

    Returns:
        The query loss, a scalar; and `{"support": ..., "query": ...}`: the metrics of each inner
        step [S] and those on the query batch, both with `"loss"`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from maml_jax import Task, meta_loss
        >>> loss_fn = lambda theta, target: ((theta - target) ** 2, {})
        >>> task = Task(support=jnp.array(1.0), query=jnp.array(2.0))
        >>> loss = lambda theta, mode: meta_loss(loss_fn, theta, task, 0.25, mode=mode)[0]
        >>> [float(jax.grad(loss)(jnp.array(0.0), mode)) for mode in ("reverse", "first_order")]
        [-1.5, -3.0]
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

    `task_loss(params, task) -> (loss, metrics)` is a meta-learner's loss, for example. `tasks` has
    a leading axis of T, or of this device's share of T on a mesh. `batching` sets how many tasks
    run at once (`maml_jax.batching`); `single_out` is that of `task_gradients.sum_gradient`. The
    optimizer receives the mean gradient over tasks, where the paper has the sum; those with extra
    arguments receive the loss as `value=` and the gradient as `grad=`.

    Returns:
        theta, the optimizer's state, and metrics: the means of the task metrics over tasks,
        `"loss"`, and the counts of non-finite values that `check_finite` reads.

    Example:
        >>> import functools
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from maml_jax import Task, meta_loss, meta_step
        >>> loss_fn = lambda theta, target: ((theta - target) ** 2, {})
        >>> task_loss = functools.partial(meta_loss, loss_fn, inner_lr=0.25)
        >>> tasks = Task(support=jnp.array([1.0, 3.0]), query=jnp.array([1.0, 3.0]))  # T = 2
        >>> sgd, theta = optax.sgd(1.0), jnp.array(0.0)
        >>> theta, _, metrics = meta_step(task_loss, theta, sgd.init(theta), tasks, sgd)
        >>> float(theta), float(metrics["loss"])
        (1.0, 1.25)
    """
    # Line 4, and the gradient of line 8.
    terms = task_gradients.sum_gradient(task_loss, params, tasks, batching, single_out)
    # Mean over tasks and devices.
    pooled = pooling.pool(terms.losses, terms.nonfinite, terms.metrics, terms.gradient)
    gradient = jax.tree.map(lambda g, p: g.astype(p.dtype), pooled.values, params)
    step, optimizer_state = optimizers.update(
        meta_optimizer, gradient, optimizer_state, params, pooled.loss, "meta_optimizer"
    )
    params = optax.apply_updates(params, step)
    return params, optimizer_state, pooling.report(pooled, gradient, params)
