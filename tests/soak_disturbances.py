"""Starts, watches and disturbs the processes of the soak's runs."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from experiments.core.logbook import read_metrics

ROOT = Path(__file__).resolve().parents[1]
# SIGKILL at a random moment; SIGKILL while a checkpoint is being written; SIGTERM; a full disk when
# the next checkpoint is due; a file of the newest checkpoint cut in half.
KINDS = ("killed", "killed in a save", "stopped", "full disk", "truncated")
POLL_S = 0.01
SAMPLE_S = 0.25
PATIENCE_S = 1800.0  # seconds after which a run counts as stuck
DISK_MB = 256


class Disturbance(NamedTuple):
    """An entry of the schedule.

    Attributes:
        kind: one of `KINDS`.
        step: meta-step after which to disturb.
        delay: further time to wait, as a share of a dispatch.
    """

    kind: str
    step: int
    delay: float


class Sample(NamedTuple):
    """A measurement of a process.

    Attributes:
        step: last logged meta-step.
        resident_mb: resident memory, in MB.
        open_files: number of open file descriptors.
    """

    step: int
    resident_mb: float
    open_files: int


class Ended(NamedTuple):
    """The end of a disturbed process: whether it was as expected, and a description."""

    passed: bool
    outcome: str


def schedule(seed: int, count: int, steps: int) -> list[Disturbance]:
    """Draws disturbances in random order, of each kind at least one, at increasing steps.

    Args:
        seed: of the order, the steps and the delays.
        count: number of disturbances.
        steps: meta-steps of the run; the last tenth is not disturbed.

    Raises:
        ValueError: fewer disturbances than kinds, or more than steps that can be disturbed.
    """
    if count < len(KINDS):
        raise ValueError(f"count must be at least {len(KINDS)}; received {count}.")
    last = int(0.9 * steps)
    if last < count:
        raise ValueError(f"{count} disturbances need more meta-steps; received {steps}.")
    chance = random.Random(seed)
    kinds = [*KINDS, *chance.choices(KINDS, k=count - len(KINDS))]
    chance.shuffle(kinds)
    at = sorted(chance.sample(range(1, last + 1), count))
    return [Disturbance(k, s, chance.random()) for k, s in zip(kinds, at, strict=True)]


class Child:
    """A process of `experiments.omniglot` that is sampled while it runs."""

    def __init__(self, workdir: Path, line: list[str]):
        command = [sys.executable, "-m", "experiments.omniglot", f"--workdir={workdir}", *line]
        environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
        self.workdir, self.samples = workdir, []
        starts = len(list(workdir.parent.glob(f"{workdir.name}.*.stderr")))
        self._log = workdir.with_name(f"{workdir.name}.{starts}.stderr")
        self._sampled = 0.0
        self._read: tuple[Any, list[dict[str, Any]]] = (None, [])
        with self._log.open("w") as err:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=err, text=True
            )

    @property
    def err(self) -> str:
        """The process's stderr."""
        return self._log.read_text()

    @property
    def last_line(self) -> str:
        """The last line of stderr: a sentence for the user, unless there is a traceback."""
        return (self.err.strip().splitlines() or [""])[-1]

    def entries(self) -> list[dict[str, Any]]:
        """Returns the run's logged dispatches, those of earlier processes included."""
        path = self.workdir / "metrics.jsonl"
        status = path.stat() if path.exists() else None
        version = None if status is None else (status.st_ino, status.st_size)
        if version != self._read[0]:  # reading takes milliseconds, and calls are frequent
            self._read = version, read_metrics(self.workdir)
        return self._read[1]

    def poll(self) -> bool:
        """Returns whether the process still runs; takes a sample every `SAMPLE_S` seconds."""
        running = self.process.poll() is None
        if running and time.monotonic() - self._sampled >= SAMPLE_S:
            self._sampled = time.monotonic()
            with contextlib.suppress(OSError, StopIteration):  # the process ends meanwhile
                proc = Path(f"/proc/{self.process.pid}")
                status = (proc / "status").read_text().splitlines()
                kilobytes = next(line.split()[1] for line in status if line.startswith("VmRSS"))
                entries = self.entries()
                step = entries[-1]["step"] if entries else 0
                files = len(list((proc / "fd").iterdir()))
                self.samples.append(Sample(step, int(kilobytes) / 1e3, files))
        return running

    def wait(self, seconds: float | None = None) -> int | None:
        """Waits for the end for at most `seconds`; returns the exit code, None if it still runs."""
        until = time.monotonic() + (PATIENCE_S * 4 if seconds is None else seconds)
        while self.poll():
            if time.monotonic() > until:
                if seconds is None:
                    self.kill()
                break
            time.sleep(POLL_S)
        return self.process.returncode

    def wait_for_entries(self, count: int) -> bool:
        """Waits until `count` dispatches are logged; returns False if the process ends before."""
        return self._wait_until(lambda: len(self.entries()) >= count)

    def wait_for_step(self, step: int) -> bool:
        """Waits until this process has logged a step; returns False if it ends before."""
        begun = time.time()
        path = self.workdir / "metrics.jsonl"

        def reached() -> bool:
            # The file has entries beyond the checkpoint until the process has opened it again.
            if not path.exists() or path.stat().st_mtime < begun:
                return False
            entries = self.entries()
            return bool(entries) and entries[-1]["step"] >= step

        return self._wait_until(reached)

    def wait_for_save(self) -> bool:
        """Waits until a checkpoint is being written; returns False if the process ends before."""
        directory = self.workdir / "checkpoints" / "maml"
        return self._wait_until(lambda: any(directory.glob("*checkpoint-tmp*")), pause=0.0002)

    def _wait_until(self, happened: Any, pause: float = POLL_S) -> bool:
        until = time.monotonic() + PATIENCE_S
        while self.poll() and time.monotonic() < until:
            if happened():
                return True
            time.sleep(pause)
        return False

    def signal(self, number: int) -> int:
        """Sends a signal and waits for the end."""
        self.process.send_signal(number)
        return self.process.wait(timeout=PATIENCE_S)

    def kill(self) -> int:
        """Sends SIGKILL and waits for the end."""
        return self.signal(signal.SIGKILL)


def disturb(workdir: Path, line: list[str], disturbance: Disturbance) -> tuple[Ended, Child]:
    """Starts or resumes the run, disturbs it once, and waits for its end."""
    kind, step, delay = disturbance
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(small_disk(workdir)) if kind == "full disk" else None
        child = Child(workdir, line)
        if not child.wait_for_step(step):
            code = child.kill()
            return Ended(False, f"ended before step {step:,}: {code}; {child.err[-300:]}"), child
        child.wait(delay / max(child.entries()[-1]["meta_steps_per_s"], 1e-9))
        if kind == "killed":
            return Ended(child.kill() == -signal.SIGKILL, "SIGKILL"), child
        if kind == "killed in a save":
            saving = child.wait_for_save()
            code = child.kill()
            left = len(list((workdir / "checkpoints" / "maml").glob("*checkpoint-tmp*")))
            return Ended(saving and code == -signal.SIGKILL, f"SIGKILL, {left} half written"), child
        if kind == "full disk":
            return _fill(child, disk), child
        code = child.signal(signal.SIGTERM)
        passed = code == 128 + signal.SIGTERM and "saved. The same command" in child.last_line
        outcome = f"SIGTERM, exit code {code}"
        if kind == "truncated":
            outcome += f"; {truncate(workdir / 'checkpoints' / 'maml')}"
        return Ended(passed, outcome), child


def truncate(directory: Path) -> str:
    """Cuts the largest file of the newest checkpoint in half; returns a description."""
    newest = max((p for p in directory.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    files = [path for path in newest.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    size = largest.stat().st_size
    os.truncate(largest, size // 2)
    return f"cut {largest.relative_to(directory)} of {size:,} bytes in half"


@contextlib.contextmanager
def small_disk(workdir: Path) -> Iterator[Path | None]:
    """Moves the run's checkpoints to a small file system in memory, linked as `checkpoints`.

    Yields:
        Its path, or None if mounting is refused.
    """
    disk, real = workdir.with_name("small_disk"), workdir / "checkpoints"
    disk.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        disk.rmdir()
        yield None
        return
    try:
        real.mkdir(parents=True, exist_ok=True)
        shutil.move(real, disk / "checkpoints")
        real.symlink_to(disk / "checkpoints")
        yield disk
    finally:
        if real.is_symlink():
            real.unlink()
            (disk / "filler").unlink(missing_ok=True)
            shutil.move(disk / "checkpoints", real)
        subprocess.run(["umount", str(disk)], check=True)
        disk.rmdir()


def _fill(child: Child, disk: Path | None) -> Ended:
    """Leaves no room for the next checkpoint; the run must end with an error that reports it."""
    if disk is not None:
        how = "no space left (tmpfs)"
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
    else:  # files up to half the size of a checkpoint's largest, which must exceed the logs'
        how = "file too large (RLIMIT_FSIZE)"
        sizes = [p.stat().st_size for p in (child.workdir / "checkpoints").rglob("*")]
        limit = max(sizes, default=2000) // 2
        hard = resource.prlimit(child.process.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(child.process.pid, resource.RLIMIT_FSIZE, (limit, hard))
    code = child.wait()
    reported = child.last_line.startswith("error: could not write the checkpoint")
    tail = "" if reported else f"; stderr {child.err[-300:]!r}"
    return Ended(code == 2 and reported, f"{how}, exit code {code}{tail}")
