"""Errors and warnings about data; their text is safe to print for any file name."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable

from maml_jax.text import printable


class DataError(ValueError):
    """Raised for invalid data; the message names the file or class and the expected form.

    Example:
        >>> from maml_jax.classification.datasets import DataError
        >>> str(DataError("a.png is an empty file"))
        'a.png is an empty file'
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


class DataWarning(UserWarning):
    """Warns of data that was skipped, converted or is suspicious.

    Example:
        >>> import warnings
        >>> from maml_jax.classification.datasets import DataWarning
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", DataWarning)  # skipped files become errors
        ...     warnings.warn("skipped in data: notes.txt", DataWarning)
        Traceback (most recent call last):
        ...
        maml_jax.classification.datasets.messages.DataWarning: skipped in data: notes.txt
    """


def note(message: str) -> None:
    """Warns (`DataWarning`) of data that was skipped, converted or is suspicious."""
    warnings.warn(printable(message), DataWarning, stacklevel=2)


def listed(names: Iterable[object], most: int = 8) -> str:
    """Joins the first `most` names with commas, and counts the others."""
    shown = [str(name) for name in names]
    rest = len(shown) - most
    return ", ".join(shown[:most]) + (f" and {rest} more" if rest > 0 else "")


def describe_bytes(data: bytes) -> str:
    """Names a common kind of file that replaces an image or archive by mistake; "" for others."""
    start = data[:512].lstrip().lower()
    if not data:
        return "an empty file"
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        return "an HTML page: a web page was downloaded instead of the file"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer: fetch the file itself with `git lfs pull`"
    if start.startswith(b"%!ps"):
        return "a PostScript program, which is not run: convert it to PNG"
    return ""


def short_digest(parts: Iterable[str]) -> str:
    """Returns a short fingerprint of the parts of a data set."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.encode("utf-8", "surrogatepass") + b"\0")
    return sha.hexdigest()[:16]
