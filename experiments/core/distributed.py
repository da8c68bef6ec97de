"""Runs of several processes: `jax.distributed`, and decisions that process 0 makes for all.

Every process runs the same program on its devices; a meta-batch is split over the devices of all
processes. Process 0 alone writes logs, figures and results; all write and read checkpoints.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from maml_jax import member_mesh

from .config import ConfigError

LOST = (
    "lost another process of this run: it ended, or cannot be reached. The same command, for all "
    "processes, continues from the last checkpoint."
)
LOST_CODE = 4  # exit status
_START_TIMEOUT_S = 900  # a cluster may take minutes to restart all processes


class FirstProcessError(RuntimeError):
    """Process 0 cannot start or continue; its output gives the reason."""

    def __init__(self):
        super().__init__("process 0 of this run could not continue; its output gives the reason.")


def connect(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    heartbeat_timeout_s: int,
) -> None:
    """Joins the other processes of a run, before JAX starts its devices.

    Args:
        coordinator: "HOST:PORT" of process 0, or None where the cluster gives it (SLURM, Open MPI,
            Kubernetes, Cloud TPU).
        num_processes: number of processes, or None likewise.
        process_id: index of this process, from 0, or None likewise.
        heartbeat_timeout_s: seconds without a heartbeat after which a process counts as lost.

    Raises:
        ConfigError: the flags contradict each other, the cluster gives no address, or the other
            processes cannot be reached.
    """
    address = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    given = [name for name, value in address.items() if value is not None]
    if given and len(given) < len(address):
        missing = ", ".join(f"--{name}" for name in address if name not in given)
        raise ConfigError(f"--{given[0]} needs {missing}, too; or give none of the three.")
    if num_processes is not None and not 0 <= (process_id or 0) < num_processes:
        raise ConfigError(
            f"--process_id must be from 0 to {num_processes - 1}; received {process_id}."
        )
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=_START_TIMEOUT_S,
            heartbeat_timeout_seconds=heartbeat_timeout_s,
        )
    except (ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        where = coordinator or "the address in the cluster's environment"
        raise ConfigError(
            f"could not join the run at {where}: {reason} Give --coordinator=HOST:PORT, "
            "--num_processes and --process_id where the cluster does not."
        ) from None


def is_first() -> bool:
    """Returns whether this process writes logs and results."""
    return jax.process_index() == 0


def any_of(*flags: bool) -> tuple[bool, ...]:
    """Returns for each flag whether any process sets it; all processes call this together."""
    if jax.process_count() == 1:
        return flags
    everyone = multihost_utils.process_allgather(np.array(flags, np.bool_))
    return tuple(bool(flag) for flag in np.any(np.atleast_2d(everyone), axis=0))


def of_first(values: np.ndarray) -> np.ndarray:
    """Returns process 0's values, of the same shape in all; all processes call this together."""
    if jax.process_count() == 1:
        return values
    return np.asarray(multihost_utils.broadcast_one_to_all(values))


def check_same_settings(identity: Any) -> None:
    """Checks that every process has the same settings.

    Raises:
        ConfigError: some differ, and so would data that must be equal in all processes.
    """
    text = json.dumps(identity, sort_keys=True).encode()
    digest = np.frombuffer(hashlib.sha256(text).digest()[:8], np.uint32)
    (differs,) = any_of(bool(np.any(of_first(digest) != digest)))
    if differs:
        raise ConfigError(
            "the processes of this run were given different flags; give all the same."
        )


def warn_if_not_split(num_tasks: int, num_members: int = 1) -> None:
    """Warns if neither tasks nor members can be divided among the processes."""
    count = jax.process_count()
    if count > 1 and is_first() and not member_mesh(num_members, num_tasks).is_multi_process:
        print(
            f"warning: {num_tasks} tasks cannot be divided evenly among {count} processes, so that "
            "each computes all of them; choose --num_tasks as a multiple of the processes.",
            file=sys.stderr,
        )


def first_decides(question: Callable[[], bool]) -> bool:
    """Calls a function in process 0 alone and returns its answer in all processes.

    Raises:
        FirstProcessError: in the other processes, if the function raised in process 0.
    """
    if jax.process_count() == 1:
        return question()
    answer, raised = -1, None
    if is_first():
        try:
            answer = int(question())
        except Exception as error:  # raised again below, after the broadcast
            raised = error
    answer = int(multihost_utils.broadcast_one_to_all(np.int32(answer)))
    if raised is not None:
        raise raised
    if answer < 0:
        raise FirstProcessError
    return bool(answer)


def wait_for_all(what: str) -> None:
    """Waits for all processes: one that ended earlier would close connections in use."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def is_lost(error: BaseException) -> bool:
    """Returns whether an error indicates the end of another process."""
    signs = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "Gloo", "NCCL", "heartbeat", "Barrier")
    runtimes = isinstance(error, jax.errors.JaxRuntimeError)
    return jax.process_count() > 1 and runtimes and any(sign in str(error) for sign in signs)


def leave_if_lost(error: BaseException) -> None:
    """Ends this process with a message if an error indicates the end of another process.

    It ends at once: an orderly shutdown would wait for the lost process.
    """
    if is_lost(error):
        reason = (str(error).strip().splitlines() or [""])[0][:300]
        print(f"error: {LOST} ({reason})", file=sys.stderr)
        leave(LOST_CODE)


def leave(code: int) -> NoReturn:
    """Ends this process without waiting for the others, which may wait for it."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


class Nowhere:
    """A log or progress bar that does nothing, for processes other than the first."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *_, **__: None
