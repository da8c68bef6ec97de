"""Few-shot classification of images: your folder, or any of the data sets below.

    python -m experiments.images --workdir=DIR --dataset=folder --data_dir=PHOTOGRAPHS
    python -m experiments.images --workdir=DIR --dataset=omniglot --num_ways=20
    python -m experiments.images --workdir=DIR --dataset=mini_imagenet --num_shots=5
    python -m experiments.images --workdir=DIR --dataset=synthetic --preset=quick
    python -m experiments.images --workdir=DIR --mode=adapt --support=FOLDER --classify=FOLDER

The paper's data sets have separate experiments, `experiments.omniglot` and
`experiments.mini_imagenet`, with its settings and numbers; --dataset selects them.
"""

from __future__ import annotations

import argparse
import sys

from .. import images, mini_imagenet, omniglot
from ..core.command import main
from ..core.stages import Experiment

EXPERIMENTS = {"omniglot": omniglot.EXPERIMENT, "mini_imagenet": mini_imagenet.EXPERIMENT}


def chosen(arguments: list[str]) -> Experiment:
    """The experiment of the data set in a command line."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--dataset", "-dataset", nargs="?")
    return EXPERIMENTS.get(parser.parse_known_args(arguments)[0].dataset, images.EXPERIMENT)


if __name__ == "__main__":
    main(chosen(sys.argv[1:]))
