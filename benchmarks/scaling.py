"""How a meta-step scales over devices, on simulated CPU devices, against what it should by formula.

A device count is fixed when JAX starts, so each has a process of its own. What the program says of
itself (how many all-reduces, what they carry, memory of its arguments, tasks a device) holds for
any devices and must agree with the formula; the times are those of devices that share this
machine's cores, and cannot speed up beyond their number.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import classification, core
from benchmarks.harness import Timing, in_fresh_process, measure_loop
from benchmarks.programs import all_reduce_bytes, collectives
from experiments.core.process import num_cores
from maml_jax import task_mesh
from maml_jax.batching import replicate, resolve_batching
from maml_jax.networks import num_parameters

DEVICES = (1, 2, 4, 8)
TASKS, TASKS_PER_DEVICE = 32, 4  # fixed in all (strong), or for each device (weak)
OMNIGLOT = classification.OMNIGLOT_5._replace(name="Omniglot 5-way 1-shot")


class Program(NamedTuple):
    """A training program and what its formulas need.

    Attributes:
        train: `train(state, *data) -> (state, metrics)`.
        state: to begin with.
        data: further arguments.
        task_loss: of one task.
        task: shapes of one.
        per_call: meta-steps of a dispatch.
        batching: of the tasks on a device.
        drawn: meta-steps that tasks are drawn for at a time.
    """

    train: Callable[..., Any]
    state: Any
    data: tuple[Any, ...]
    task_loss: Callable[..., Any]
    task: Any
    per_call: int
    batching: str
    drawn: int


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
) -> list[dict[str, Any]]:
    """Strong and weak scaling over devices; then threads against devices.

    Args:
        devices: counts, the first of which the others are compared with.
        sizes: of the problems.
    """
    rows = []
    for count in devices:
        rows += in_fresh_process(_in_layout, count, count, _scaling_rows, sizes)
    for row in rows:
        first = next(r for r in rows if (r["name"], r["scaling"]) == (row["name"], row["scaling"]))
        row |= _speed(row, first)
    return rows + threads_against_devices(sizes)


def threads_against_devices(sizes: Sizes = Sizes()) -> list[dict[str, Any]]:  # noqa: B008
    """The same meta-steps on one device with one thread and with two, and on two with one each."""
    rows = []
    for devices, threads in ((1, 1), (1, 2), (2, 1)):
        found = in_fresh_process(_in_layout, devices, threads, _timed_rows, sizes)
        rows += [
            {"name": row["name"], "scaling": f"{devices} devices x {threads} threads", **row}
            for row in found
        ]
    return rows


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


def _speed(row: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    """Speed-up of a meta-step, and the most that these cores allow, by time for each task."""
    more = row["devices"] / first["devices"]
    return {
        "ms_a_task": row["median_ms"] / row["tasks"],
        "speed_up": (first["median_ms"] / first["tasks"]) / (row["median_ms"] / row["tasks"]),
        "most_possible": min(more, max(1.0, num_cores() / first["devices"])),
    }


def _scaling_rows(sizes: Sizes) -> list[dict[str, Any]]:
    devices = len(jax.devices())
    rows = []
    for make in (sinusoid_program, omniglot_program):
        for scaling, tasks in (("strong", sizes.tasks), ("weak", sizes.tasks_per_device * devices)):
            name, program = make(tasks, sizes)
            found, step, state = describe(program, tasks, devices)
            timing = measure_loop(name, step, state, sizes.calls, program.per_call)
            rows.append({"name": name, "scaling": scaling, **found, **_times(timing)})
    return rows


def _timed_rows(sizes: Sizes) -> list[dict[str, Any]]:
    rows = []
    for make in (sinusoid_program, omniglot_program):
        name, program = make(sizes.tasks, sizes)
        step = lambda state, p=program: p.train(state, *p.data)
        timing = measure_loop(name, step, program.state, sizes.calls, program.per_call)
        rows.append({"name": name, "tasks": sizes.tasks, **_times(timing)})
    return rows


def _times(timing: Timing) -> dict[str, float]:
    return {key: getattr(timing, key) for key in ("median_ms", "low_ms", "high_ms")}


def describe(
    program: Program, tasks: int, devices: int
) -> tuple[dict[str, Any], Callable[[Any], Any], Any]:
    """What the compiled program says, beside what the formulas say.

    Args:
        program: for so many tasks.
        tasks: T of a meta-batch.
        devices: that it should run on.

    Returns:
        The row; and the compiled `state -> (state, metrics)` with a state to begin with.
    """
    mesh = task_mesh(tasks)
    state, *data = replicate((program.state, *program.data), mesh)
    compiled = jax.jit(program.train).lower(state, *data).compile()
    text, memory = compiled.as_text(), compiled.memory_analysis()
    _, metrics = jax.eval_shape(program.task_loss, program.state.params, program.task)
    carried = num_parameters(program.state.params) + _elements(metrics) + 2 * tasks
    whole = sum(_bytes(leaf) for leaf in jax.tree.leaves((state, data)))
    several = int(devices > 1)
    found = collectives(text)
    facts = {
        "tasks_a_device": (tasks // mesh.size, tasks // devices),
        "all_reduces": (found.pop("all-reduce"), several),
        "other_collectives": (sum(found.values()), 0),
        "all_reduce_bytes": (all_reduce_bytes(text), 4 * carried * several),
        "argument_mb": (memory.argument_size_in_bytes / 1e6, whole / 1e6),
    }
    row: dict[str, Any] = {"tasks": tasks, "devices": mesh.size}
    for name, (measured, formula) in facts.items():
        row |= {name: measured, f"{name}, formula": formula}
    row["agree"] = "yes" if all(np.isclose(*pair, rtol=1e-3) for pair in facts.values()) else "NO"
    row["temporary_mb"] = memory.temp_size_in_bytes / 1e6
    by_formula = scratch_bytes(program, tasks // mesh.size, 4 * carried * several)
    row["temporary_mb, formula"] = by_formula / 1e6
    return row, lambda s: compiled(s, *data), state


def scratch_bytes(program: Program, tasks_a_device: int, reduced: int) -> float:
    """Scratch memory of a device by formula: C B + N d + G + 2 R.

    C tasks at a time need B bytes each, as one task's meta-gradient does that is compiled alone; N
    tasks are drawn at a time (for several meta-steps, where that is faster), d bytes each; the
    gradient is added up in G, and what is reduced over devices, R, goes in and comes out.
    """
    params, task = program.state.params, program.task
    alone = jax.jit(jax.grad(program.task_loss, has_aux=True)).lower(params, task).compile()
    at_once = resolve_batching(program.batching, tasks_a_device)
    drawn = tasks_a_device * program.drawn * sum(_bytes(leaf) for leaf in jax.tree.leaves(task))
    needed = at_once * alone.memory_analysis().temp_size_in_bytes
    return needed + drawn + 4 * num_parameters(params) + 2 * reduced


def sinusoid_program(tasks: int, sizes: Sizes = Sizes()) -> tuple[str, Program]:  # noqa: B008
    """The paper's sinusoid with another number of tasks."""
    task = jax.eval_shape(lambda key: core.PROBLEM.sample(None, key), jax.random.key(0))
    train = core.trainer("mixed", sizes.sinusoid_steps, num_tasks=tasks)
    loss = core.sinusoid_loss("mixed")
    steps = sizes.sinusoid_steps
    return "sinusoid", Program(train, core.start(), (), loss, task, steps, "vmap", min(50, steps))


def omniglot_program(tasks: int, sizes: Sizes = Sizes()) -> tuple[str, Program]:  # noqa: B008
    """Omniglot 5-way 1-shot with another number of tasks."""
    case, steps, filters = OMNIGLOT._replace(tasks=tasks), sizes.omniglot_steps, sizes.filters
    train, state, images = classification.train_program(case, steps, num_filters=filters)
    loss = classification.task_loss(case, case.network(num_filters=filters), case.mode)
    task = classification.task_shapes(case)
    return case.name, Program(train, state, (images,), loss, task, steps, "scan", 1)


def _elements(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def _bytes(leaf: Any) -> int:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return leaf.size * leaf.dtype.itemsize
