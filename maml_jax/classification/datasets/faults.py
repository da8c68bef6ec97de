"""Recognises errors of the machine, which reveal nothing about the content of a file."""

from __future__ import annotations

import errno
import os

CODES = (
    *(errno.EACCES, errno.EPERM, errno.EROFS),  # permissions
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EBUSY),  # exhausted resources
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT),  # disks and networks
)


def is_of_machine(error: BaseException) -> bool:
    """Returns whether an error comes from the machine, not from the content of a file.

    Another user, another time or another machine may then read the same file. C++ libraries raise
    other types of error, which hold the system's reason in their text alone.
    """
    if isinstance(error, MemoryError) or getattr(error, "errno", None) in CODES:
        return True
    return any(os.strerror(code) in str(error) for code in CODES)
