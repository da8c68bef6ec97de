"""Runs the experiments' command line: `python -m maml_jax`, or `maml-jax`."""

import importlib
import importlib.util
import sys


def main() -> None:
    """Runs the installed experiments, or those of the surrounding checkout.

    Raises:
        SystemExit: neither is available.
    """
    for package in ("maml_jax_experiments", "experiments"):
        if importlib.util.find_spec(package) is not None:
            importlib.import_module(f"{package}.__main__").main()
            return
    sys.exit("error: the experiments are not installed: pip install 'maml-jax[experiments]'.")


if __name__ == "__main__":
    main()
