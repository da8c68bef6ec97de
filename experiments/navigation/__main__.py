"""2D navigation: the paper's section 5.3 and its Figure 4.

    python -m experiments.navigation --workdir=DIR                       the paper's settings
    python -m experiments.navigation --workdir=DIR --num_seeds=5
    python -m experiments.navigation --workdir=DIR --preset=quick        minutes on a laptop
    python -m experiments.navigation --workdir=DIR --reward=squared_distance
    python -m experiments.navigation --workdir=DIR --policy=recurrent --feedback

A point on the plane must go to a goal. The policy does not observe the goal: adaptation
infers it from the rewards.
"""

from ..core.command import main
from . import EXPERIMENT

main(EXPERIMENT)
