"""Silences what Brax and MuJoCo print and warn of at every start. Imports neither."""

# mujoco's compiled module has no types.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Silences the imports of Brax and mjx.

    mjx prints that its Warp implementation (unused here) is not installed. Brax warns that its
    environments are no longer maintained.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the compiler's warnings about attributes in Brax's model files."""
    import mujoco

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        mujoco.set_mju_user_warning(before)
