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
from collections.abc import Mapping
from typing import Any

from experiments import few_shot, few_shot_adapt, image_data
from experiments.command import main
from experiments.config import option
from experiments.few_shot_sheet import few_shot_sheet
from experiments.runner import Experiment, Outcome, Stage


@dataclasses.dataclass(frozen=True)
class Config(few_shot.Config):
    """Settings of a run on Omniglot; defaults are the paper's for the chosen ways and shots."""

    dataset: str = option(
        "omniglot",
        "The images: Omniglot, synthetic glyphs, or class folders of your own.",
        choices=("omniglot", "synthetic", "folder"),
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
    "quick": {"meta_steps": 9_000, "eval_queries": (0,), "protocols": ("transductive",)},
}


def make_stages(config: Config, seed: int) -> list[Stage]:
    """See `few_shot.make_stages`."""
    return few_shot.make_stages(config, seed, image_data.load(config))


def evaluate(config: Config, seed: int, states: Mapping[str, Any]) -> Outcome:
    """See `few_shot.evaluate`."""
    return few_shot.evaluate(config, seed, image_data.load(config), states)


EXPERIMENT = Experiment(
    name="omniglot",
    summary="few-shot classification of characters (MAML paper, section 5.2)",
    config=Config,
    presets=PRESETS,
    stages=make_stages,
    evaluate=evaluate,
    figure=few_shot_sheet,
    modes={"adapt": few_shot_adapt.adapt_to_images},
    mode_flags={"adapt": few_shot_adapt.FLAGS},
    cpu_threads=1,
    device_per_core=True,
)

if __name__ == "__main__":
    main(EXPERIMENT)
