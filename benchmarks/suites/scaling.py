"""Measures how a meta-step scales over simulated CPU devices, and compares it with formulas.

JAX fixes the number of devices when it starts, so each number gets a new process. The counts and
bytes of a compiled program (all-reduces, memory of arguments, tasks on a device) hold for devices
of any kind and must agree with the formulas. The times do not: simulated devices share this
machine's cores, whose number bounds the speed-up.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import problems
from benchmarks.harness import TIMES, Row, in_fresh_process, planned_mb
from benchmarks.problems import OMNIGLOT_5, Program, Setup
from benchmarks.programs import all_reduce_bytes, collectives
from experiments.core.process import num_cores
from maml_jax.batching import resolve_batching
from maml_jax.networks import num_parameters

DEVICES = (1, 2, 4, 8)
TASKS, TASKS_PER_DEVICE = 32, 4  # T in strong scaling; T / devices in weak scaling


class Sizes(NamedTuple):
    """Sizes of the problems and of the measurement.

    Attributes:
        tasks: T in strong scaling.
        tasks_per_device: T / devices in weak scaling.
        filters: of Omniglot's convolutions.
        sinusoid_steps: meta-steps in a dispatch.
        omniglot_steps: meta-steps in a dispatch.
        calls: number of timed dispatches.
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
    """Measures strong and weak scaling over devices; then compares threads with devices.

    Args:
        devices: numbers of devices; speed-ups are relative to the first.
        sizes: of the problems and of the measurement.
    """
    first: dict[tuple[str, str], Row] = {}
    for count in devices:
        for row in in_fresh_process(_in_layout, count, count, _scaling_rows, sizes):
            yield row | _speed(row, first.setdefault((row["name"], row["scaling"]), row))
    yield from threads_against_devices(sizes)


def threads_against_devices(sizes: Sizes = Sizes()) -> Iterator[Row]:  # noqa: B008
    """Times the same meta-steps with one thread, with two threads, and with two devices."""
    for devices, threads in ((1, 1), (1, 2), (2, 1)):
        for row in in_fresh_process(_in_layout, devices, threads, _timed_rows, sizes):
            layout = f"{devices} devices x {threads} threads"
            yield {"name": row["name"], "scaling": layout, **row}


def _in_layout(devices: int, threads: int, fn: Callable[..., Any], *args: Any) -> Any:
    """Returns `fn(*args)`, run on `devices` CPU devices; replaces the inherited layout."""
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = re.sub(r"--xla_force_host_platform_device_count=\d+", "", flags)
    os.environ["PJRT_NPROC"] = str(threads)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    if len(jax.devices()) != devices:
        raise RuntimeError(f"asked JAX for {devices} CPU devices; it has {len(jax.devices())}.")
    return fn(*args)


def _speed(row: Row, first: Row) -> Row:
    """Returns the speed-up of the time for each task, and the largest that the cores allow."""
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
    return {key: row[key] for key in TIMES}


def describe(setup: Setup, program: Program, devices: int) -> Row:
    """Compares the compiled program with the formulas.

    Args:
        setup: from which the program was made.
        program: on the largest number of devices that divides its tasks.
        devices: number of devices that it should use.
    """
    compiled = program.compile()
    tasks, used = setup.num_tasks, program.train.mesh.size
    reduced = _reduced_bytes(setup, devices)
    by_formula = scratch_bytes(setup, program.train.num_meta_steps, tasks // used, reduced)
    return {
        "tasks": tasks,
        "devices": used,
        **facts(compiled, setup, program, devices),
        "temporary_mb": planned_mb(compiled),
        "temporary_mb, formula": by_formula / 1e6,
    }


def facts(compiled: Any, setup: Setup, program: Program, devices: int) -> Row:
    """Compares the counts and bytes that hold for devices of any kind with their formulas.

    Args:
        compiled: the compiled program.
        setup: from which it was made.
        program: before it was compiled.
        devices: number of devices that it should use.

    Returns:
        Each quantity, its formula's value, and `agree`: whether all are equal.
    """
    text, tasks = compiled.as_text(), setup.num_tasks
    whole = _tree_bytes((program.state, program.data))
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
    """Returns the all-reduce's bytes: 4 for a parameter or metric, 8 for a task.

    A task contributes its loss and whether it is finite.
    """
    params, task = setup.shapes()
    _, metrics = jax.eval_shape(setup.loss, params, task)
    carried = num_parameters(params) + _elements(metrics) + 2 * setup.num_tasks
    return 4 * carried * int(devices > 1)


def scratch_bytes(setup: Setup, num_meta_steps: int, tasks_a_device: int, reduced: int) -> float:
    """Returns a device's scratch memory by the formula C B + N d + G + 2 R.

    C is the number of tasks computed at once and B the scratch memory of one task's meta-gradient,
    compiled alone; N tasks of d bytes each are drawn together, G is the size of the gradient's sum,
    and R the bytes of the all-reduce, needed for its input and its output.

    Args:
        setup: the problem.
        num_meta_steps: in a dispatch.
        tasks_a_device: tasks on a device.
        reduced: R, in bytes.
    """
    params, task = setup.shapes()
    alone = jax.jit(jax.grad(setup.loss, has_aux=True)).lower(params, task).compile()
    at_once = resolve_batching(setup.batching, tasks_a_device)
    drawn = tasks_a_device * min(setup.steps_per_draw, num_meta_steps)
    needed = at_once * alone.memory_analysis().temp_size_in_bytes
    return needed + drawn * _tree_bytes(task) + 4 * num_parameters(params) + 2 * reduced


def _elements(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def _tree_bytes(tree: Any) -> int:
    return sum(_bytes(leaf) for leaf in jax.tree.leaves(tree))


def _bytes(leaf: Any) -> int:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return leaf.size * leaf.dtype.itemsize
