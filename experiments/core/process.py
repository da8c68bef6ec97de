"""The process that a run lives in: memory left, asked to stop, and what compiling takes."""

from __future__ import annotations

import math
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import jax
import jaxlib.version

from .config import ConfigError

# From which version of jaxlib, and before which, XLA has --xla_cpu_experimental_ynn_fusion_type: it
# is in the binaries of 0.10.0 to 0.11.2.
HAS_YNN_FLAG = ((0, 10), (0, 11, 3))


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def device_per_core(settings: Any, num_members: int, cores: int) -> int:
    """`Experiment.cpu_devices` of those whose training and evaluation both take whole cores."""
    del settings, num_members
    return cores


def lay_out_cpu(threads: int | None, devices: int | None, small_kernels: bool = False) -> None:
    """Threads and devices of JAX's CPU client, which reads them when it starts, after this.

    What the user sets in the environment stays as it is.

    Args:
        threads: for XLA; None for one a core. It takes at least one for each device.
        devices: that the CPU is split into; None for one.
        small_kernels: whether the programs have small sums and products by the thousand, as those
            of robots do: YNNPACK's kernels, with which XLA (jaxlib 0.10) computes sums, take twice
            as long as XLA's there. For large ones, as in batch norm, they take a fifth. Only for
            versions of jaxlib that have the flag: XLA ends a process where it has not.
    """
    given = os.environ.get("XLA_FLAGS", "").strip()
    a_file = given and not given.startswith("-")  # that holds flags: XLA takes a name, too
    if (
        small_kernels
        and not a_file
        and "xla_cpu_experimental_ynn_fusion_type" not in given
        and HAS_YNN_FLAG[0] <= jaxlib.version.__version_info__ < HAS_YNN_FLAG[1]
    ):
        os.environ["XLA_FLAGS"] = f"{given} --xla_cpu_experimental_ynn_fusion_type=".strip()
    if threads is not None:
        os.environ.setdefault("PJRT_NPROC", str(threads))
    if devices is not None and devices_given() is None:
        jax.config.update("jax_num_cpu_devices", devices)


def devices_given() -> int | None:
    """Devices into which the environment splits the CPU; None where it does not say."""
    flags = os.environ.get("XLA_FLAGS", "")
    match = re.search(r"xla_force_host_platform_device_count=(\d+)", flags)
    given = match[1] if match else os.environ.get("JAX_NUM_CPU_DEVICES", "")
    return int(given) if given.isdigit() else None


def check_devices() -> None:
    """Starts JAX's devices.

    Raises:
        ConfigError: there are none of the kind that the environment asks for.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the second: a plugin that is not installed
        platforms = os.environ.get("JAX_PLATFORMS", "")
        reason = (str(error).strip().splitlines() or ["there are none"])[0][:300].rstrip(".")
        raise ConfigError(
            f"JAX cannot start its devices (JAX_PLATFORMS={platforms!r}): {reason}. Leave "
            "JAX_PLATFORMS unset for the devices that there are, or install JAX for this kind: "
            "docs/install.md."
        ) from None


def keep_compiled(directory: str | None) -> None:
    """Has JAX keep compiled programs in a directory, and take them from there at the next start.

    Args:
        directory: None for the one that the environment names.
    """
    if directory:
        jax.config.update("jax_compilation_cache_dir", directory)
    for name, value in (("min_compile_time_secs", 0.1), ("min_entry_size_bytes", 0)):
        if f"JAX_PERSISTENT_CACHE_{name.upper()}" not in os.environ:  # else the user's choice
            jax.config.update(f"jax_persistent_cache_{name}", value)


def available_memory() -> int | None:
    """Bytes that a device of this process may still take; None where the system does not tell.

    The least over this process's devices. Devices that a CPU is split into have one memory
    between them: this is what is left for all of them.
    """
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        return host_memory()
    stats = [device.memory_stats() or {} for device in devices]
    if not all("bytes_limit" in s and "bytes_in_use" in s for s in stats):
        return None
    return min(max(0, s["bytes_limit"] - s["bytes_in_use"]) for s in stats)


def host_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take of the machine's memory and of its control group's.

    Args:
        root: where `proc` and `sys` are (Linux).
    """
    left = []
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        left += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        groups = []
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            left += _group_memory(root / "sys/fs/cgroup", path, "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            left += _group_memory(root / "sys/fs/cgroup/memory", path, *names)
    return max(0, min(left)) if left else None


def check_room(what: str, shapes: Any) -> None:
    """Checks that arrays fit into memory, before they are made; where that can be known.

    Args:
        what: they are, for the message.
        shapes: a tree of `jax.ShapeDtypeStruct`.

    Raises:
        MemoryError: they do not.
    """
    needed = sum(
        math.prod(x.shape) * getattr(x.dtype, "itemsize", 8) for x in jax.tree.leaves(shapes)
    )
    available = available_memory()
    if available is not None and needed > available + free_swap():
        raise MemoryError(
            f"{what} needs {needed / 1e6:,.0f} MB, and {available / 1e6:,.0f} MB are left"
        )


def limit_memory() -> None:
    """Has the system refuse this process more memory than there is, on a CPU under Linux.

    Else it would grant it, and end the process without a word when the memory is used. Threads'
    stacks count in full, though hardly used, so that some room is added for each core.
    """
    available = host_memory()
    if available is None or jax.devices()[0].platform != "cpu":
        return
    import resource

    lines = Path("/proc/self/status").read_text().splitlines()
    used = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
    limit = used + available + free_swap() + num_cores() * (128 << 20)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def free_swap() -> int:
    """Bytes of the machine's swap that are free; 0 where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("SwapFree:"))


def _group_memory(base: Path, path: str, limit: str, used: str) -> list[int]:
    """What is left to a control group and to those that it is in.

    A file cache that has not been touched for a while counts as used there, and can be dropped.
    """
    group, left = base / path.strip("/"), []
    while True:
        try:
            taken = int((group / used).read_text()) - _stale_cache(group / "memory.stat")
            left.append(int((group / limit).read_text()) - taken)
        except (OSError, ValueError):  # no such file, or the limit is "max"
            pass
        if group == base:
            return left
        group = group.parent


def _stale_cache(path: Path) -> int:
    try:
        fields = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return 0
    names = ("inactive_file", "total_inactive_file")  # the second: with groups below this one
    return max((int(value) for name, value in fields if name in names), default=0)


class StopRequest:
    """Notes SIGTERM and Ctrl-C, so that a run can save first; a second Ctrl-C stops at once.

    Attributes:
        signal: the number of the signal that came, or 0.
    """

    def __init__(self):
        self.signal = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        except ValueError:  # not the main thread: the caller's business
            pass
        return self

    def _note(self, number, frame):
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class CompileTimer:
    """Seconds that JAX has spent on tracing, lowering and compiling in this process.

    JAX reports each piece when it ends, and pieces overlap: the trace of a function holds those of
    the functions it calls, and several threads may compile at a time. What two pieces share counts
    once.
    """

    _instance: CompileTimer | None = None

    def __init__(self):
        self._lock = threading.Lock()
        self._pieces: list[tuple[float, float]] = []  # from and until; apart, and in order
        self._seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    @property
    def seconds(self) -> float:
        """In all, since the first run of this process began."""
        return self._seconds

    def _listen(self, event: str, duration: float, **_: Any) -> None:
        if not event.startswith("/jax/core/compile/"):
            return
        with self._lock:
            end = time.monotonic()
            start = end - duration
            while self._pieces and self._pieces[-1][1] > start:
                earlier, until = self._pieces.pop()
                self._seconds -= until - earlier
                start = min(start, earlier)
            self._pieces.append((start, end))
            self._seconds += end - start

    @classmethod
    def instance(cls) -> CompileTimer:
        """The one timer of this process: JAX's listeners cannot be taken off again."""
        if cls._instance is None:
            cls._instance = cls()
        return cls._instance
