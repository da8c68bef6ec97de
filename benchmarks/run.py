"""The benchmark command: `python -m benchmarks.run [--suite=core] [--json=FILE]`.

core                 the parts of a meta-step
sinusoid             the paper's whole meta-training of the sinusoid
memory               each meta-gradient mode against inner steps and width; a chart
fits                 whether 100 inner steps fit into 1,000 MB, in mixed and in reverse mode
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

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from benchmarks.harness import Row
from experiments.core import environment as environment_lib
from experiments.core.process import lay_out_cpu, num_cores
from experiments.core.results import format_table
from maml_jax.reinforcement.robots import TASKS as FAMILIES

SUITES = {
    "core": "suites.core",
    "sinusoid": "suites.core",
    "memory": "suites.memory",
    "fits": "suites.memory",
    "peers": "peers.regression",
    "scaling": "suites.scaling",
    "startup": "suites.startup",
}
SMALL_KERNELS = {"physics": "suites.physics", "locomotion": "suites.locomotion"}
CORE_PER_DEVICE = {
    "classification": "suites.classification",
    "image_memory": "suites.memory",
    "image_peers": "peers.images",
    "reinforcement": "suites.reinforcement",
    "estimators": "suites.estimators",
    "reinforcement_peers": "peers.reinforcement",
    **SMALL_KERNELS,
    "accelerator": "suites.accelerator",
}
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
    spread = _all_or_none(names, CORE_PER_DEVICE, "lay out the CPU in their own way")
    small = _all_or_none(names, SMALL_KERNELS, "have XLA compile sums in their own way")
    devices = _DEVICES.value or (num_cores() if spread else 1)
    lay_out_cpu(_THREADS.value, devices, small)

    where = environment()
    print("  ".join(f"{key}: {value}" for key, value in where.items()))
    report: dict[str, Any] = {"environment": where, "suites": {}}
    for name in names:
        print(f"\n{name}", flush=True)
        rows = report["suites"][name] = []
        shown = rows
        if name == "accelerator":
            shown = _accelerator(report, rows)
        else:
            collect(run_suite(name), rows, lambda: _write(report))
        print(table(shown), flush=True)
        _write(report)
    if _JSON.value:
        print(f"\nwritten to {_JSON.value}")
        if "memory" in report["suites"]:
            from benchmarks.suites.memory_chart import write_memory_chart

            write_memory_chart(Path(_JSON.value), report["suites"]["memory"])


def _all_or_none(names: list[str], group: Iterable[str], reason: str) -> bool:
    """Whether all suites are of a group; a usage error where only some are."""
    members = [name in group for name in names]
    if any(members) and not all(members):
        raise app.UsageError(f"{', '.join(group)} {reason}: run them apart.")
    return all(members)


def run_suite(name: str) -> Iterable[Row]:
    """The measurements of one suite, as they are made."""
    module = importlib.import_module(f"benchmarks.{({**SUITES, **CORE_PER_DEVICE})[name]}")
    suite = getattr(module, f"{name}_suite")
    return suite(_FAMILIES.value) if name == "locomotion" else suite()


def collect(suite: Iterable[Row], rows: list[Row], save: Callable[[], None]) -> None:
    """Appends the rows of a suite, names and saves each as it comes.

    Args:
        suite: its rows.
        rows: that are appended to.
        save: called after each of them.
    """
    for row in suite:
        rows.append(row)
        print(f"  {row.get('name', row.get('case'))}", flush=True)
        save()


def _write(report: dict[str, Any]) -> None:
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(report, indent=1) + "\n")


def _accelerator(report: dict[str, Any], rows: list[Row]) -> list[Row]:
    """The suite, on from where the file leaves off if that is of the same device and commit.

    Returns:
        Its summary.
    """
    from benchmarks.suites.accelerator import accelerator_suite, summary

    done = []
    if _JSON.value and Path(_JSON.value).exists():
        before = json.loads(Path(_JSON.value).read_text())
        if before.get("environment") == report["environment"]:
            done = before["suites"].get("accelerator", [])

    def save(made: list[Row]) -> None:
        rows[:] = made
        _write(report)

    return summary(accelerator_suite(_BUDGET.value, _QUICK.value, done, save))


def environment() -> dict[str, Any]:
    """Device, versions, commit, threads, and flags of XLA where there are any."""
    where = {**environment_lib.environment(), "cpu_threads": int(os.environ["PJRT_NPROC"])}
    xla_flags = os.environ.get("XLA_FLAGS")
    return {**where, "xla_flags": xla_flags} if xla_flags else where


def table(rows: list[Row]) -> str:
    """A text table of whatever keys the rows have; numbers with four digits."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return format_table(keys, [[_cell(row.get(key)) for key in keys] for row in rows])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    app.run(main)
