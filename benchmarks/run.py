"""The benchmark command: `python -m benchmarks.run [--suite=core] [--json=FILE]`.

core                 the parts of a meta-step
sinusoid             the paper's whole meta-training of the sinusoid
memory               each meta-gradient mode against inner steps and width; a chart
peers                other libraries beside ours on the sinusoid; `make bench-peers` installs them
scaling              simulated devices: what is measured beside what the formulas say
startup              from the command to the first finished dispatch
classification       meta-steps of the image classifiers
image_memory         MiniImagenet's meta-gradient by mode
image_peers          other libraries on Omniglot and MiniImagenet
reinforcement        meta-iterations of navigation, phase by phase
estimators           bias and deviation of the policy gradients' meta-gradients
reinforcement_peers  navigation beside pytorch-maml-rl
physics              the robots' steps a second and deviation from MuJoCo's engine
locomotion           meta-iterations of locomotion, phase by phase
accelerator          whether all is right and fast on a GPU, in one command under ten minutes

From classification on they split a CPU into one device a core, as their experiments do, and go into
a run of their own. Run on an idle machine: nothing here can tell what else runs.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from experiments.core.process import lay_out_cpu, num_cores

SUITES = ("core", "sinusoid", "memory", "peers", "scaling", "startup")
SMALL_KERNELS = ("physics", "locomotion")
FAMILIES = ("cheetah_direction", "cheetah_velocity", "ant_direction", "ant_velocity")
CORE_PER_DEVICE = (
    "classification",
    "image_memory",
    "image_peers",
    "reinforcement",
    "estimators",
    "reinforcement_peers",
    *SMALL_KERNELS,
    "accelerator",
)
_SUITE = flags.DEFINE_list(
    "suite", ["core"], f"What to run: {', '.join(SUITES)}; or {', '.join(CORE_PER_DEVICE)}."
)
_JSON = flags.DEFINE_string("json", None, "File to write the measurements to.")
_THREADS = flags.DEFINE_integer(
    "cpu_threads", 1, "Threads of XLA for each CPU device; the experiments use 1.", 1
)
_DEVICES = flags.DEFINE_integer(
    "cpu_devices",
    None,
    "Devices that a CPU is split into; default one, or one a core for the last suites.",
    1,
)
_BUDGET = flags.DEFINE_float("budget_s", 540.0, "Wall-clock seconds of the suite accelerator.", 0.0)
_FAMILIES = flags.DEFINE_list(
    "families", list(FAMILIES), f"Of the suite locomotion; of {', '.join(FAMILIES)}."
)
flags.register_validator(
    "families", lambda names: set(names) <= set(FAMILIES), f"must be of {', '.join(FAMILIES)}"
)
_QUICK = flags.DEFINE_bool(
    "quick", False, "The suite accelerator with tiny sizes, to try the command."
)


def main(argv: list[str]) -> None:
    """Runs the suites and prints a table for each."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}.")
    logging.set_verbosity(logging.ERROR)
    names = _SUITE.value
    known = (*SUITES, *CORE_PER_DEVICE)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise app.UsageError(f"--suite must be of {', '.join(known)}; received {unknown[0]!r}.")
    spread = [name in CORE_PER_DEVICE for name in names]
    if any(spread) and not all(spread):
        raise app.UsageError(
            f"{', '.join(CORE_PER_DEVICE)} lay out the CPU in their own way: run them apart."
        )
    small = [name in SMALL_KERNELS for name in names]
    if any(small) and not all(small):
        raise app.UsageError(
            f"{', '.join(SMALL_KERNELS)} have XLA compile sums in their own way: run them apart."
        )
    devices = _DEVICES.value or (num_cores() if all(spread) else 1)
    lay_out_cpu(_THREADS.value, devices, all(small))

    where = environment()
    print("  ".join(f"{key}: {value}" for key, value in where.items()))
    found = {"environment": where, "suites": {}}
    for name in names:
        print(f"\n{name}", flush=True)
        if name == "accelerator":
            from benchmarks.accelerator import summary

            found["suites"][name] = _accelerator(found)
            shown = summary(found["suites"][name])
        else:
            shown = found["suites"][name] = []
            collect(run_suite(name), shown, functools.partial(_write, found))
        print(table(shown), flush=True)
        _write(found)
    if _JSON.value:
        print(f"\nwritten to {_JSON.value}")
        if "memory" in found["suites"]:
            write_memory_chart(Path(_JSON.value), found["suites"]["memory"])


def collect(
    suite: Iterable[dict[str, Any]], rows: list[dict[str, Any]], save: Callable[[], None]
) -> None:
    """Appends the rows of a suite; those that are made one by one are named and saved as they come.

    Args:
        suite: its rows; a list where all are there.
        rows: that are appended to.
        save: called after each of them.
    """
    for row in suite:
        rows.append(row)
        if not isinstance(suite, list):
            print(f"  {row['name']}", flush=True)
            save()


def _write(found: dict[str, Any]) -> None:
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(found, indent=1) + "\n")


def _accelerator(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The suite, on from where the file leaves off if that is of the same device and commit."""
    from benchmarks.accelerator import accelerator_suite

    done = []
    if _JSON.value and Path(_JSON.value).exists():
        there = json.loads(Path(_JSON.value).read_text())
        if there.get("environment") == found["environment"]:
            done = there["suites"].get("accelerator", [])

    def save(rows: list[dict[str, Any]]) -> None:
        found["suites"]["accelerator"] = rows
        _write(found)

    return accelerator_suite(_BUDGET.value, _QUICK.value, done, save)


def write_memory_chart(beside: Path, rows: list[dict[str, Any]]) -> None:
    """The rows of suite `memory` as FILE.png and FILE.txt beside FILE.json."""
    from benchmarks import memory

    memory.memory_chart(beside.with_suffix(".png"), rows)
    beside.with_suffix(".txt").write_text(memory.memory_table(rows) + "\n")
    print(f"chart and table: {beside.with_suffix('.png')}, {beside.with_suffix('.txt')}")


def run_suite(name: str) -> Iterable[dict[str, Any]]:
    """The measurements of one suite, as dictionaries; of a long one, as they are made."""
    from benchmarks import classification, core

    if name == "classification":
        return classification.classification_suite()
    if name == "image_memory":
        return classification.memory_rows()
    if name in ("reinforcement", "estimators"):
        from benchmarks import reinforcement

        return getattr(reinforcement, f"{name}_suite")()
    if name in ("physics", "locomotion"):
        from benchmarks import locomotion

        if name == "physics":
            return locomotion.physics_suite()
        return locomotion.locomotion_suite(_FAMILIES.value)
    if name == "reinforcement_peers":
        from benchmarks import reinforcement_peers

        return reinforcement_peers.reinforcement_peers_suite()
    if name in ("scaling", "startup"):
        module = importlib.import_module(f"benchmarks.{name}")
        return getattr(module, f"{name}_suite")()
    if name == "image_peers":
        from benchmarks import image_peers

        return image_peers.image_peers_suite()
    if name == "core":
        return [timing._asdict() for timing in core.core_suite()]
    if name == "sinusoid":
        return [timing._asdict() for timing in core.sinusoid_suite()]
    if name == "memory":
        from benchmarks import memory

        return memory.memory_rows()
    from benchmarks import peers

    return peers.peers_suite()


def environment() -> dict[str, Any]:
    """Device, versions, commit, threads, and flags of XLA where there are any."""
    from experiments.core.environment import environment

    found = {**environment(), "cpu_threads": int(os.environ["PJRT_NPROC"])}
    told = os.environ.get("XLA_FLAGS")
    return {**found, "xla_flags": told} if told else found


def table(rows: list[dict[str, Any]]) -> str:
    """A text table of whatever keys the rows have; numbers with four digits."""
    from experiments.core.results import format_table

    keys = list(dict.fromkeys(key for row in rows for key in row))
    return format_table(keys, [[_cell(row.get(key)) for key in keys] for row in rows])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    app.run(main)
