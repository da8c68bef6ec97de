r"""Several seeds, inner step sizes and meta learning rates of an experiment, in one program.

    python -m experiments.sweep --experiment=sinusoid --workdir=DIR \
        --seeds=0,1,2 --inner_lr=0.001,0.01 --meta_lr=1e-3,3e-3

Every combination is a member with a directory of its own in DIR, as if it had been run there alone.
Other settings are the experiment's, and the same for all members.
"""

from __future__ import annotations

import argparse
import sys

from experiments import sweep
from experiments.core import command
from experiments.core.config import ConfigError


def main() -> None:
    """The command line; which flags there are depends on --experiment."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--experiment", nargs="?")
    name = parser.parse_known_args()[0].experiment
    try:
        experiment = sweep.make_experiment(name)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    command.main(experiment, sweep.run)


if __name__ == "__main__":
    main()
