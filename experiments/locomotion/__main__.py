"""`python -m experiments.locomotion`."""

from experiments.core.command import main
from experiments.locomotion import EXPERIMENT

main(EXPERIMENT)
