"""What the soak does to a run: a process that is watched, and the ways to disturb it."""

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
# A kill at a random moment, a kill while a checkpoint is being written, a request to stop, a disk
# that is full when the next checkpoint is due, and a file of the newest checkpoint cut in half.
KINDS = ("killed", "killed in a save", "stopped", "full disk", "truncated")
POLL_S = 0.01
SAMPLE_S = 0.25
PATIENCE_S = 1800.0  # until a run is taken for stuck
DISK_MB = 256


class Disturbance(NamedTuple):
    """One entry of the schedule.

    Attributes:
        kind: one of `KINDS`.
        step: meta-step that the run has to reach first.
        delay: share of a dispatch's time to wait then.
    """

    kind: str
    step: int
    delay: float


class Sample(NamedTuple):
    """A look at a process.

    Attributes:
        step: that it has logged.
        resident_mb: its memory, megabytes.
        open_files: how many descriptors it has open.
    """

    step: int
    resident_mb: float
    open_files: int


class Ended(NamedTuple):
    """How a disturbed process ended: whether as it should, and what was seen."""

    passed: bool
    found: str


def schedule(seed: int, count: int, steps: int) -> list[Disturbance]:
    """A random order of disturbances, of each kind at least one, at steps that increase.

    Args:
        seed: of the order, the steps and the delays.
        count: disturbances in all.
        steps: meta-steps of the run; the last tenth is left alone.

    Raises:
        ValueError: fewer disturbances than kinds, or more than a run of so many steps has room for.
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
    """A process of `experiments.omniglot` that is watched while it runs."""

    def __init__(self, workdir: Path, line: list[str]):
        command = [sys.executable, "-m", "experiments.omniglot", f"--workdir={workdir}", *line]
        environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
        self.workdir, self.samples = workdir, []
        starts = len(list(workdir.parent.glob(f"{workdir.name}.*.stderr")))
        self._log = workdir.with_name(f"{workdir.name}.{starts}.stderr")
        self._sampled = 0.0
        self._seen: tuple[Any, list[dict[str, Any]]] = (None, [])
        with self._log.open("w") as err:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=err, text=True
            )

    @property
    def err(self) -> str:
        """What the process has said on stderr."""
        return self._log.read_text()

    @property
    def last_line(self) -> str:
        """The last line of that: a sentence for the user, if all is well, and no traceback."""
        return (self.err.strip().splitlines() or [""])[-1]

    def entries(self) -> list[dict[str, Any]]:
        """The dispatches that the run has logged, those of earlier processes included."""
        path = self.workdir / "metrics.jsonl"
        there = path.stat() if path.exists() else None
        version = None if there is None else (there.st_ino, there.st_size)
        if version != self._seen[0]:  # reading takes milliseconds, and is asked for all the time
            self._seen = version, read_metrics(self.workdir)
        return self._seen[1]

    def poll(self) -> bool:
        """Whether the process still runs; looks at it now and then."""
        running = self.process.poll() is None
        if running and time.monotonic() - self._sampled >= SAMPLE_S:
            self._sampled = time.monotonic()
            with contextlib.suppress(OSError, StopIteration):  # it ends just now
                proc = Path(f"/proc/{self.process.pid}")
                status = (proc / "status").read_text().splitlines()
                kilobytes = next(line.split()[1] for line in status if line.startswith("VmRSS"))
                entries = self.entries()
                step = entries[-1]["step"] if entries else 0
                files = len(list((proc / "fd").iterdir()))
                self.samples.append(Sample(step, int(kilobytes) / 1e3, files))
        return running

    def wait(self, seconds: float | None = None) -> int | None:
        """Waits for the end, or for so long, and returns the exit code, None while it runs."""
        until = time.monotonic() + (PATIENCE_S * 4 if seconds is None else seconds)
        while self.poll():
            if time.monotonic() > until:
                if seconds is None:
                    self.kill()
                break
            time.sleep(POLL_S)
        return self.process.returncode

    def wait_for_entries(self, count: int) -> bool:
        """Until so many dispatches are logged; False if the process ends before."""
        return self._wait_until(lambda: len(self.entries()) >= count)

    def wait_for_step(self, step: int) -> bool:
        """Until this process has logged a step; False if it ends before."""
        begun = time.time()
        path = self.workdir / "metrics.jsonl"

        def reached() -> bool:
            # Entries beyond the checkpoint are there until the process has opened the file anew.
            if not path.exists() or path.stat().st_mtime < begun:
                return False
            entries = self.entries()
            return bool(entries) and entries[-1]["step"] >= step

        return self._wait_until(reached)

    def wait_for_save(self) -> bool:
        """Until a checkpoint is being written; False if the process ends before."""
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
        """SIGKILL."""
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
            found = child.wait_for_save()
            code = child.kill()
            left = len(list((workdir / "checkpoints" / "maml").glob("*checkpoint-tmp*")))
            return Ended(found and code == -signal.SIGKILL, f"SIGKILL, {left} half written"), child
        if kind == "full disk":
            return _fill(child, disk), child
        code = child.signal(signal.SIGTERM)
        passed = code == 128 + signal.SIGTERM and "saved. The same command" in child.last_line
        found = f"SIGTERM, exit code {code}"
        if kind == "truncated":
            found += f"; {truncate(workdir / 'checkpoints' / 'maml')}"
        return Ended(passed, found), child


def truncate(directory: Path) -> str:
    """Cuts the largest file of the newest checkpoint in half; returns what was cut."""
    newest = max((p for p in directory.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    files = [path for path in newest.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    size = largest.stat().st_size
    os.truncate(largest, size // 2)
    return f"cut {largest.relative_to(directory)} of {size:,} bytes in half"


@contextlib.contextmanager
def small_disk(workdir: Path) -> Iterator[Path | None]:
    """Has the run's checkpoints on a small file system meanwhile; None where mounting is refused.

    The file system is one in memory, and `checkpoints` a link to it.
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
    """Leaves no room for the next checkpoint; the run has to end with a sentence that says so."""
    if disk is not None:
        how = "no space left (tmpfs)"
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
    else:  # no file beyond half of a checkpoint's largest, which has to be more than the logs take
        how = "file too large (RLIMIT_FSIZE)"
        sizes = [p.stat().st_size for p in (child.workdir / "checkpoints").rglob("*")]
        limit = max(sizes, default=2000) // 2
        hard = resource.prlimit(child.process.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(child.process.pid, resource.RLIMIT_FSIZE, (limit, hard))
    code = child.wait()
    said = child.last_line.startswith("error: could not write the checkpoint")
    tail = "" if said else f"; said {child.err[-300:]!r}"
    return Ended(code == 2 and said, f"{how}, exit code {code}{tail}")
