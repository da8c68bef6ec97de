"""Loaders of image data sets for few-shot classification; each split is one uint8 array."""

from maml_jax.classification.datasets.folder import load_folder
from maml_jax.classification.datasets.glyphs import synthetic_glyphs
from maml_jax.classification.datasets.images import ImageClasses, check_episodes, describe
from maml_jax.classification.datasets.messages import DataError, DataWarning
from maml_jax.classification.datasets.mini_imagenet import load_mini_imagenet
from maml_jax.classification.datasets.omniglot import load_omniglot
from maml_jax.classification.datasets.reading import Reading

__all__ = [
    "DataError",
    "DataWarning",
    "ImageClasses",
    "Reading",
    "check_episodes",
    "describe",
    "load_folder",
    "load_mini_imagenet",
    "load_omniglot",
    "synthetic_glyphs",
]
