"""Runs the experiments' command line: `python -m maml_jax`, or `maml-jax`."""

import importlib
import importlib.util
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]  # or the folder of installed packages


def main() -> None:
    """Runs the experiments of the checkout that this file lies in, else the installed ones.

    Raises:
        SystemExit: neither is available.
    """
    ours = CHECKOUT / "experiments" / "__init__.py"
    spec = importlib.util.find_spec("maml_jax_experiments")
    package = "maml_jax_experiments" if spec else None
    if ours.exists() and (CHECKOUT / "setup.cfg").exists():
        installed_from_here = spec and spec.origin and Path(spec.origin).resolve() == ours
        if not installed_from_here:  # those of another version may be installed
            sys.path.insert(0, str(CHECKOUT))
            package = "experiments"
    if package is None:
        sys.exit("error: the experiments are not installed: pip install 'maml-jax[experiments]'.")
    importlib.import_module(f"{package}.__main__").main()


if __name__ == "__main__":
    main()
