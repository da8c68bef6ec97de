"""JAX's cache of compiled programs: on by default, in the user's cache folder, of bounded size.

With a bound, JAX locks the folder while it reads or writes, so that processes can share it. JAX
writes an entry first and its time of last use second. An entry without a time comes from a killed
process: it may be truncated, and it makes JAX's eviction fail. The next start removes it.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import filelock
import jax

from . import places
from .config import ConfigError
from .process import num_cores

OFF = "off"
MAX_BYTES = 256 << 20  # of the default folder; JAX reads the names of all entries at each write
_LOCK = ".lockfile"  # JAX's name for it
_PATIENCE_S = 5.0


def keep_compiled(chosen: str | None, by_default: bool = True) -> None:
    """Makes JAX keep compiled programs in a folder and load them from there at the next start.

    Call it after `process.lay_out_cpu` and before JAX compiles anything. A folder that cannot be
    used is reported on standard error; the run then compiles everything.

    Args:
        chosen: the folder, or `OFF`. None for the one in JAX's settings
            (`JAX_COMPILATION_CACHE_DIR`), else for `default_folder`, which alone is bounded.
        by_default: whether to use the default folder. The processes of one run should not: JAX
            lets the first of them write alone, and the others would compile while it waits.
    """
    if chosen == OFF:
        jax.config.update("jax_enable_compilation_cache", False)
    if not jax.config.jax_enable_compilation_cache:
        return
    if chosen:
        _use(chosen, "--compilation_cache")
    elif jax.config.jax_compilation_cache_dir:
        _use(jax.config.jax_compilation_cache_dir, "JAX_COMPILATION_CACHE_DIR")
    elif by_default:
        _use_default()


def default_folder() -> Path:
    """The user's folder of compiled programs.

    XLA divides a CPU's programs among its threads when it compiles them, and JAX's key of a
    program does not hold their number: each number has a separate folder.
    """
    threads = os.environ.get("PJRT_NPROC") or num_cores()
    return places.cache_dir() / "compiled" / f"{threads}_threads"


def _use(folder: str, name: str) -> None:
    """Uses a folder that a user gave with the flag or variable `name`; a read-only one is read."""
    if "://" not in folder:  # else a bucket, which JAX opens itself
        path = places.expanded(folder, name)
        folder = str(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            _turn_off(path, error)
            return
        try:
            tempfile.TemporaryFile(dir=path).close()
        except OSError as error:
            _note(f"{path} cannot be written ({error.strerror}): no compiled program is added.")
            jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))
            jax.config.update("jax_compilation_cache_dir", folder)
            return
    jax.config.update("jax_compilation_cache_dir", folder)
    _keep_small_programs()


def _use_default() -> None:
    try:
        folder = default_folder()
    except ConfigError as error:  # no home folder
        _note(f"compiled programs are not kept: {error}")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if hasattr(os, "getuid"):
            _keep_for_this_user(folder)
        tempfile.TemporaryFile(dir=folder).close()
        _remove_incomplete(folder)
    except (OSError, NotImplementedError) as error:  # the second: a file system without locks
        _turn_off(folder, error)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    _set_unless_given("compilation_cache_max_size", MAX_BYTES)
    _set_unless_given("persistent_cache_enable_xla_caches", "none")  # files without a bound
    _keep_small_programs()


def _keep_for_this_user(folder: Path) -> None:
    """Raises if a folder belongs to another user; takes other users' permission to write."""
    status = folder.stat()
    if status.st_uid != os.getuid():
        raise PermissionError(0, "it belongs to another user, whose programs would run here")
    if status.st_mode & 0o022:
        folder.chmod(0o700)
        _note(
            f"other users could write to {folder}; now they cannot. If you do not trust them, "
            "remove the programs in it, which run here."
        )


def _remove_incomplete(folder: Path) -> None:
    with filelock.FileLock(folder / _LOCK).acquire(timeout=_PATIENCE_S):
        for entry in folder.glob("*-cache"):
            if not entry.with_name(entry.name.removesuffix("-cache") + "-atime").exists():
                entry.unlink()


def _keep_small_programs() -> None:
    _set_unless_given("persistent_cache_min_compile_time_secs", 0.1)
    _set_unless_given("persistent_cache_min_entry_size_bytes", 0)


def _set_unless_given(name: str, value: float | str) -> None:
    """Sets JAX's setting of this name, unless the environment does."""
    if f"JAX_{name.upper()}" not in os.environ:
        jax.config.update(f"jax_{name}", value)


def _turn_off(folder: Path, error: Exception) -> None:
    reason = getattr(error, "strerror", None) or error
    _note(
        f"compiled programs cannot be kept in {folder} ({reason}). The run compiles everything; "
        f"--compilation_cache=DIR names another folder, --compilation_cache={OFF} none."
    )
    jax.config.update("jax_enable_compilation_cache", False)


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
