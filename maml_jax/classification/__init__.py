"""Few-shot image classification: episodes drawn on the device, cross-entropy, baselines."""

from maml_jax.classification.episodes import (
    ImageSet,
    classification_problem,
    draw_episodes,
    episode_sampler,
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
]
