"""`python -m experiments.sinusoid`."""

from experiments.core.command import main
from experiments.sinusoid import EXPERIMENT

if __name__ == "__main__":
    main(EXPERIMENT)
