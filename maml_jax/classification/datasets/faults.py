"""Errors of the machine: they say nothing about what a file holds."""

from __future__ import annotations

import errno
import os

CODES = (
    *(errno.EACCES, errno.EPERM, errno.EROFS),  # rights
    *(
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.EAGAIN,
        errno.EBUSY,
    ),  # what it has too few of
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT),  # disks and networks
)


def is_of_machine(error: BaseException) -> bool:
    """Whether the same file might be read well by another user, at another time or elsewhere.

    C++ libraries raise their own error types; only the text holds the system's reason.
    """
    if isinstance(error, MemoryError) or getattr(error, "errno", None) in CODES:
        return True
    return any(os.strerror(code) in str(error) for code in CODES)
