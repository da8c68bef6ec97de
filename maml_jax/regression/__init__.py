"""Few-shot regression: sinusoid tasks (paper section 5.1), squared error and baselines."""

from maml_jax.regression.losses import Examples, mean_squared_error
from maml_jax.regression.sinusoid import Sinusoid, sinusoid_problem

__all__ = ["Examples", "Sinusoid", "mean_squared_error", "sinusoid_problem"]
