"""Meta-updates that pass the meta-gradient to an optimizer."""

from __future__ import annotations

from typing import Any

import optax

from maml_jax import batching as batching_lib
from maml_jax import checks, maml
from maml_jax.inner_loop import Mask, partition
from maml_jax.types import Array, MetaUpdate, Metrics, Params, PyTree, Task, TaskLoss


def gradient_update(
    loss: TaskLoss,
    optimizer: optax.GradientTransformation,
    *,
    batching: batching_lib.Batching = None,
    mask: Mask = None,
) -> MetaUpdate:
    """Makes the meta-update of Algorithm 1: one optimizer step on the mean loss over tasks.

    Args:
        loss: `loss(params, task) -> (loss, metrics)` for one task, for example a meta-learner's.
        optimizer: an optax transformation. Those with extra arguments receive the mean loss as
            `value=` and the gradient as `grad=`.
        batching: how many tasks run at once on each device, see `maml_jax.batching`.
        mask: selects the leaves to update: a pytree prefix of bools, or a function from the
            parameters to one. Other leaves do not change. Default: all leaves, which must be
            floating point.

    Raises:
        ValueError: `batching` is unknown.
        TypeError: `optimizer` is not an optax transformation.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from maml_jax import gradient_update
        >>> loss = lambda theta, target: ((theta - target) ** 2, {})
        >>> update = gradient_update(loss, optax.sgd(0.25))
        >>> theta = jnp.array(0.0)
        >>> theta, state, _ = update.update(theta, update.init(theta), jnp.array([1.0, 3.0]))
        >>> float(theta)
        1.0
    """
    checks.check_optimizer(optimizer)
    batching_lib.resolve_batching(batching, 1)

    def init(params: Params) -> PyTree:
        if mask is not None:
            return optimizer.init(partition(params, mask).selected)
        checks.check_all_float(params)
        return optimizer.init(params)

    def update(
        params: Params, state: PyTree, tasks: Any, task_loss: Any = loss, single_out: bool = True
    ) -> tuple[Params, PyTree, Metrics]:
        options: Any = {"batching": batching, "single_out": single_out}
        if mask is None:
            return maml.meta_step(task_loss, params, state, tasks, optimizer, **options)
        part = partition(params, mask)
        moved, state, metrics = maml.meta_step(
            part.loss(task_loss), part.selected, state, tasks, optimizer, **options
        )
        return part.combine(moved), state, metrics

    def update_by_keys(draw: Any, single_out: bool) -> Any:
        def drawn_loss(params: Params, key: Array) -> tuple[Array, Metrics]:
            task: Task = draw(key)
            return loss(params, task)

        return lambda params, state, keys: update(params, state, keys, drawn_loss, single_out)

    return MetaUpdate(init, update, update_by_keys)
