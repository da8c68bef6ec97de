"""The folders of data sets and of the cache: by flag, environment variable, or the user's defaults.

| folder | flag | variable | default on Linux |
|---|---|---|---|
| data sets | `--data_dir` | MAML_JAX_DATA | `~/.local/share/maml_jax` |
| decoded images, compiled programs | `--cache_dir` | MAML_JAX_CACHE | `~/.cache/maml_jax` |

Neither is part of a run's configuration: a run can resume where its data lies elsewhere.
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
    """Returns the folder of data sets."""
    return _place("data")


def cache_dir() -> Path:
    """Returns the folder of decoded images and of compiled programs."""
    return _place("cache")


def expanded(path: str, name: str) -> Path:
    """Replaces `~` or `~USER` at the start of a path by that home folder.

    Args:
        path: the path.
        name: the flag or variable that holds it, for the message.

    Raises:
        ConfigError: the home folder is unknown.
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
