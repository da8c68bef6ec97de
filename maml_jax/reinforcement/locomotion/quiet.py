"""Loading models without the warnings of MuJoCo's compiler."""

# mujoco's compiled half has no types.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import mujoco


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps off the terminal what the compiler says of attributes in the shipped model files."""
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        mujoco.set_mju_user_warning(None)
