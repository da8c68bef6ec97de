"""How optax transformations are called: with the loss and the gradient for those that ask."""

from __future__ import annotations

import inspect

import optax

from maml_jax.types import Array, Params, PyTree


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
