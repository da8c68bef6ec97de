"""Calls optax transformations, with the loss and the gradient for those that accept them."""

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
    """Calls `optimizer.update`, with `value=` (the loss) and `grad=` if it accepts them.

    Args:
        optimizer: an optax transformation.
        gradient: gradient of `loss` in `params`.
        state: state of the optimizer.
        params: the current parameters.
        loss: loss at `params`, a scalar.
        name: name of the argument that holds `optimizer`, for the message.

    Returns:
        The update to add to `params`, and the next state.

    Raises:
        TypeError: the optimizer requires further arguments.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from maml_jax import optimizers
        >>> theta, sgd = jnp.array(1.0), optax.sgd(0.5)
        >>> step, _ = optimizers.update(
        ...     sgd, 2 * theta, sgd.init(theta), theta, loss=theta**2, name="meta_optimizer")
        >>> float(step)
        -1.0
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
            f"parameters; it requires further arguments: {error}."
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
    """Takes one inner step with an optimizer, in place of `maml.inner_update`.

    Args:
        optimizer: an optax transformation.
        loss_fn: as in `maml.inner_update`, of floating-point parameters.
        params: theta.
        state: state of the optimizer.
        batch: the support batch.
        inner_lr: a rate for each leaf of `params`; multiplies the optimizer's update.
        mode: how the step is differentiated, one of `meta_gradient.MODES`.

    Returns:
        theta', the optimizer's next state, and the metrics at theta.
    """
    gradient, metrics = meta_gradient.gradient(loss_fn, mode)(params, batch)
    loss = metrics["loss"]
    if mode == "first_order":  # the update must not depend on theta through the loss
        loss = jax.lax.stop_gradient(loss)

    def step(params: Params, gradient: PyTree, loss: Array, state: PyTree, inner_lr: PyTree):
        direction, state = update(optimizer, gradient, state, params, loss, "inner_optimizer")
        moved = jax.tree.map(
            lambda p, d, alpha: (p + alpha * d).astype(p.dtype), params, direction, inner_lr
        )
        return moved, state

    if mode == "mixed":  # stores only the inputs of the optimizer's step
        step = jax.checkpoint(step, prevent_cse=False)
    params, state = step(params, gradient, loss, state, inner_lr)
    return params, state, metrics
