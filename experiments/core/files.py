"""Files of a run: atomic writes, and reads that check keys and types."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maml_jax.text import printable

NUMBER = (int, float)
_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


class FileError(RuntimeError):
    """A file of a run cannot be used; the message names the file, the fault and the remedy.

    The message is made `printable`: names and contents of files may come from strangers.
    """

    def __init__(self, message: str):
        super().__init__(printable(message, 8_000))


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically, as UTF-8."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON, atomically.

    Raises:
        ValueError: a number is not finite; JSON has no such numbers.
    """
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(
    path: Path,
    keys: Mapping[str, Any],
    optional: Mapping[str, Any] | None = None,
    *,
    advice: str,
) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Args:
        path: the file.
        keys: required keys, each with a type or a tuple of types.
        optional: optional keys, likewise; None to allow any key.
        advice: a sentence for the error message on what to do about an invalid file.

    Raises:
        FileError: the file cannot be read, or does not hold such an object.
    """
    try:
        value = _parse(path.read_bytes(), finite=True)
        check_object(value, keys, optional)
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} {_reason(error)}. {advice}") from None
    return value


def read_json_lines(path: Path, keys: Mapping[str, Any], *, advice: str) -> list[dict[str, Any]]:
    """Reads the JSON objects of a file with one object per line; a missing file has none.

    A last line that a kill cut off is skipped. Numbers may be NaN or infinite.

    Args:
        path: the file.
        keys: required keys of each object, each with a type or a tuple of types; others may follow.
        advice: a sentence for the error message on what to do about an invalid line.

    Raises:
        FileError: the file cannot be read, or a line does not hold such an object.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}.") from None
    *lines, rest = content.split(b"\n")
    objects = []
    for number, line in enumerate([*lines, rest] if rest else lines, 1):
        try:
            value = _parse(line, finite=False)
            check_object(value, keys, None)
        except (ValueError, RecursionError) as error:
            if number > len(lines):
                break
            raise FileError(f"{path}, line {number}, {_reason(error)}. {advice}") from None
        objects.append(value)
    return objects


def check_object(
    value: Any, keys: Mapping[str, Any], optional: Mapping[str, Any] | None, name: str = ""
) -> None:
    """Checks that a JSON value is an object with certain keys.

    Args:
        value: the JSON value.
        keys: required keys, each with a type or a tuple of types.
        optional: optional keys, likewise; None to allow any key.
        name: the position of the value in its file, for the message.

    Raises:
        ValueError: the value is not such an object. The message continues "FILE ...".
    """
    where = f" in {name}" if name else ""
    if not isinstance(value, dict):
        raise ValueError(f"holds {_named(type(value))}{where}; expected an object")
    missing = [key for key in keys if key not in value]
    if missing:
        raise ValueError(f"lacks {', '.join(map(repr, missing))}{where}")
    unknown = () if optional is None else value.keys() - keys.keys() - optional.keys()
    if unknown:
        raise ValueError(f"has an unknown key {min(unknown)!r}{where}")
    for key, kind in {**(optional or {}), **keys}.items():
        if key in value and not is_of(value[key], kind):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            expected = " or ".join(_named(k) for k in kinds if k is not int or float not in kinds)
            raise ValueError(f"has {key!r}: {_shown(value[key])}{where}; expected {expected}")


def is_of(value: Any, kind: Any) -> bool:
    """Returns whether a JSON value has a type, or one of several; a bool is not a number."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds)


def _parse(content: bytes, finite: bool) -> Any:
    """Parses JSON; a ValueError gives the position of an error in the text."""
    text = content.decode("utf-8")
    if not text.strip():
        raise ValueError("is empty")

    def number(text: str) -> float:
        value = float(text)
        if finite and not math.isfinite(value):
            raise ValueError(f"holds {text}, which is not a finite number")
        return value

    return json.loads(text, parse_float=number, parse_constant=number, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        earlier: set[str] = set()
        twice = next(name for name, _ in pairs if name in earlier or earlier.add(name))
        raise ValueError(f"has the key {twice[:60]!r} twice")
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8 text (byte {error.start})"
    if isinstance(error, json.JSONDecodeError):
        where = f"line {error.lineno}, column {error.colno}"
        return f"is not JSON, or is cut off ({where}: {error.msg})"
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    return str(error)


def _named(kind: type) -> str:
    return _NAMES.get(kind, kind.__name__)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
