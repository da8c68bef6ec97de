"""Runs of the paper's experiments: `python -m experiments.NAME --workdir=DIR`."""

import importlib
import importlib.util
import time

STARTED = time.monotonic()  # of the command, but for the interpreter's own start


def require(module: str):
    """Imports a package that experiments need and the library does not.

    Raises:
        SystemExit: it is missing; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise SystemExit(
            f"experiments need the package {name!r} ({error}). Install what they need with: "
            "pip install 'maml-jax[experiments]' (in a checkout: pip install -e '.[experiments]')."
        ) from None


for _package in ("absl", "filelock", "matplotlib", "orbax.checkpoint", "tensorboardX", "tqdm"):
    if importlib.util.find_spec(_package.partition(".")[0]) is None:
        require(_package)
