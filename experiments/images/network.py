"""Builds the network of a configuration."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from maml_jax.networks import ImageNetwork, convolutional, fully_connected

from ..core.config import ConfigError
from .config import Config


def make_network(config: Config, num_outputs: int | None = None) -> ImageNetwork:
    """Builds the classifier.

    Args:
        config: of the run.
        num_outputs: default N.

    Raises:
        ConfigError: the images are too small for its layers.
    """
    outputs = config.num_ways if num_outputs is None else num_outputs
    dtype = jnp.bfloat16 if config.dtype == "bfloat16" else None
    shape = (config.image_size, config.image_size, config.channels)
    shared: Any = {"norm": config.norm, "adapt_norm": config.adapt_norm, "dtype": dtype}
    try:
        if config.network == "mlp":
            return fully_connected(shape, outputs, config.hidden_sizes, **shared)
        return convolutional(
            shape,
            outputs,
            num_filters=config.num_filters,
            num_layers=config.num_layers,
            pooling=config.pooling,
            **shared,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
