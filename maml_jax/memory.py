"""How much memory a meta-gradient needs in each mode, and which modes fit: nothing is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from maml_jax import checks
from maml_jax.meta_gradient import MODES
from maml_jax.types import Params, PyTree, Task, TaskLoss

# Fastest first where memory is plenty; the last is another gradient.
PREFERENCE = ("reverse", "mixed", "remat", "first_order")


class MemoryUse(NamedTuple):
    """What a compiled meta-gradient needs, in bytes.

    Attributes:
        temporary: scratch memory, where activations and tapes live; what the modes differ in.
        arguments: the parameters and tasks that go in.
        outputs: the loss and gradient that come out.
    """

    temporary: int
    arguments: int
    outputs: int

    @property
    def total(self) -> int:
        """All three, bytes."""
        return sum(self)


def memory_report(
    loss_of_mode: Callable[[str], Callable[..., Any]],
    *args: Any,
    modes: Sequence[str] = MODES,
    has_aux: bool = True,
) -> dict[str, MemoryUse]:
    """Compiles the meta-gradient of a user's own problem in each mode and reports its memory.

    Nothing is run, so that a mode which would not fit can be asked about: `args` may be arrays or
    `jax.ShapeDtypeStruct`s.

        report = memory_report(
            lambda mode: functools.partial(meta_loss, loss_fn, inner_lr=0.1, num_inner_steps=10,
                                           mode=mode),
            params, task)

    Args:
        loss_of_mode: `loss_of_mode(mode) -> fn(params, ...)`, to be differentiated in `params`.
        *args: the arguments of `fn`.
        modes: which of `MODES` to compile.
        has_aux: whether `fn` returns `(loss, metrics)` rather than the loss alone.

    Returns:
        For each mode its `MemoryUse`, as the compiler accounts for it.

    Raises:
        ValueError: a mode is none of `MODES`.
        NotImplementedError: the platform's compiler does not report memory.
    """
    report = {}
    for mode in modes:
        checks.check_choice(mode, MODES, "mode")
        fn = jax.value_and_grad(loss_of_mode(mode), has_aux=has_aux)
        analysis = jax.jit(fn).lower(*args).compile().memory_analysis()
        if analysis is None:
            raise NotImplementedError(
                f"the compiler of platform {jax.default_backend()!r} does not report memory."
            )
        report[mode] = MemoryUse(
            int(analysis.temp_size_in_bytes),
            int(analysis.argument_size_in_bytes),
            int(analysis.output_size_in_bytes),
        )
    return report


def fitting_modes(report: Mapping[str, MemoryUse], available: int) -> tuple[str, ...]:
    """The modes of a memory report that fit, the one to take first.

    Args:
        report: what `memory_report` gave.
        available: bytes that may be taken, arguments and outputs included.

    Returns:
        Those that need no more than that: `"reverse"`, `"mixed"`, `"remat"`, and last
        `"first_order"`, which is another gradient.

    Raises:
        ValueError: `available` is negative.
    """
    _check_available(available)
    return tuple(m for m in PREFERENCE if m in report and report[m].total <= available)


def _check_available(available: int) -> None:
    if available < 0:
        raise ValueError(f"available must be 0 or more bytes; received {available}.")


def format_memory_report(report: Mapping[str, MemoryUse], available: int | None = None) -> str:
    """A memory report as a text table in megabytes, one mode a line.

    Args:
        report: what `memory_report` gave.
        available: bytes that may be taken. With it, modes that need more are marked, and a last
            sentence says which mode to take, or what to do if none fits.
    """
    fitting = tuple(report) if available is None else fitting_modes(report, available)
    lines = [f"{'mode':<12} {'temporary MB':>13} {'arguments MB':>13} {'outputs MB':>11}"]
    for mode, use in report.items():
        temporary, arguments, outputs = (value / 1e6 for value in use)
        line = f"{mode:<12} {temporary:>13,.2f} {arguments:>13,.2f} {outputs:>11,.2f}"
        lines.append(line if mode in fitting else f"{line}  does not fit")
    if available is not None:
        changes = {"mode": fitting[0]} if fitting else None
        lines.append(Advice(0, available, changes).sentence())
    return "\n".join(lines)


class Advice(NamedTuple):
    """Whether a meta-gradient fits into memory, and what to change if it does not.

    Attributes:
        needed: bytes of the meta-gradient that was asked about; an upper bound, where that fits.
        available: bytes that may be taken.
        changes: arguments with the values that make it fit, `{"mode": "mixed"}` say; empty if it
            fits as it is, None if nothing does.
    """

    needed: int
    available: int
    changes: Mapping[str, str] | None

    @property
    def fits(self) -> bool:
        """Whether nothing has to change."""
        return self.changes is not None and not self.changes

    def sentence(self, write: Callable[[str, str], str] = "{}={!r}".format) -> str:
        """The advice as a sentence; `write(argument, value)` names a change, as code by default."""
        if self.changes is None:
            return (
                "No mode fits: take fewer tasks at once, a smaller network, fewer or smaller "
                "examples, or more devices."
            )
        if self.fits:
            return "It fits."
        changes = " ".join(write(name, value) for name, value in self.changes.items())
        if self.changes.get("mode") == "first_order":
            return f"Only {changes} fits, which is another gradient."
        return f"{changes} fits."


def advise(
    loss_of_mode: Callable[[str], TaskLoss],
    params: Params,
    task: Task,
    *,
    mode: str,
    available: int,
    tasks_at_once: int = 1,
) -> Advice:
    """Whether a meta-gradient fits into memory; if not, the first other setting that does.

    Nothing is run. Compiling takes seconds, or half a minute, so that is done only where
    `upper_bound` is more than is available; tracing for that takes half a second. An optimizer and
    an evaluation need memory beside this, and less of it.

    Args:
        loss_of_mode: `loss_of_mode(mode) -> loss(params, task)`, as in `memory_report`.
        params: meta-parameters, or their `jax.ShapeDtypeStruct`s.
        task: one task, or its shapes.
        mode: of `MODES`, the one to be used.
        available: bytes that one device may take.
        tasks_at_once: tasks that one device takes as one batch, from 1, `batching="scan"`.

    Returns:
        The advice. It tries mixed mode before one task after the other, and first order last,
        which is another gradient; rematerialising needs what mixed mode needs.

    Raises:
        ValueError: an unknown mode, `tasks_at_once` below 1, or `available` below 0.
        NotImplementedError: the platform's compiler does not report memory.
    """
    checks.check_choice(mode, MODES, "mode")
    checks.check_counts(tasks_at_once=tasks_at_once)
    _check_available(available)
    loss, tasks = _batched(loss_of_mode(mode), task, tasks_at_once)
    needed = upper_bound(jax.value_and_grad(loss), params, tasks)
    if needed > available:
        needed = _needs(loss_of_mode, params, task, tasks_at_once, mode)
    if needed <= available:
        return Advice(needed, available, {})
    for other, count in _alternatives(mode, tasks_at_once):
        if _needs(loss_of_mode, params, task, count, other) <= available:
            changes = {"mode": other} if other != mode else {}
            return Advice(
                needed, available, changes | ({"batching": "scan"} if count < tasks_at_once else {})
            )
    return Advice(needed, available, None)


def _alternatives(mode: str, tasks_at_once: int) -> list[tuple[str, int]]:
    """Modes with tasks at once, in the order in which they are tried."""
    modes = dict.fromkeys((mode, mode if mode == "first_order" else "mixed"))
    exact = [(m, count) for count in (tasks_at_once, 1) for m in modes]
    return list(dict.fromkeys([*exact, ("first_order", 1)]))[1:]


def _needs(
    loss_of_mode: Callable[[str], TaskLoss],
    params: Params,
    task: Task,
    tasks_at_once: int,
    mode: str,
) -> int:
    """Bytes, as the compiler plans them."""
    loss, tasks = _batched(loss_of_mode(mode), task, tasks_at_once)
    report = memory_report(lambda _: loss, params, tasks, modes=(mode,), has_aux=False)
    return report[mode].total


def _batched(loss: TaskLoss, task: Task, count: int) -> tuple[Callable[..., Any], PyTree]:
    """The summed loss of tasks, and the shapes of that many; of one without an axis of tasks."""
    if count == 1:
        return lambda p, t: loss(p, t)[0], task
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), task)
    return lambda p, tasks: jax.vmap(lambda t: loss(p, t)[0])(tasks).sum(), shapes


def upper_bound(fn: Callable[..., Any], *args: Any) -> int:
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
