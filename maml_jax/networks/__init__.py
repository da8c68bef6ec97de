"""Networks as pairs of pure functions: `init(key) -> params`, `apply(params, inputs)`."""

from maml_jax.networks.image import ImageNetwork, convolutional, fully_connected
from maml_jax.networks.mlp import Network, mlp, num_parameters

__all__ = [
    "ImageNetwork",
    "Network",
    "convolutional",
    "fully_connected",
    "mlp",
    "num_parameters",
]
