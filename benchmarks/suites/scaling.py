"""How a meta-step scales over devices, on simulated CPU devices, against what it should by formula.

A device count is fixed when JAX starts, so each gets a new process. What the program says of
itself (how many all-reduces, what they carry, memory of its arguments, tasks a device) holds for
any devices and must agree with the formula; the times are those of devices that share this
machine's cores, and cannot speed up beyond their number.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import problems
from benchmarks.harness import Row, in_fresh_process
from benchmarks.problems import OMNIGLOT_5, Program, Setup
from benchmarks.programs import all_reduce_bytes, collectives
from experiments.core.process import num_cores
from maml_jax.batching import resolve_batching
from maml_jax.networks import num_parameters

DEVICES = (1, 2, 4, 8)
TASKS, TASKS_PER_DEVICE = 32, 4  # fixed in all (strong), or for each device (weak)


class Sizes(NamedTuple):
    """How large and how long the measurement is.

    Attributes:
        tasks: T, where it is fixed.
        tasks_per_device: where that is fixed.
        filters: of Omniglot's convolutions.
        sinusoid_steps: meta-steps of a dispatch.
        omniglot_steps: meta-steps of a dispatch.
        calls: timed dispatches.
    """

    tasks: int = TASKS
    tasks_per_device: int = TASKS_PER_DEVICE
    filters: int = 64
    sinusoid_steps: int = 500
    omniglot_steps: int = 5
    calls: int = 7


def scaling_suite(
    devices: Sequence[int] = DEVICES,
    sizes: Sizes = Sizes(),  # noqa: B008
) -> Iterator[Row]:
    """Strong and weak scaling over devices; then threads against devices.

    Args:
        devices: counts, the first of which the others are compared with.
        sizes: of the problems.
    """
    first: dict[tuple[str, str], Row] = {}
    for count in devices:
        for row in in_fresh_process(_in_layout, count, count, _scaling_rows, sizes):
            yield row | _speed(row, first.setdefault((row["name"], row["scaling"]), row))
    yield from threads_against_devices(sizes)


def threads_against_devices(sizes: Sizes = Sizes()) -> Iterator[Row]:  # noqa: B008
    """The same meta-steps on one device with one thread and with two, and on two with one each."""
    for devices, threads in ((1, 1), (1, 2), (2, 1)):
        for row in in_fresh_process(_in_layout, devices, threads, _timed_rows, sizes):
            layout = f"{devices} devices x {threads} threads"
            yield {"name": row["name"], "scaling": layout, **row}


def _in_layout(devices: int, threads: int, fn: Callable[..., Any], *args: Any) -> Any:
    """`fn(*args)` on so many CPU devices, whatever layout this process inherited."""
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = re.sub(r"--xla_force_host_platform_device_count=\d+", "", flags)
    os.environ["PJRT_NPROC"] = str(threads)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    if len(jax.devices()) != devices:
        raise RuntimeError(f"asked JAX for {devices} CPU devices; it has {len(jax.devices())}.")
    return fn(*args)


def _speed(row: Row, first: Row) -> Row:
    """Speed-up of a meta-step, and the most that these cores allow, by time for each task."""
    more = row["devices"] / first["devices"]
    return {
        "ms_a_task": row["median_ms"] / row["tasks"],
        "speed_up": (first["median_ms"] / first["tasks"]) / (row["median_ms"] / row["tasks"]),
        "most_possible": min(more, max(1.0, num_cores() / first["devices"])),
    }


def _sinusoid(tasks: int, sizes: Sizes) -> tuple[str, Setup, Program]:
    setup = problems.sinusoid(num_tasks=tasks)
    return "sinusoid", setup, setup.program(sizes.sinusoid_steps)


def _omniglot(tasks: int, sizes: Sizes) -> tuple[str, Setup, Program]:
    setup = problems.images(OMNIGLOT_5._replace(tasks=tasks), num_filters=sizes.filters)
    return OMNIGLOT_5.name, setup, setup.program(sizes.omniglot_steps)


def _scaling_rows(sizes: Sizes) -> list[Row]:
    devices = len(jax.devices())
    rows = []
    for make in (_sinusoid, _omniglot):
        for scaling, tasks in (("strong", sizes.tasks), ("weak", sizes.tasks_per_device * devices)):
            name, setup, program = make(tasks, sizes)
            row = describe(setup, program, devices)
            rows.append({"name": name, "scaling": scaling, **row, **_times(program, sizes)})
    return rows


def _timed_rows(sizes: Sizes) -> list[Row]:
    rows = []
    for make in (_sinusoid, _omniglot):
        name, _, program = make(sizes.tasks, sizes)
        rows.append({"name": name, "tasks": sizes.tasks, **_times(program, sizes)})
    return rows


def _times(program: Program, sizes: Sizes) -> Row:
    row = program.measure("", sizes.calls)
    return {key: row[key] for key in ("median_ms", "low_ms", "high_ms")}


def describe(setup: Setup, program: Program, devices: int) -> Row:
    """What the compiled program says, beside what the formulas say.

    Args:
        setup: of which the program was made.
        program: on as many devices as divide its tasks.
        devices: that it should run on.
    """
    compiled = program.compile()
    tasks, used = setup.num_tasks, program.train.mesh.size
    reduced = _reduced_bytes(setup, devices)
    by_formula = scratch_bytes(setup, program.train.num_meta_steps, tasks // used, reduced)
    return {
        "tasks": tasks,
        "devices": used,
        **facts(compiled, setup, program, devices),
        "temporary_mb": compiled.memory_analysis().temp_size_in_bytes / 1e6,
        "temporary_mb, formula": by_formula / 1e6,
    }


def facts(compiled: Any, setup: Setup, program: Program, devices: int) -> Row:
    """Counts and bytes that hold for devices of any kind, each beside its formula; if they agree.

    Args:
        compiled: the program.
        setup: of which it was made.
        program: before it was compiled.
        devices: that it should run on.
    """
    text, tasks = compiled.as_text(), setup.num_tasks
    whole = sum(_bytes(leaf) for leaf in jax.tree.leaves((program.state, program.data)))
    counts = collectives(text)
    pairs = {
        "tasks_a_device": (tasks // program.train.mesh.size, tasks // devices),
        "all_reduces": (counts.pop("all-reduce"), int(devices > 1)),
        "other_collectives": (sum(counts.values()), 0),
        "all_reduce_bytes": (all_reduce_bytes(text), _reduced_bytes(setup, devices)),
        "argument_mb": (compiled.memory_analysis().argument_size_in_bytes / 1e6, whole / 1e6),
    }
    row: Row = {}
    for name, (measured, formula) in pairs.items():
        row |= {name: measured, f"{name}, formula": formula}
    agree = all(np.isclose(*pair, rtol=1e-3) for pair in pairs.values())
    return {**row, "agree": "yes" if agree else "NO"}


def _reduced_bytes(setup: Setup, devices: int) -> int:
    """Four bytes a parameter and metric, eight a task: its loss, and whether that is finite."""
    params, task = setup.shapes()
    _, metrics = jax.eval_shape(setup.loss, params, task)
    carried = num_parameters(params) + _elements(metrics) + 2 * setup.num_tasks
    return 4 * carried * int(devices > 1)


def scratch_bytes(setup: Setup, num_meta_steps: int, tasks_a_device: int, reduced: int) -> float:
    """Scratch memory of a device by formula: C B + N d + G + 2 R.

    C tasks at a time need B bytes each, as one task's meta-gradient does that is compiled alone; N
    tasks are drawn at a time (for several meta-steps, where that is faster), d bytes each; the
    gradient is added up in G, and what is reduced over devices, R, goes in and comes out.
    """
    params, task = setup.shapes()
    alone = jax.jit(jax.grad(setup.loss, has_aux=True)).lower(params, task).compile()
    at_once = resolve_batching(setup.batching, tasks_a_device)
    drawn = tasks_a_device * min(setup.steps_per_draw, num_meta_steps)
    task_bytes = sum(_bytes(leaf) for leaf in jax.tree.leaves(task))
    needed = at_once * alone.memory_analysis().temp_size_in_bytes
    return needed + drawn * task_bytes + 4 * num_parameters(params) + 2 * reduced


def _elements(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def _bytes(leaf: Any) -> int:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return leaf.size * leaf.dtype.itemsize
