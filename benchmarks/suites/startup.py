"""Times experiments from the command to the end of the first dispatch, with and without a cache.

The cache is JAX's compilation cache. Each run is a separate process. The first line of
`metrics.jsonl` marks the end of the first dispatch; the run is stopped once it has also saved its
compile time.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Row

ROOT = Path(__file__).resolve().parents[2]
POLL_S = 0.005
CACHE = {"JAX_ENABLE_COMPILATION_CACHE": "true"}
RUNS: dict[str, list[str]] = {
    "sinusoid": ["experiments.sinusoid"],
    "Omniglot, synthetic glyphs": ["experiments.omniglot", "--dataset=synthetic"],
    "Omniglot": ["experiments.omniglot"],
}


def startup_suite(repeats: int = 3, limit_s: float = 300.0) -> Iterator[Row]:
    """Times the imports and the first dispatch of each experiment.

    Args:
        repeats: new processes of each kind; the rows have their medians.
        limit_s: seconds that a run may take.
    """
    for name, command in RUNS.items():
        if name == "Omniglot" and not _has_omniglot():
            yield {"name": name, "cache": "not run: MAML_JAX_DATA has no Omniglot"}
            continue
        with tempfile.TemporaryDirectory() as folder:
            warm = {**CACHE, "JAX_COMPILATION_CACHE_DIR": folder}
            yield _row(name, "none", command, {}, repeats, limit_s)
            first_line(command, warm, limit_s)  # fills the cache
            yield _row(name, "warm", command, warm, repeats, limit_s)


def _has_omniglot() -> bool:
    from experiments.core import places
    from maml_jax.classification.datasets import omniglot

    return omniglot.has_archives(places.data_dir())


def _row(
    name: str,
    cache: str,
    command: Sequence[str],
    variables: Mapping[str, str],
    repeats: int,
    limit_s: float,
) -> Row:
    imports = [_imports(command[0], variables) for _ in range(repeats)]
    runs = [first_line(command, variables, limit_s) for _ in range(repeats)]
    median = lambda values: float(np.median(values))
    return {
        "name": name,
        "cache": cache,
        "imports_s": median(imports),
        "first_line_s": median([run["first_line_s"] for run in runs]),
        "first_line_least_s": min(run["first_line_s"] for run in runs),
        "compile_s": median([run["compile_s"] for run in runs]),
        "meta_steps": runs[0]["meta_steps"],
        "samples": repeats,
    }


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Returns this process's environment without its settings of the cache and the CPU's layout."""
    dropped = (
        "JAX_COMPILATION_CACHE_DIR",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES",
        "PJRT_NPROC",
        "XLA_FLAGS",
        *CACHE,
    )
    return {k: v for k, v in os.environ.items() if k not in dropped} | dict(variables)


def _imports(module: str, variables: Mapping[str, str]) -> float:
    """Returns the seconds of a process that only imports an experiment."""
    begun = time.monotonic()
    line = [sys.executable, "-c", f"import {module}"]
    subprocess.run(line, cwd=ROOT, env=_environment(variables), check=True, capture_output=True)
    return time.monotonic() - begun


def first_line(
    command: Sequence[str], variables: Mapping[str, str], limit_s: float = 300.0
) -> dict[str, Any]:
    """Starts an experiment, waits for its first dispatch, and stops it.

    Args:
        command: module and flags.
        variables: environment variables, in addition to this process's.
        limit_s: seconds that the run may take.

    Returns:
        `first_line_s`, seconds from the start of the process; `compile_s`, seconds that the run
        reports for tracing and compiling its training; `meta_steps` in the dispatch.

    Raises:
        RuntimeError: the run stopped by itself or took longer.
    """
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        line = [sys.executable, "-m", *command, f"--workdir={workdir}", "--checkpoint_every_s=0"]
        output = Path(folder) / "output"
        with output.open("w") as stream:
            begun = time.monotonic()
            child = subprocess.Popen(
                line, cwd=ROOT, env=_environment(variables), stdout=stream, stderr=stream,
                start_new_session=True,
            )  # fmt: skip
        try:
            entry = _wait(child, lambda: _first_entry(workdir), begun + limit_s, output)
            took = time.monotonic() - begun
            compiling = _wait(child, lambda: _compile_seconds(workdir), begun + limit_s, output)
        finally:
            _end(child)
        return {"first_line_s": took, "compile_s": compiling, "meta_steps": entry["step"]}


def _wait(child: subprocess.Popen[Any], read: Callable[[], Any], until: float, output: Path) -> Any:
    while (value := read()) is None:
        if child.poll() is not None or time.monotonic() > until:
            what = "took too long" if child.poll() is None else f"stopped with {child.returncode}"
            raise RuntimeError(f"{child.args} {what}:\n{output.read_text()[-2000:]}")
        time.sleep(POLL_S)
    return value


def _first_entry(workdir: Path) -> dict[str, Any] | None:
    try:
        text = (workdir / "metrics.jsonl").read_text()
    except OSError:
        return None
    return json.loads(text.splitlines()[0]) if "\n" in text else None


def _compile_seconds(workdir: Path) -> float | None:
    """Reads the compile time beside the first checkpoint, whose directory is named by its step."""
    for path in workdir.glob("checkpoints/*/[0-9]*/info/*"):
        try:
            info = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(info, dict) and "compile_s" in info:
            return float(info["compile_s"])
    return None


def _end(child: subprocess.Popen[Any]) -> None:
    """Stops the process and its children."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
