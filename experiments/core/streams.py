"""Standard streams whose errors do not stop a run: closed, full, or lacking a character."""

from __future__ import annotations

import codecs
import io
import os
import select
import sys
from typing import Any

_PLAIN = {"±": "+/-", "…": "..."}  # where the terminal's encoding has no such character
_lost: list[OSError] = []


def protect(consequence: str) -> None:
    """Replaces `sys.stdout` and `sys.stderr` by streams whose writes do not raise.

    A stream that fails discards its output; characters that its encoding lacks are replaced. A
    closed descriptor is opened on the null device: otherwise the next file that the process opens
    would take its number and receive the console's output.

    Args:
        consequence: what follows for the user when standard output fails, printed once on
            standard error; "" prints nothing.
    """
    null = os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    while null <= 2:
        os.set_inheritable(null, True)
        null = os.open(os.devnull, os.O_RDWR)
    codecs.register_error("maml_jax.plain", _in_plain)
    for name, note in (("stdout", consequence), ("stderr", "")):
        stream = getattr(sys, name)
        try:
            number = null if stream is None else stream.fileno()
        except (OSError, ValueError):  # an object without a descriptor, set by a caller
            continue
        setattr(sys, name, _over(number, stream, note))


def check_output() -> None:
    """Checks that all output was written, unless its reader has closed the pipe.

    Raises:
        OSError: the error that made standard output fail.
    """
    sys.stdout.flush()
    for error in _lost:
        if not isinstance(error, BrokenPipeError):
            raise error


def _over(number: int, stream: Any, consequence: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(_Unfailing(number, consequence)),
        encoding=getattr(stream, "encoding", None) or "utf-8",
        errors="maml_jax.plain",
        line_buffering=any(
            getattr(stream, setting, True) for setting in ("line_buffering", "write_through")
        ),
    )


class _Unfailing(io.FileIO):
    """A file descriptor that the first failing write redirects to the null device."""

    def __init__(self, number: int, consequence: str):
        super().__init__(number, "w", closefd=False)
        self._consequence = consequence

    def write(self, data: Any, /) -> int:
        """Writes the data, or discards it if the write fails."""
        try:
            while (written := super().write(data)) is None:  # a full pipe that does not block
                select.select([], [self], [])
            return written
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            if self.fileno() == 1:
                _lost.append(error)
            if self._consequence:
                print(
                    f"note: standard output cannot be written ({error.strerror}); "
                    f"{self._consequence}",
                    file=sys.stderr,
                )
            return len(data)


def _in_plain(error: UnicodeError) -> tuple[str, int]:
    """Replaces a character that the encoding lacks by plain ones, or by its number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    plain = _PLAIN.get(character) or character.encode("ascii", "backslashreplace").decode()
    return plain, error.start + 1
