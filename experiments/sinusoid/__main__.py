"""Few-shot sinusoid regression: the paper's section 5.1, Figures 2 and 3, and appendix C.

    python -m experiments.sinusoid --workdir=DIR                        the paper's settings
    python -m experiments.sinusoid --workdir=DIR --preset=quick         a minute or two
    python -m experiments.sinusoid --workdir=DIR --num_seeds=3 --inner_lr=0.001,0.01
    python -m experiments.sinusoid --workdir=DIR --mode=adapt --support=points.csv

A run trains each method once and adapts it with each K of --num_shots. All methods are evaluated on
the same test functions, on an even grid of inputs.
"""

from ..core.command import main
from . import EXPERIMENT

if __name__ == "__main__":
    main(EXPERIMENT)
