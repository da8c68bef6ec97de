"""Imports MAML from checkouts of libraries whose packages do not install here.

An environment variable names the checkout of each. Only the modules that its MAML needs are
imported, and none of the packages' `__init__` files, which import data sets and simulators.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from pathlib import Path
from typing import Any

CHECKOUTS = {"learn2learn": "LEARN2LEARN", "jax_meta": "JAX_META"}
_PARTS = {
    "learn2learn": ("learn2learn", "learn2learn.algorithms"),
    "jax_meta": ("jax_meta", "jax_meta.metalearners"),
}


def find_maml(package: str) -> Any:
    """Imports the class MAML of a package; returns None if its variable is not set.

    Args:
        package: "learn2learn" or "jax_meta".

    Raises:
        SystemExit: the variable names a folder without the package.
    """
    folder = os.environ.get(CHECKOUTS[package])
    if not folder:
        return None
    last = _PARTS[package][-1]
    if not (Path(folder) / last.replace(".", "/") / "maml.py").is_file():
        raise SystemExit(
            f"{CHECKOUTS[package]} must be a checkout with {package}/; received {folder!r}."
        )
    for name in _PARTS[package]:
        if name not in sys.modules:
            bare = types.ModuleType(name)
            bare.__path__ = [str(Path(folder) / name.replace(".", "/"))]
            sys.modules[name] = bare
    return importlib.import_module(f"{last}.maml").MAML
