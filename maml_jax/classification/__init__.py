"""Few-shot image classification: episodes drawn on the device, cross-entropy and baselines."""

from maml_jax.classification.episodes import (
    classification_problem,
    draw_episodes,
    episode_sampler,
)
from maml_jax.classification.image_sets import CLASS_SPECS, ImageSet, split_classes
from maml_jax.classification.losses import (
    PROTOCOLS,
    LabelledImages,
    QueryImages,
    cross_entropy,
    query_loss,
    with_support_images,
)

__all__ = [
    "CLASS_SPECS",
    "PROTOCOLS",
    "ImageSet",
    "LabelledImages",
    "QueryImages",
    "classification_problem",
    "cross_entropy",
    "draw_episodes",
    "episode_sampler",
    "query_loss",
    "split_classes",
    "with_support_images",
]
