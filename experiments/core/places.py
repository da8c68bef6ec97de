"""Where data is looked for and what was prepared from it is kept.

`--data_dir`, or the variable MAML_JAX_DATA, or the usual per-user data folder; `--cache_dir`, or
MAML_JAX_CACHE, or the usual per-user cache folder. Neither is part of a run's configuration: a run
can be resumed where its data lies elsewhere.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .config import ConfigError

VARIABLES = {"data": "MAML_JAX_DATA", "cache": "MAML_JAX_CACHE"}
_USUAL = {
    "linux": {"data": ("XDG_DATA_HOME", "~/.local/share"), "cache": ("XDG_CACHE_HOME", "~/.cache")},
    "darwin": {"data": ("", "~/Library/Application Support"), "cache": ("", "~/Library/Caches")},
    "win32": {"data": ("LOCALAPPDATA", "~"), "cache": ("LOCALAPPDATA", "~")},
}


def data_dir() -> Path:
    """The folder in which data sets are looked for."""
    return _place("data")


def cache_dir() -> Path:
    """The folder in which prepared data sets are kept."""
    return _place("cache")


def expanded(path: str, name: str) -> Path:
    """A path whose `~` or `~USER` is replaced by that home folder.

    Args:
        path: that a user gave.
        name: of the flag or variable that holds it.

    Raises:
        ConfigError: there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(
            f"{name}={path}: no home folder is known for {Path(path).parts[0]!r}. Write the path "
            f"in full, or ./{path} for a folder of this name."
        ) from None


def _place(kind: str) -> Path:
    chosen = os.environ.get(VARIABLES[kind])
    if chosen:
        return expanded(chosen, VARIABLES[kind])
    variable, usual = _USUAL.get(sys.platform, _USUAL["linux"])[kind]
    root = os.environ.get(variable) if variable else None
    return expanded(root or usual, VARIABLES[kind] if not root else variable) / "maml_jax"
