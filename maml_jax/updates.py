"""How meta-parameters move: the meta-gradient handed to an optimizer."""

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
    """The update of Algorithm 1: one step of an optimizer on the mean loss over tasks.

        learner = algorithms.maml(problem, inner_lr=0.1)
        train = make_train_fn(problem.sample, gradient_update(learner.loss, optax.adam(1e-3)), ...)

    Args:
        loss: `loss(params, task) -> (loss, metrics)` for one task: a meta-learner's, or any other.
        optimizer: any optax transformation. It receives the mean loss as `value=` and the gradient
            as `grad=`, if it takes them.
        batching: how many tasks at once on each device, see `maml_jax.batching`.
        mask: which meta-parameters move: a pytree prefix of bools, or a function from the
            parameters to one. Others stay bit for bit. Default all, which have to be floats.

    Raises:
        ValueError: an unknown batching.
        TypeError: `optimizer` is no optax transformation.
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
