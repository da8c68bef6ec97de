"""Few-shot classification of Omniglot's characters: the paper's Table 1, upper half.

    python -m experiments.omniglot --workdir=DIR                             5-way 1-shot, paper
    python -m experiments.omniglot --workdir=DIR --num_ways=20 --num_shots=5
    python -m experiments.omniglot --workdir=DIR --network=mlp
    python -m experiments.omniglot --workdir=DIR --preset=quick              minutes on a laptop
    python -m experiments.omniglot --workdir=DIR --mode=adapt --support=FOLDER --classify=FOLDER

The archives are downloaded, unless they lie in --data_dir.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from . import images
from .core.command import main
from .core.config import option

SUMMARY = "few-shot classification of characters (MAML paper, section 5.2)"


@dataclasses.dataclass(frozen=True)
class Config(images.Config):
    """Settings of a run on Omniglot; defaults are the paper's for the chosen ways and shots."""

    dataset: str = option(
        "omniglot",
        "The images: Omniglot, or synthetic glyphs, for a try without data.",
        choices=("omniglot", "synthetic"),
    )
    splitting: str = option(
        "code",
        "Characters at random, 1100/100/423 as the original code or 1200/423 as the paper's text; "
        "or by alphabet, as the data set's authors; or by the lists of Vinyals et al., if they are "
        "there.",
        choices=("code", "paper", "background", "vinyals"),
    )


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "quick": {"meta_steps": 11_000, "eval_queries": (0,), "protocols": ("transductive",)},
}


EXPERIMENT = images.images_experiment("omniglot", SUMMARY, Config, PRESETS)

if __name__ == "__main__":
    main(EXPERIMENT)
