"""The paper's experiments as commands: `python -m experiments.NAME --workdir=DIR`."""

import importlib
import importlib.util
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core.models import load_model as load_model

STARTED = time.monotonic()  # start of the command, without that of the interpreter


def __getattr__(name: str) -> Any:
    """`load_model`, imported on first use: commands start without it."""
    if name == "load_model":
        return importlib.import_module(".core.models", __name__).load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def invocation(name: str) -> str:
    """Returns the command of an experiment, as installed or as in a checkout."""
    return f"python -m experiments.{name}" if __name__ == "experiments" else f"maml-jax {name}"


def show_invocation() -> None:
    """Makes `--help` show commands as `invocation` has them."""
    main = sys.modules["__main__"]
    main.__doc__ = (main.__doc__ or "").replace("python -m experiments.", invocation(""))


def require(module: str):
    """Imports a package that the experiments need and the library does not.

    Raises:
        SystemExit: the package is missing; the message names the extra that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise SystemExit(
            f"experiments need the package {name!r} ({error}). Install their packages with: "
            "pip install 'maml-jax[experiments]' (in a checkout: pip install -e '.[experiments]')."
        ) from None


for _package in (
    *("absl", "filelock", "matplotlib", "orbax.checkpoint", "safetensors"),
    *("tensorboardX", "tqdm"),
):
    if importlib.util.find_spec(_package.partition(".")[0]) is None:
        require(_package)
