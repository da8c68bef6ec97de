"""Where data is looked for and what was prepared from it is kept.

`--data_dir`, or the variable MAML_JAX_DATA, or the usual per-user data folder; `--cache_dir`, or
MAML_JAX_CACHE, or the usual per-user cache folder. Neither is part of a run's configuration: a run
can be resumed where its data lies elsewhere.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from experiments.config import ConfigError

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


def _place(kind: str) -> Path:
    chosen = os.environ.get(VARIABLES[kind])
    if chosen:
        try:
            return Path(chosen).expanduser()
        except RuntimeError:
            raise ConfigError(
                f"--{kind}_dir or {VARIABLES[kind]} is {chosen!r}: there is no such user."
            ) from None
    variable, usual = _USUAL.get(sys.platform, _USUAL["linux"])[kind]
    root = os.environ.get(variable) if variable else None
    return Path(root or usual).expanduser() / "maml_jax"
