"""Networks and policies as pure functions: `init(key) -> params`, `apply(params, inputs)`."""

from maml_jax.networks.distributions import Categorical, Gaussian
from maml_jax.networks.image import ImageNetwork, convolutional, fully_connected
from maml_jax.networks.mlp import Network, mlp, num_parameters
from maml_jax.networks.policy import (
    Policy,
    categorical_policy,
    gaussian_policy,
    memoryless_policy,
    recurrent_policy,
)

__all__ = [
    "Categorical",
    "Gaussian",
    "ImageNetwork",
    "Network",
    "Policy",
    "categorical_policy",
    "convolutional",
    "fully_connected",
    "gaussian_policy",
    "memoryless_policy",
    "mlp",
    "num_parameters",
    "recurrent_policy",
]
