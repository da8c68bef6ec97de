"""Runs of the paper's experiments: `python -m experiments.NAME --workdir=DIR`."""

import importlib
import importlib.util
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core.models import load_model as load_model

STARTED = time.monotonic()  # of the command, but for the interpreter's own start


def __getattr__(name: str) -> Any:
    """`load_model`, imported on first use: commands start without it."""
    if name == "load_model":
        return importlib.import_module(".core.models", __name__).load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def invocation(name: str) -> str:
    """The words that start an experiment: as installed, or in a checkout."""
    return f"python -m experiments.{name}" if __name__ == "experiments" else f"maml-jax {name}"


def show_invocation() -> None:
    """Makes the text of `--help` show the words by which its reader started the command."""
    main = sys.modules["__main__"]
    main.__doc__ = (main.__doc__ or "").replace("python -m experiments.", invocation(""))


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


for _package in (
    *("absl", "filelock", "matplotlib", "orbax.checkpoint", "safetensors"),
    *("tensorboardX", "tqdm"),
):
    if importlib.util.find_spec(_package.partition(".")[0]) is None:
        require(_package)
