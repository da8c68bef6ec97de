"""Locomotion: half-cheetah and ant, the paper's section 5.3 and its Figure 5.

    python -m experiments.locomotion --workdir=DIR --task=cheetah_direction     the paper's settings
    python -m experiments.locomotion --workdir=DIR --preset=quick                 small, for a CPU
    python -m experiments.locomotion --workdir=DIR --task=cheetah_velocity --physics=brax_spring
    python -m experiments.locomotion --workdir=DIR --mode=render     films of the policies of a run

A robot must run at a goal speed or in a goal direction. The policy does not observe the goal:
adaptation infers it from the rewards.
"""

from ..core.command import main
from . import EXPERIMENT

main(EXPERIMENT)
