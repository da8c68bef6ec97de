"""Few-shot classification of MiniImagenet: the paper's Table 1, lower half.

    python -m experiments.mini_imagenet --workdir=DIR                     5-way 1-shot, paper
    python -m experiments.mini_imagenet --workdir=DIR --num_shots=5
    python -m experiments.mini_imagenet --workdir=DIR --meta_gradient=first_order
    python -m experiments.mini_imagenet --workdir=DIR --preset=quick      a short run, for a CPU

The images are ImageNet's and cannot be downloaded automatically. docs/few_shot.md shows where to
put them below --data_dir.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from . import images
from .core.command import main
from .core.config import option

SUMMARY = "few-shot classification of photographs (MAML paper, section 5.2)"


@dataclasses.dataclass(frozen=True)
class Config(images.Config):
    """Settings of a run on MiniImagenet; the defaults are the original code's."""

    dataset: str = option(
        "mini_imagenet",
        "The images: MiniImagenet, or synthetic glyphs in colour to try the command without data.",
        choices=("mini_imagenet", "synthetic"),
    )

    def like(self) -> str:
        """Names the kind of images; the synthetic ones are treated as photographs, too."""
        return "photographs"


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


EXPERIMENT = images.images_experiment("mini_imagenet", SUMMARY, Config, PRESETS)

if __name__ == "__main__":
    main(EXPERIMENT)
