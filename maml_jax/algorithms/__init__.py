"""The family of meta-learners: each a `MetaLearner` built from a `Problem` by way of `adapt`."""

from maml_jax.algorithms.maml import maml

__all__ = ["maml"]
