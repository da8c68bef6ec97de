"""Squared error on batches of examples."""

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
    """

    inputs: Array
    targets: Array


def mean_squared_error(apply: Callable[[Params, Array], Array]) -> LossFn:
    """The loss `mean (apply(params, inputs) - targets)^2` (paper section 3.1, with the mean).

    Args:
        apply: `apply(params, inputs) -> predictions` of the shape of the targets.

    Returns:
        `loss_fn(params, examples) -> (loss, {})`; the targets' unit, squared.

    Raises:
        ValueError: (from the loss) predictions and targets differ in shape, which would broadcast.
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
