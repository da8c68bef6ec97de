"""Standard output and error that never end a run: closed, full, or unable to print a character."""

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
    """Puts streams in the place of `sys.stdout` and `sys.stderr` whose writes cannot fail.

    What a stream cannot take any more goes nowhere; characters that its encoding lacks are
    replaced. A closed file descriptor is opened on the null device, or the next file that the
    process opens would get its number, and with it what is meant for the terminal.

    Args:
        consequence: a note for standard error, once, if standard output is lost; "" for
            nothing.
    """
    null = os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    while null <= 2:
        os.set_inheritable(null, True)
        null = os.open(os.devnull, os.O_RDWR)
    codecs.register_error("maml_jax.plain", _in_plain)
    for name, note in (("stdout", consequence), ("stderr", "")):
        stream = getattr(sys, name)
        try:
            number = null if stream is None else stream.fileno()
        except (OSError, ValueError):  # not a file: whoever put it there knows
            continue
        setattr(sys, name, _over(number, stream, note))


def check_output() -> None:
    """Raises the error that lost standard output, unless its reader has gone.

    Raises:
        OSError: what a command was to show is not whole.
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
    """A file descriptor that is turned to the null device by the first write that fails."""

    def __init__(self, number: int, consequence: str):
        super().__init__(number, "w", closefd=False)
        self._consequence = consequence

    def write(self, data: Any, /) -> int:
        """Writes, or drops what cannot be written."""
        try:
            while (written := super().write(data)) is None:  # a pipe that is full for now
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
    """Replaces what an encoding lacks by plain characters, or by its number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    plain = _PLAIN.get(character) or character.encode("ascii", "backslashreplace").decode()
    return plain, error.start + 1
