"""Few-shot classification of Omniglot's characters: the paper's Table 1, upper half.

    python -m experiments.omniglot --workdir=DIR                             5-way 1-shot, paper
    python -m experiments.omniglot --workdir=DIR --num_ways=20 --num_shots=5
    python -m experiments.omniglot --workdir=DIR --network=mlp
    python -m experiments.omniglot --workdir=DIR --preset=quick              minutes on a laptop
    python -m experiments.omniglot --workdir=DIR --mode=adapt --support=FOLDER --classify=FOLDER

The data set is downloaded unless --data_dir holds its archives.
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
    """Settings of a run on Omniglot; the defaults are the paper's for the given ways and shots."""

    dataset: str = option(
        "omniglot",
        "The images: Omniglot, or synthetic glyphs to try the command without data.",
        choices=("omniglot", "synthetic"),
    )
    splitting: str = option(
        "code",
        "The split into training, validation and test characters: code, 1100/100/423 at random as "
        "in the original code; paper, 1200/423 at random as in the paper's text; background, by "
        "alphabet as by the data set's authors; vinyals, by the lists of Vinyals et al., which "
        "must lie beside the archives.",
        choices=("code", "paper", "background", "vinyals"),
    )


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "quick": {"meta_steps": 11_000, "eval_queries": (0,), "protocols": ("transductive",)},
}


EXPERIMENT = images.images_experiment("omniglot", SUMMARY, Config, PRESETS)

if __name__ == "__main__":
    main(EXPERIMENT)
