"""Hands the command line to the experiments, if they are installed: `python -m maml_jax`."""

import importlib
import importlib.util
import sys


def main() -> None:
    """Runs `maml-jax`: the installed experiments, or those of the checkout around it."""
    for package in ("maml_jax_experiments", "experiments"):
        if importlib.util.find_spec(package) is not None:
            importlib.import_module(f"{package}.__main__").main()
            return
    sys.exit("error: the experiments are not installed: pip install 'maml-jax[experiments]'.")


if __name__ == "__main__":
    main()
