"""Errors and warnings about data, whose text is safe to print whatever a file calls itself."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable

from maml_jax.text import printable


class DataError(ValueError):
    """Data that cannot be used; the message names the file or class, expected and received."""

    def __init__(self, message: str):
        super().__init__(printable(message))


class DataWarning(UserWarning):
    """Data that was skipped, converted, or looks wrong."""


def note(message: str) -> None:
    """Warns (`DataWarning`) of what was skipped, converted, or looks wrong."""
    warnings.warn(printable(message), DataWarning, stacklevel=2)


def listed(names: Iterable[object], most: int = 8) -> str:
    """The first names, and how many more there are."""
    shown = [str(name) for name in names]
    rest = len(shown) - most
    return ", ".join(shown[:most]) + (f" and {rest} more" if rest > 0 else "")


def describe_bytes(data: bytes) -> str:
    """What a file that should be an image or an archive is instead; "" if that cannot be told."""
    start = data[:512].lstrip().lower()
    if not data:
        return "an empty file"
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        return "an HTML page: the download was of a web page, not of the file"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer: fetch the file itself with `git lfs pull`"
    if start.startswith(b"%!ps"):
        return "a PostScript program, which is not run: convert it to PNG"
    return ""


def short_digest(parts: Iterable[str]) -> str:
    """A short name for what a data set was made from."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.encode("utf-8", "surrogatepass") + b"\0")
    return sha.hexdigest()[:16]
