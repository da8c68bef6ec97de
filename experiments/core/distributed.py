"""Several processes that make up one run: `jax.distributed`, and what only the first of them does.

Every process runs the same program on its devices; meta-batches are split over the devices of
all. Process 0 alone writes logs, figures and results; checkpoints are written and read by all.
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
    "processes, goes on from the last checkpoint."
)
LOST_CODE = 4  # exit status
_START_TIMEOUT_S = 900  # a cluster may take a while to begin all of them again


class FirstProcessError(RuntimeError):
    """Process 0 cannot begin or go on; it says why itself."""

    def __init__(self):
        super().__init__("process 0 of this run could not go on; its output says why.")


def connect(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    heartbeat_timeout_s: int,
) -> None:
    """Joins the other processes of a run, before anything is computed.

    Args:
        coordinator: "HOST:PORT" of process 0, or None where the cluster tells (SLURM, Open MPI,
            Kubernetes, Cloud TPU).
        num_processes: in all, or None likewise.
        process_id: of this one, from 0, or None likewise.
        heartbeat_timeout_s: after how many silent seconds a process counts as lost.

    Raises:
        ConfigError: the flags contradict each other, the cluster tells nothing, or the others
            cannot be reached.
    """
    address = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    given = [name for name, value in address.items() if value is not None]
    if given and len(given) < len(address):
        missing = ", ".join(f"--{name}" for name in address if name not in given)
        raise ConfigError(f"--{given[0]} needs {missing} beside it; or give none of the three.")
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
        where = coordinator or "what the cluster's environment says"
        raise ConfigError(
            f"could not join the run at {where}: {reason} Give --coordinator=HOST:PORT, "
            "--num_processes and --process_id where the cluster does not tell them."
        ) from None


def is_first() -> bool:
    """Whether this is the process that writes logs and results."""
    return jax.process_index() == 0


def any_of(*flags: bool) -> tuple[bool, ...]:
    """Each flag, whether any process has it; all processes call this at the same point."""
    if jax.process_count() == 1:
        return flags
    everyone = multihost_utils.process_allgather(np.array(flags, np.bool_))
    return tuple(bool(flag) for flag in np.any(np.atleast_2d(everyone), axis=0))


def of_first(values: np.ndarray) -> np.ndarray:
    """The values that process 0 has, of the same shape in all; all call this at the same point."""
    if jax.process_count() == 1:
        return values
    return np.asarray(multihost_utils.broadcast_one_to_all(values))


def check_same_settings(identity: Any) -> None:
    """Raises unless every process was started with the same settings.

    Raises:
        ConfigError: some were not; data that is the same for all would silently differ.
    """
    text = json.dumps(identity, sort_keys=True).encode()
    digest = np.frombuffer(hashlib.sha256(text).digest()[:8], np.uint32)
    (differs,) = any_of(bool(np.any(of_first(digest) != digest)))
    if differs:
        raise ConfigError(
            "the processes of this run were given different flags; give all the same."
        )


def warn_if_not_split(num_tasks: int, num_members: int = 1) -> None:
    """Warns if neither tasks nor members can be split over the processes."""
    count = jax.process_count()
    if count > 1 and is_first() and not member_mesh(num_members, num_tasks).is_multi_process:
        print(
            f"warning: {num_tasks} tasks cannot be split evenly over {count} processes, so that "
            "each does all of them; choose --num_tasks or the processes so that they divide.",
            file=sys.stderr,
        )


def first_decides(question: Callable[[], bool]) -> bool:
    """The answer of process 0, which alone is asked.

    Raises:
        FirstProcessError: in the other processes, if it raised.
    """
    if jax.process_count() == 1:
        return question()
    answer, raised = -1, None
    if is_first():
        try:
            answer = int(question())
        except Exception as error:  # raised again below, when the others know
            raised = error
    answer = int(multihost_utils.broadcast_one_to_all(np.int32(answer)))
    if raised is not None:
        raise raised
    if answer < 0:
        raise FirstProcessError
    return bool(answer)


def wait_for_all(what: str) -> None:
    """Waits until every process is here: none may end, and close its connections, before."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def is_lost(error: BaseException) -> bool:
    """Whether an error is how another process's end shows."""
    signs = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "Gloo", "NCCL", "heartbeat", "Barrier")
    runtimes = isinstance(error, jax.errors.JaxRuntimeError)
    return jax.process_count() > 1 and runtimes and any(sign in str(error) for sign in signs)


def leave_if_lost(error: BaseException) -> None:
    """Ends this process, with a sentence, if the error is another process's end.

    At once, because everything that closes down in good order would wait for that process.
    """
    if is_lost(error):
        reason = (str(error).strip().splitlines() or [""])[0][:300]
        print(f"error: {LOST} ({reason})", file=sys.stderr)
        leave(LOST_CODE)


def leave(code: int) -> NoReturn:
    """Ends this process without waiting for the others, who may be waiting for it."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


class Nowhere:
    """Takes the place of a log or a progress bar in processes other than the first."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *_, **__: None
