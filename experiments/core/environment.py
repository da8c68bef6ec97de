"""The device, versions and commit that a result was measured with."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import jax

import maml_jax


def environment() -> dict[str, str]:
    """Returns the device, the versions and the commit; for an installed package its version."""
    device = jax.devices()[0]
    kind = device.device_kind
    if device.platform == "cpu":
        kind = f"cpu ({_cpu_model()})"
    return {
        "device": f"{len(jax.devices())} x {kind}",
        "jax": jax.__version__,
        "python": platform.python_version(),
        "commit": _commit(),
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str:
    here = Path(__file__).resolve()
    try:
        _git(here.parent, "ls-files", "--error-unmatch", str(here))
        commit = _git(here.parent, "rev-parse", "--short=12", "HEAD")
        changed = _git(here.parent, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return f"maml-jax {maml_jax.__version__}"
    return commit + ("-modified" if changed else "")


def _git(directory: Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
