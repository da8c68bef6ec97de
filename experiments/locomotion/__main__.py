"""Locomotion: half-cheetah and ant, the paper's section 5.3 and its Figure 5.

    python -m experiments.locomotion --workdir=DIR --task=cheetah_direction     the paper's settings
    python -m experiments.locomotion --workdir=DIR --preset=quick                 small, for a CPU
    python -m experiments.locomotion --workdir=DIR --task=cheetah_velocity --physics=brax_spring
    python -m experiments.locomotion --workdir=DIR --mode=render     films of the policies of a run

A robot is to run at a speed, or in a direction, that its policy does not see; adaptation finds out.
"""

from ..core.command import main
from . import EXPERIMENT

main(EXPERIMENT)
