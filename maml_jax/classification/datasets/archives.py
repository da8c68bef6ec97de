"""Reads zip archives of unknown origin: checks each entry and bounds its size."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from zipfile import ZipFile, ZipInfo

from maml_jax.classification.datasets import faults
from maml_jax.classification.datasets.messages import DataError, describe_bytes

ENCRYPTED = 0x1  # of an entry's flag bits


@contextlib.contextmanager
def opened(path: Path) -> Iterator[ZipFile]:
    """Opens a zip archive; errors that it raises become a DataError that names it.

    Raises:
        DataError: the file cannot be read or is not a zip archive.
        MemoryError: the archive's table of contents does not fit into memory.
    """
    with _named(f"{path}", "is not a zip archive, or a damaged one"):
        with path.open("rb") as file:
            what = describe_bytes(file.read(512))
        if what:
            raise DataError(f"{path} is {what}.")
        archive = ZipFile(path)
    with archive:
        yield archive


def entries(archive: ZipFile, most: int) -> list[ZipInfo]:
    """Returns the files of an archive.

    Args:
        archive: an open archive.
        most: maximum size of an unpacked file, bytes.

    Raises:
        DataError: a duplicate name, a path that leaves the archive or has a backslash, an encrypted
            file, or a file larger than `most`.
    """
    names: set[str] = set()
    files = [entry for entry in archive.infolist() if not entry.is_dir()]
    for entry in files:
        where = f"{archive.filename}: {entry.filename}"
        parts = PurePosixPath(entry.filename).parts
        if not parts or parts[0] == "/" or ".." in parts or "\\" in entry.filename:
            raise DataError(
                f"{where} leaves the archive or has a backslash; expected a relative path with /."
            )
        if "/".join(parts) in names:
            raise DataError(f"{where} is in the archive twice. Zip each file once.")
        if entry.flag_bits & ENCRYPTED:
            raise DataError(f"{where} is encrypted. Unpack it and zip it without a password.")
        if entry.file_size > most:
            raise DataError(
                f"{where} unpacks to {entry.file_size:,} bytes; expected {most:,} or fewer."
            )
        names.add("/".join(parts))
    return files


def read(archive: ZipFile, entry: ZipInfo) -> bytes:
    """Returns the content of an entry from `entries`; at most the size that the entry declares."""
    where = f"{archive.filename}: {entry.filename}"
    with _named(where, "is damaged"), archive.open(entry) as file:
        return file.read(entry.file_size)


def check_sha256(path: Path, expected: str, url: str) -> None:
    """Deletes a download and raises a DataError unless its SHA-256 is `expected`."""
    with path.open("rb") as file:
        what = describe_bytes(file.read(512)) or f"another file of {path.stat().st_size:,} bytes"
        file.seek(0)
        received = hashlib.file_digest(file, "sha256").hexdigest()
    if received != expected:
        path.unlink()
        raise DataError(
            f"the download of {url} is {what}: its SHA-256 is {received}, expected {expected}. It "
            "was deleted unread. Download the archive in another way and put it into the data "
            "folder."
        )


@contextlib.contextmanager
def _named(what: str, fault: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except MemoryError:
        raise MemoryError(f"{what} does not fit into memory.") from None
    except NotImplementedError as error:  # a compression method or version that zipfile lacks
        raise DataError(
            f"{what} cannot be unpacked ({error}). Unpack it with the program that created it and "
            "zip it with the method deflate."
        ) from None
    except Exception as error:  # a broken archive can raise nearly any exception
        if isinstance(error, OSError) and faults.is_of_machine(error):
            raise DataError(f"{what} cannot be read: {error.strerror}.") from None
        reason = error or type(error).__name__
        raise DataError(f"{what} {fault} ({reason}). Fetch it again.") from None
