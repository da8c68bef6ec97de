"""`python -m experiments.navigation`."""

from experiments.core.command import main
from experiments.navigation import EXPERIMENT

main(EXPERIMENT)
