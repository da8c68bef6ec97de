"""The process of a run: its CPU layout, its memory, signals to stop, and time spent compiling."""

from __future__ import annotations

import contextlib
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

# XLA has --xla_cpu_experimental_ynn_fusion_type from the first of these versions of jaxlib to
# before the second: it is in the binaries of 0.10.0 to 0.11.2.
HAS_YNN_FLAG = ((0, 10), (0, 11, 3))
STOPPING = (
    "\nstopping after this dispatch; Ctrl-C again stops at once (continues from the last "
    "checkpoint)\n"
)


def num_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def device_per_core(settings: Any, num_members: int, cores: int) -> int:
    """Returns one device per core, for experiments whose training and evaluation use all cores."""
    del settings, num_members
    return cores


def lay_out_cpu(threads: int | None, devices: int | None, small_kernels: bool = False) -> None:
    """Sets the threads and devices of JAX's CPU client, which reads them when it starts.

    Settings in the user's environment take precedence.

    Args:
        threads: of XLA; None for one per core. XLA uses at least one per device.
        devices: number of JAX devices that the CPU is split into; None for one.
        small_kernels: whether the programs consist of thousands of small sums and products, as
            those of robots do. XLA (jaxlib 0.10) computes sums with YNNPACK, whose kernels take
            twice as long as XLA's for small sums and a fifth for large ones, as in batch norm. The
            flag is set only for versions of jaxlib that have it: XLA ends a process that names an
            unknown one.
    """
    given = os.environ.get("XLA_FLAGS", "").strip()
    names_file = given and not given.startswith("-")  # XLA reads flags from a file, too
    if (
        small_kernels
        and not names_file
        and "xla_cpu_experimental_ynn_fusion_type" not in given
        and HAS_YNN_FLAG[0] <= jaxlib.version.__version_info__ < HAS_YNN_FLAG[1]
    ):
        os.environ["XLA_FLAGS"] = f"{given} --xla_cpu_experimental_ynn_fusion_type=".strip()
    if threads is not None:
        os.environ.setdefault("PJRT_NPROC", str(threads))
    if devices is not None and devices_given() is None:
        jax.config.update("jax_num_cpu_devices", devices)


def devices_given() -> int | None:
    """The number of devices into which the environment splits the CPU; None if it sets none."""
    flags = os.environ.get("XLA_FLAGS", "")
    match = re.search(r"xla_force_host_platform_device_count=(\d+)", flags)
    given = match[1] if match else os.environ.get("JAX_NUM_CPU_DEVICES", "")
    return int(given) if given.isdigit() else None


def check_devices() -> None:
    """Starts JAX's devices.

    Raises:
        ConfigError: JAX cannot start devices of the kind that the environment names.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: a plugin is not installed
        platforms = os.environ.get("JAX_PLATFORMS", "")
        reason = (str(error).strip().splitlines() or ["none exist"])[0][:300].rstrip(".")
        raise ConfigError(
            f"JAX cannot start its devices (JAX_PLATFORMS={platforms!r}): {reason}. Leave "
            "JAX_PLATFORMS unset to use the devices of this machine, or install JAX for this kind: "
            "docs/install.md."
        ) from None


def available_memory() -> int | None:
    """The bytes that a device of this process may still allocate; None if the system gives none.

    This is the minimum over the process's devices. Devices that a CPU is split into share one
    memory; the value is then for all of them together.
    """
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        return host_memory()
    stats = [device.memory_stats() or {} for device in devices]
    if not all("bytes_limit" in s and "bytes_in_use" in s for s in stats):
        return None
    return min(max(0, s["bytes_limit"] - s["bytes_in_use"]) for s in stats)


def host_memory(root: Path = Path("/")) -> int | None:
    """The bytes that this process may still allocate, by the limits of machine and control group.

    Args:
        root: the folder of `proc` and `sys` (Linux).

    Returns:
        The bytes, or None on a system that does not report them.
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
    """Checks that arrays fit into memory before they are allocated, where the limit is known.

    Args:
        what: a name of the arrays, for the message.
        shapes: a tree of `jax.ShapeDtypeStruct`.

    Raises:
        MemoryError: they do not fit.
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
    """Makes Linux refuse this process more memory than is available, where JAX runs on the CPU.

    Without the limit Linux grants the memory and kills the process when it is used. The limit
    counts the stacks of threads in full, which are hardly used: 128 MiB are added per core.
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
    """The free bytes of the machine's swap; 0 if the system does not report them."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("SwapFree:"))


def _group_memory(base: Path, path: str, limit: str, used: str) -> list[int]:
    """The bytes left to a control group and to each of its parents.

    The kernel counts file caches as used; inactive ones can be dropped and are added back.
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
    names = ("inactive_file", "total_inactive_file")  # total: with the groups below this one
    return max((int(value) for name, value in fields if name in names), default=0)


class StopRequest:
    """Records SIGTERM and Ctrl-C, so that a run can save first; a second signal stops at once.

    Attributes:
        signal: the number of the signal received, or 0.
    """

    def __init__(self):
        self.signal = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        except ValueError:  # not the main thread, where alone handlers can be set
            pass
        return self

    def _note(self, number, frame):
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number
        with contextlib.suppress(OSError):  # `print` may not be called in a handler
            os.write(2, STOPPING.encode())

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class CompileTimer:
    """Seconds that JAX has spent on tracing, lowering and compiling in this process.

    Loading a compiled program from JAX's cache counts as compiling. JAX reports each piece when it
    ends, and pieces overlap: the trace of a function contains those of the functions it calls, and
    several threads may compile at a time. Time that two pieces share counts once.

    Attributes:
        seconds: in all, since the first run of this process began.
        programs_loaded: how many programs came from JAX's cache.
    """

    _instance: CompileTimer | None = None

    def __init__(self):
        self._lock = threading.Lock()
        self._pieces: list[tuple[float, float]] = []  # start and end; disjoint, in order
        self._lowered: dict[int, float] = {}  # by thread: the end of a lowering not compiled yet
        self.seconds, self.programs_loaded = 0.0, 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        jax.monitoring.register_event_listener(self._count)

    @property
    def seconds_so_far(self) -> float:
        """`seconds`, with those of a compilation that has not ended."""
        with self._lock:
            begun = min(self._lowered.values(), default=None)
            return self.seconds + (0.0 if begun is None else time.monotonic() - begun)

    def _listen(self, event: str, duration: float, **_: Any) -> None:
        if not event.startswith("/jax/core/compile/"):
            return
        with self._lock:
            end = time.monotonic()
            start = end - duration
            if event.endswith("/jaxpr_to_mlir_module_duration"):
                self._lowered[threading.get_ident()] = end
            elif event.endswith("/backend_compile_duration"):
                self._lowered.pop(threading.get_ident(), None)
            while self._pieces and self._pieces[-1][1] > start:
                earlier, until = self._pieces.pop()
                self.seconds -= until - earlier
                start = min(start, earlier)
            self._pieces.append((start, end))
            self.seconds += end - start

    def _count(self, event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            with self._lock:
                self.programs_loaded += 1

    @classmethod
    def instance(cls) -> CompileTimer:
        """The timer of this process. There is one, as JAX's listeners cannot be removed."""
        if cls._instance is None:
            cls._instance = cls()
        return cls._instance
