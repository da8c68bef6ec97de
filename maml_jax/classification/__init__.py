"""Few-shot image classification: episodes drawn on the device, cross-entropy, baselines."""

from maml_jax.classification.episodes import (
    CLASS_SPECS,
    ImageSet,
    classification_problem,
    draw_episodes,
    episode_sampler,
    split_classes,
)
from maml_jax.classification.losses import (
    PROTOCOLS,
    JudgedImages,
    LabelledImages,
    cross_entropy,
    judge,
    judged,
)

__all__ = [
    "CLASS_SPECS",
    "PROTOCOLS",
    "ImageSet",
    "JudgedImages",
    "LabelledImages",
    "classification_problem",
    "cross_entropy",
    "draw_episodes",
    "episode_sampler",
    "judge",
    "judged",
    "split_classes",
]
