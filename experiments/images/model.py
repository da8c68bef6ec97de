"""The blueprint of a trained classifier: network, inputs and inner loop, without data."""

from __future__ import annotations

from typing import Any

from maml_jax.classification import classification_problem

from ..core.config import ConfigError
from ..core.stages import Blueprint
from .config import Config
from .network import make_network

# Names in the rows of results, where they differ from the stage's.
METHODS = {"pretrained": ("fine-tuning", "nearest neighbour"), "matching": ("matching nets",)}


def make_blueprint(config: Config, method: str, classes: tuple[str, ...]) -> Blueprint:
    """The blueprint of a stage's parameters.

    Args:
        config: of the run.
        method: name of the stage.
        classes: names of the training classes.

    Raises:
        ConfigError: the run has no such stage.
    """
    if method not in (config.maml_name, *METHODS):
        known = ", ".join((config.maml_name, *METHODS))
        raise ConfigError(f"the method must be one of {known}; received {method!r}.")
    outputs = num_training_classes(config, classes) if method == "pretrained" else config.num_ways
    network, description = make_network(config, outputs), _description(config, outputs)
    if method in METHODS:
        return Blueprint(network, description, methods=METHODS[method])
    return Blueprint(
        network,
        description,
        problem=classification_problem(network, *config.episode_sizes, config.rotations),
        inner_lr=config.inner_lr,
        num_inner_steps=config.report_steps,
        inner={"mask": network.mask},
    )


def num_training_classes(config: Config, classes: tuple[str, ...]) -> int:
    """Outputs of the pretrained network: one for each class, or four unless `rotations="none"`.

    Each rotation of a class by a multiple of 90 degrees counts as a class.
    """
    return (4 if config.rotations != "none" else 1) * len(classes)


def _description(config: Config, num_outputs: int) -> dict[str, Any]:
    """The network, its inputs and the test protocols, as JSON."""
    kind = {"kind": "fully connected", "hidden_sizes": list(config.hidden_sizes)}
    if config.network == "conv":
        kind = {
            "kind": "convolutional",
            "num_layers": config.num_layers,
            "num_filters": config.num_filters,
            "pooling": config.pooling,
        }
    ink = config.image_kind == "ink"
    return {
        "network": {
            **kind,
            "norm": config.norm,
            "adapt_norm": config.adapt_norm,
            "dtype": config.dtype,
            "num_outputs": num_outputs,
        },
        "inputs": {
            "shape": [config.image_size, config.image_size, config.channels],
            "kind": config.image_kind,
            "values": "float32 from 0 (white) to 1 (black)" if ink else "float32 from 0 to 1",
            "resample": config.resample,
        },
        "protocols": list(config.protocols),
    }
