"""The squared-error loss and its batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from maml_jax.types import Array, LossFn, Params


class Examples(NamedTuple):
    """A batch for regression.

    Attributes:
        inputs: [K, number of inputs].
        targets: [K, number of outputs].

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.regression import Examples
        >>> batch = Examples(inputs=jnp.zeros((5, 2)), targets=jnp.zeros((5, 1)))
        >>> batch.inputs.shape, batch.targets.shape
        ((5, 2), (5, 1))
    """

    inputs: Array
    targets: Array


def mean_squared_error(apply: Callable[[Params, Array], Array]) -> LossFn:
    """Makes the loss `mean (apply(params, inputs) - targets)^2`.

    Source: paper section 3.1, equation 2. Departure: a mean over examples replaces the sum.

    Args:
        apply: `apply(params, inputs) -> predictions` of the shape of the targets.

    Returns:
        `loss_fn(params, examples) -> (loss, {})`. The loss is a scalar in the squared unit of the
        targets.

    Raises:
        ValueError: (from the loss) predictions and targets differ in shape. They would broadcast.

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.regression import Examples, mean_squared_error
        >>> loss_fn = mean_squared_error(lambda slope, inputs: slope * inputs)
        >>> batch = Examples(inputs=jnp.array([[1.0], [2.0]]), targets=jnp.array([[2.0], [7.0]]))
        >>> loss, metrics = loss_fn(2.0, batch)
        >>> float(loss)
        4.5
    """

    def loss_fn(params: Params, examples: Examples) -> tuple[Array, dict[str, Array]]:
        predictions = apply(params, examples.inputs)
        if jnp.shape(predictions) != jnp.shape(examples.targets):
            raise ValueError(
                "predictions and targets must have the same shape; received "
                f"{jnp.shape(predictions)} and {jnp.shape(examples.targets)}."
            )
        return jnp.mean(jnp.square(predictions - examples.targets)), {}

    return loss_fn
