"""Networks as pairs of pure functions: `init(key) -> params`, `apply(params, inputs)`."""

from maml_jax.networks.mlp import Network, mlp

__all__ = ["Network", "mlp"]
