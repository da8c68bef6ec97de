"""Meta-learning algorithms: each makes a `MetaLearner` from a `Problem`."""

from maml_jax.algorithms.maml import maml

__all__ = ["maml"]
