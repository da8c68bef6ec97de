"""How optax transformations are called: with the loss and the gradient for those that ask."""

from __future__ import annotations

import inspect

import jax
import optax

from maml_jax import meta_gradient
from maml_jax.types import Array, Batch, LossFn, Metrics, Params, PyTree


def update(
    optimizer: optax.GradientTransformation,
    gradient: PyTree,
    state: PyTree,
    params: Params,
    loss: Array,
    name: str,
) -> tuple[PyTree, PyTree]:
    """`optimizer.update`, which gets `value=` (the loss) and `grad=` if it takes them.

    Args:
        optimizer: any optax transformation.
        gradient: of `loss` in `params`.
        state: of the optimizer.
        params: that are updated.
        loss: at `params`, a scalar.
        name: of the argument that `optimizer` is, for the message.

    Returns:
        What is to be added to `params`, and the next state.

    Raises:
        TypeError: the optimizer needs more than that.
    """
    parameters = inspect.signature(optimizer.update).parameters.values()
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    extra = {"value": loss, "grad": gradient}
    taken = {p.name for p in parameters}
    known = {key: value for key, value in extra.items() if takes_any or key in taken}
    try:
        return optimizer.update(gradient, state, params, **known)
    except TypeError as error:
        if "required keyword-only argument" not in str(error):
            raise
        raise TypeError(
            f"{name} receives value= (the loss) and grad= beside the gradient, its state and the "
            f"parameters; it asks for more: {error}."
        ) from error


def optimizer_step(
    optimizer: optax.GradientTransformation,
    loss_fn: LossFn,
    params: Params,
    state: PyTree,
    batch: Batch,
    inner_lr: PyTree,
    mode: str,
) -> tuple[Params, PyTree, Metrics]:
    """One inner step of an optimizer, in the place of `maml.inner_update`.

    Args:
        optimizer: any optax transformation.
        loss_fn: as in `maml.inner_update`, of floating-point parameters.
        params: theta.
        state: of the optimizer.
        batch: the support batch.
        inner_lr: a rate for each leaf of `params`, times which the optimizer's step is added.
        mode: how the step is differentiated.

    Returns:
        theta', the optimizer's next state, and the metrics at theta.
    """
    gradient, metrics = meta_gradient.gradient(loss_fn, mode)(params, batch)
    loss = metrics["loss"]
    if mode == "first_order":  # the step is taken as independent of theta
        loss = jax.lax.stop_gradient(loss)

    def step(params: Params, gradient: PyTree, loss: Array, state: PyTree, inner_lr: PyTree):
        direction, state = update(optimizer, gradient, state, params, loss, "inner_optimizer")
        moved = jax.tree.map(
            lambda p, d, alpha: (p + alpha * d).astype(p.dtype), params, direction, inner_lr
        )
        return moved, state

    if mode == "mixed":  # of an optimizer's step, too, only what goes in is kept
        step = jax.checkpoint(step, prevent_cse=False)
    params, state = step(params, gradient, loss, state, inner_lr)
    return params, state, metrics
