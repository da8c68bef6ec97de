"""Locomotion: half-cheetah and ant, the paper's section 5.3 and its Figure 5.

    python -m experiments.locomotion --workdir=DIR --task=cheetah_direction     the paper's settings
    python -m experiments.locomotion --workdir=DIR --preset=quick                 small, for a CPU
    python -m experiments.locomotion --workdir=DIR --task=cheetah_velocity --physics=brax_spring
    python -m experiments.locomotion --workdir=DIR --mode=render     films of the policies of a run

A robot must run at a goal speed or in a goal direction. The policy does not observe the goal: it
learns it from the rewards that it adapts to.
"""

from ..core.command import main
from . import EXPERIMENT

main(EXPERIMENT)
