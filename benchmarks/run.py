"""The benchmark command: `python -m benchmarks.run [--suite=core] [--json=FILE]`.

Suites: core (the parts of a meta-step), sinusoid (the paper's whole meta-training), memory (each
meta-gradient mode against the number of inner steps), peers (PyTorch libraries beside ours; `make
bench-peers` installs them). Run them on an idle machine: nothing here can tell what else runs.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from absl import app, flags, logging

SUITES = ("core", "sinusoid", "memory", "peers")
_SUITE = flags.DEFINE_list("suite", ["core"], f"What to run: {', '.join(SUITES)}, or all.")
_JSON = flags.DEFINE_string("json", None, "File to write the measurements to.")
_THREADS = flags.DEFINE_integer(
    "cpu_threads", 1, "Threads of XLA on a CPU; the sinusoid's experiment uses 1.", 1
)


def main(argv: list[str]) -> None:
    """Runs the suites and prints a table for each."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}.")
    logging.set_verbosity(logging.ERROR)
    names = list(SUITES[:-1]) if _SUITE.value == ["all"] else _SUITE.value
    unknown = [name for name in names if name not in SUITES]
    if unknown:
        raise app.UsageError(f"--suite must be of {', '.join(SUITES)}; received {unknown[0]!r}.")
    os.environ.setdefault("PJRT_NPROC", str(_THREADS.value))  # before JAX starts

    where = environment()
    print("  ".join(f"{key}: {value}" for key, value in where.items()))
    found = {"environment": where, "suites": {}}
    for name in names:
        rows = run_suite(name)
        found["suites"][name] = rows
        print(f"\n{name}\n{table(rows)}", flush=True)
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(found, indent=1) + "\n")
        print(f"\nwritten to {_JSON.value}")


def run_suite(name: str) -> list[dict[str, Any]]:
    """The measurements of one suite, as dictionaries."""
    from benchmarks import core

    if name == "core":
        return [timing._asdict() for timing in core.core_suite()]
    if name == "sinusoid":
        return [timing._asdict() for timing in core.sinusoid_suite()]
    if name == "memory":
        return core.memory_rows()
    from benchmarks import peers

    return peers.peers_suite()


def environment() -> dict[str, Any]:
    """Device, versions, commit and threads."""
    from experiments.environment import environment

    return {**environment(), "cpu_threads": int(os.environ["PJRT_NPROC"])}


def table(rows: list[dict[str, Any]]) -> str:
    """A text table of whatever keys the rows have; numbers with four digits."""
    from experiments.results import format_table

    keys = list(dict.fromkeys(key for row in rows for key in row))
    return format_table(keys, [[_cell(row.get(key)) for key in keys] for row in rows])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    app.run(main)
