"""Whether a meta-gradient fits into memory, asked before training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.core import process
from experiments.few_shot.config import Config
from maml_jax import memory_report
from maml_jax.batching import TASK_AXIS, resolve_batching, sum_gradient
from maml_jax.types import Params, Task, TaskLoss


def warn_if_too_large(
    config: Config,
    loss_of_mode: Callable[[str], TaskLoss],
    params: Params,
    task: Task,
    mesh: Mesh,
) -> None:
    """Warns on stderr if the meta-gradient of a run will not fit, and names the flag that helps.

    The tasks that a device takes at once are what counts. Compiling only to ask takes seconds, or
    half a minute, so it is done only if `bound` is more than is left; tracing for that takes half
    a second. What the optimizer and the validation need comes on top and is less.

    Args:
        config: of the run.
        loss_of_mode: the loss of one task in a mode.
        params: their shapes, `jax.ShapeDtypeStruct`s.
        task: the shapes of one task.
        mesh: the devices that take tasks.
    """
    available = process.available_memory()
    if available is None:
        return
    if mesh.devices.flat[0].platform == "cpu":  # whose devices share one memory
        available //= len(mesh.local_devices)
    chunk = resolve_batching(config.batching, config.num_tasks // mesh.shape[TASK_AXIS])  # pyright: ignore

    def gradient(mode: str) -> Callable[..., Any]:
        return lambda p, tasks: sum_gradient(loss_of_mode(mode), p, tasks, "vmap")

    if bound(gradient(config.mode), params, _stack(task, chunk)) <= available:
        return
    need = _needs(loss_of_mode, params, task, chunk, config.mode)
    if need > available:
        advice = _advice(config, loss_of_mode, params, task, chunk, available)
        print(
            f"warning: the meta-gradient of {chunk} task{'s' * (chunk > 1)} at once needs "
            f"{need / 1e6:,.0f} MB on each device, and {available / 1e6:,.0f} MB are left. "
            f"{advice}",
            file=sys.stderr,
        )


def _advice(
    config: Config,
    loss_of_mode: Callable[[str], TaskLoss],
    params: Params,
    task: Task,
    chunk: int,
    available: int,
) -> str:
    """The first other setting that fits, as a sentence; rematerialising needs what mixed needs."""
    exact = dict.fromkeys((config.mode, "first_order" if config.first_order else "mixed"))
    settings = [(mode, size) for size in dict.fromkeys((chunk, 1)) for mode in exact]
    for mode, size in [*settings[1:], ("first_order", 1)]:
        if _needs(loss_of_mode, params, task, size, mode) > available:
            continue
        flags = [] if size == chunk else ["--task_batching=scan"]
        if mode == config.mode:
            return f"{flags[0]} fits." if flags else _NOTHING_FITS
        if mode == "first_order":
            return f"Only {' '.join(['--first_order', *flags])} fits, which is another gradient."
        return f"{' '.join([f'--meta_gradient={mode}', *flags])} fits."
    return _NOTHING_FITS


_NOTHING_FITS = (
    "No mode fits: take a smaller network or fewer images (--num_filters, --image_size, "
    "--train_queries), or more devices."
)


def bound(fn: Callable[..., Any], *args: Any) -> int:
    """Bytes of all values that a function computes, as if none could be freed or fused.

    An upper bound of what the compiled program keeps: that frees a value after its last use, and
    never makes most of them. It is 3 to 30 times as much on the paper's networks. Nothing is
    compiled: `args` may be shapes.
    """
    jaxpr = jax.make_jaxpr(fn)(*args)
    inputs = sum(_bytes(v.aval) for v in jaxpr.jaxpr.invars)
    return inputs + sum(_bytes(v.aval) for v in _computed(jaxpr.jaxpr))


def _computed(jaxpr: Any) -> Iterator[Any]:
    """The results of all equations, at any depth; a loop keeps what it stacks, and one turn."""
    for equation in jaxpr.eqns:
        yield from equation.outvars
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                yield from _computed(getattr(value, "jaxpr", value))


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def _bytes(aval: Any) -> int:
    size = int(np.prod(getattr(aval, "shape", ())))
    return size * getattr(getattr(aval, "dtype", None), "itemsize", 0)


def _stack(task: Task, chunk: int) -> Task:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((chunk, *x.shape), x.dtype), task)


def _needs(
    loss_of_mode: Callable[[str], TaskLoss], params: Params, task: Task, chunk: int, mode: str
) -> int:
    """Bytes, as the compiler plans them."""

    def batch_loss(mode: str) -> Callable[..., Any]:
        one = loss_of_mode(mode)
        if chunk == 1:  # as `sum_gradient` takes it
            return lambda p, t: one(p, t)[0]
        return lambda p, tasks: jax.vmap(lambda t: one(p, t)[0])(tasks).sum()

    tasks = task if chunk == 1 else _stack(task, chunk)
    return memory_report(batch_loss, params, tasks, modes=(mode,), has_aux=False)[mode].total
