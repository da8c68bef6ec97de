"""Few-shot classification of MiniImagenet: the paper's Table 1, lower half.

    python -m experiments.mini_imagenet --workdir=DIR                     5-way 1-shot, paper
    python -m experiments.mini_imagenet --workdir=DIR --num_shots=5
    python -m experiments.mini_imagenet --workdir=DIR --first_order
    python -m experiments.mini_imagenet --workdir=DIR --preset=quick      a short run, for a CPU

The images are ImageNet's and cannot be downloaded for you: docs/few_shot.md says how to lay them
out below --data_dir.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from experiments import few_shot
from experiments.core.command import main
from experiments.core.config import option
from maml_jax.classification.episodes import ROTATIONS
from maml_jax.networks.image import POOLINGS

SUMMARY = "few-shot classification of photographs (MAML paper, section 5.2)"


@dataclasses.dataclass(frozen=True)
class Config(few_shot.Config):
    """Settings of a run on MiniImagenet; defaults are the original code's.

    The paper's text has 2 tasks a meta-batch for 5-shot; the code's command has 4 for both.
    """

    dataset: str = option(
        "mini_imagenet",
        "The images: MiniImagenet, synthetic glyphs, or class folders of your own.",
        choices=("mini_imagenet", "synthetic", "folder"),
    )
    inner_lr: float = option(
        0.05, "Inner step size alpha, on the mean loss; the original's is on N times that.", above=0
    )
    clip: float = option(
        10.0,
        "Bound for each element of the meta-gradient, on the original's scale of the loss, "
        "N * queries / K times the mean; 0 for none.",
        minimum=0,
    )
    num_filters: int = option(32, "Filters of each convolution.", minimum=1)
    pooling: str = option(
        "max",
        "Convolutions of stride 2 and a mean, or 2x2 max-pooling.",
        choices=POOLINGS,
    )
    image_size: int = option(84, "Height and width of images, pixels.", minimum=8)
    channels: int = option(3, "1 for grey images, 3 for colour.", minimum=1, maximum=3)
    invert: bool = option(False, "Whether dark is 1 and white 0 (for ink on paper).")
    rotations: str = option(
        "none",
        "Turns by multiples of 90 degrees: each class of an episode at random, or as new classes.",
        choices=ROTATIONS,
    )
    steps_per_call: int = option(25, "Meta-steps of one dispatch.", minimum=1)

    def defaults(self) -> dict[str, Any]:
        """The paper's values for the chosen shots, for fields that are None."""
        return {"train_queries": 15, "num_tasks": 4, "inner_steps": 5, "report_steps": 10}


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "quick": {
        "meta_steps": 1_000,
        "validate_every": 250,
        "validation_tasks": 100,
        "eval_queries": (0,),
        "protocols": ("transductive",),
    },
}


EXPERIMENT = few_shot.few_shot_experiment("mini_imagenet", SUMMARY, Config, PRESETS)

if __name__ == "__main__":
    main(EXPERIMENT)
