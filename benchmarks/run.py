"""Runs benchmark suites: `python -m benchmarks.run [--suite=core] [--json=FILE]`.

core                 parts of a meta-step
sinusoid             the paper's whole meta-training on sinusoids
memory               meta-gradient modes against inner steps and network width, with a chart
fits                 whether 100 inner steps fit into 1,000 MB, in mixed and in reverse mode
peers                other libraries on the sinusoid; `make bench-peers` installs them
scaling              simulated devices: measurements beside the formulas' values
startup              time from the command to the end of the first dispatch
classification       meta-steps of the image classifiers
image_memory         memory of MiniImagenet's meta-gradient by mode
image_peers          other libraries on Omniglot and MiniImagenet
reinforcement        meta-iterations of navigation, phase by phase
estimators           bias and deviation of the policy gradients' meta-gradients
reinforcement_peers  navigation in pytorch-maml-rl
physics              the robots' steps a second and deviation from MuJoCo's engine
locomotion           meta-iterations of locomotion, phase by phase
accelerator          correctness and speed on a GPU, in under ten minutes

The suites from classification on split a CPU into one device a core, as their experiments do. Run
them separately from the others. Run on an idle machine: the suites do not notice other load.
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
    "suite", ["core"], f"Suites to run: {', '.join(SUITES)}; or {', '.join(CORE_PER_DEVICE)}."
)
_JSON = flags.DEFINE_string("json", None, "File for the measurements.")
_THREADS = flags.DEFINE_integer(
    "cpu_threads", 1, "XLA's threads for each CPU device; the experiments use 1.", 1
)
_DEVICES = flags.DEFINE_integer(
    "cpu_devices",
    None,
    "Number of devices to split a CPU into; default 1, or one a core for the suites from "
    "classification on.",
    1,
)
_BUDGET = flags.DEFINE_float(
    "budget_s", 540.0, "Wall-clock seconds for the suite accelerator.", 0.0
)
_FAMILIES = flags.DEFINE_list(
    "families",
    list(FAMILIES),
    f"Task families for the suite locomotion, out of {', '.join(FAMILIES)}.",
)
flags.register_validator(
    "families", lambda names: set(names) <= set(FAMILIES), f"must be of {', '.join(FAMILIES)}"
)
_QUICK = flags.DEFINE_bool(
    "quick", False, "Run the suite accelerator with tiny sizes, to try the command."
)


def main(argv: list[str]) -> None:
    """Runs the suites and prints a table of each."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}.")
    logging.set_verbosity(logging.ERROR)
    names = _SUITE.value
    known = (*SUITES, *CORE_PER_DEVICE)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise app.UsageError(f"--suite must be of {', '.join(known)}; received {unknown[0]!r}.")
    spread = _all_or_none(names, CORE_PER_DEVICE, "split the CPU into one device a core")
    small = _all_or_none(names, SMALL_KERNELS, "set XLA's compilation of small sums")
    devices = _DEVICES.value or (num_cores() if spread else 1)
    lay_out_cpu(_THREADS.value, devices, small)

    described = environment()
    print("  ".join(f"{key}: {value}" for key, value in described.items()))
    report: dict[str, Any] = {"environment": described, "suites": {}}
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
    """Returns whether all suites are in a group; raises a usage error if only some are."""
    members = [name in group for name in names]
    if any(members) and not all(members):
        raise app.UsageError(f"{', '.join(group)} {reason}: run them separately.")
    return all(members)


def run_suite(name: str) -> Iterable[Row]:
    """Runs a suite and yields its measurements."""
    module = importlib.import_module(f"benchmarks.{({**SUITES, **CORE_PER_DEVICE})[name]}")
    suite = getattr(module, f"{name}_suite")
    return suite(_FAMILIES.value) if name == "locomotion" else suite()


def collect(suite: Iterable[Row], rows: list[Row], save: Callable[[], None]) -> None:
    """Appends the rows of a suite to `rows`; prints the name of each and saves it at once.

    Args:
        suite: new rows.
        rows: list to append to.
        save: called after each row.
    """
    for row in suite:
        rows.append(row)
        print(f"  {row.get('name', row.get('case'))}", flush=True)
        save()


def _write(report: dict[str, Any]) -> None:
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(report, indent=1) + "\n")


def _accelerator(report: dict[str, Any], rows: list[Row]) -> list[Row]:
    """Runs the suite accelerator and returns its summary.

    Resumes from the file `--json` if that is of the same environment.
    """
    from benchmarks.suites.accelerator import accelerator_suite, summary

    done = []
    if _JSON.value and Path(_JSON.value).exists():
        before = json.loads(Path(_JSON.value).read_text())
        if before.get("environment") == report["environment"]:
            done = before["suites"].get("accelerator", [])

    def save(measured: list[Row]) -> None:
        rows[:] = measured
        _write(report)

    return summary(accelerator_suite(_BUDGET.value, _QUICK.value, done, save))


def environment() -> dict[str, Any]:
    """Returns device, versions, commit, threads, and XLA's flags if any are set."""
    described = {**environment_lib.environment(), "cpu_threads": int(os.environ["PJRT_NPROC"])}
    xla_flags = os.environ.get("XLA_FLAGS")
    return {**described, "xla_flags": xla_flags} if xla_flags else described


def table(rows: list[Row]) -> str:
    """Formats rows as a text table with a column for each key; floats have four digits."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return format_table(keys, [[_cell(row.get(key)) for key in keys] for row in rows])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    app.run(main)
