"""Predicts the memory of a meta-gradient in each mode from compiled programs, without runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from maml_jax import checks
from maml_jax.meta_gradient import MODES
from maml_jax.types import Params, PyTree, Task, TaskLoss

# Fastest first. The last mode is an approximation of the meta-gradient.
PREFERENCE = ("reverse", "mixed", "remat", "first_order")


class MemoryUse(NamedTuple):
    """Memory of a compiled meta-gradient, in bytes.

    Attributes:
        temporary: scratch memory for activations and residuals; the modes differ here.
        arguments: parameters and tasks.
        outputs: loss, metrics and gradient.

    Example:
        >>> from maml_jax import MemoryUse
        >>> MemoryUse(temporary=700, arguments=200, outputs=100).total
        1000
    """

    temporary: int
    arguments: int
    outputs: int

    @property
    def total(self) -> int:
        """The sum of all three, in bytes."""
        return sum(self)


def memory_report(
    loss_of_mode: Callable[[str], Callable[..., Any]],
    *args: Any,
    modes: Sequence[str] = MODES,
    has_aux: bool = True,
) -> dict[str, MemoryUse]:
    """Compiles a meta-gradient in each mode and reports its memory; runs nothing.

    Args:
        loss_of_mode: `loss_of_mode(mode) -> fn(params, ...)`, to be differentiated in `params`.
        *args: arguments of `fn`, arrays or `jax.ShapeDtypeStruct`s.
        modes: the modes to compile, out of `MODES`.
        has_aux: whether `fn` returns `(loss, metrics)` instead of the loss.

    Returns:
        The `MemoryUse` of each mode, as the compiler reports it.

    Raises:
        ValueError: a mode is none of `MODES`.
        NotImplementedError: the platform's compiler does not report memory.

    Example:
        >>> import functools
        >>> import jax.numpy as jnp
        >>> from maml_jax import Task, memory_report, meta_loss
        >>> loss_fn = lambda theta, target: (jnp.mean((theta - target) ** 2), {})
        >>> loss = functools.partial(meta_loss, loss_fn, inner_lr=0.1)
        >>> loss_of_mode = lambda mode: functools.partial(loss, mode=mode)
        >>> theta = jnp.zeros(1000)  # 4,000 bytes
        >>> report = memory_report(loss_of_mode, theta, Task(theta, theta), modes=("reverse",))
        >>> report["reverse"].arguments
        12000
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
    """Returns the modes of a memory report that fit into memory, the fastest first.

    Args:
        report: from `memory_report`.
        available: bytes for scratch memory, arguments and outputs together.

    Returns:
        The fitting modes in the order `"reverse"`, `"mixed"`, `"remat"`, `"first_order"`. The last
        one approximates the meta-gradient.

    Raises:
        ValueError: `available` is negative.

    Example:
        >>> from maml_jax import MemoryUse, fitting_modes
        >>> report = {"reverse": MemoryUse(900, 50, 50), "mixed": MemoryUse(300, 50, 50)}
        >>> fitting_modes(report, available=500)
        ('mixed',)
    """
    _check_available(available)
    return tuple(m for m in PREFERENCE if m in report and report[m].total <= available)


def _check_available(available: int) -> None:
    if available < 0:
        raise ValueError(f"available must be 0 or more bytes; received {available}.")


def format_memory_report(report: Mapping[str, MemoryUse], available: int | None = None) -> str:
    """Formats a memory report as a text table in megabytes, one mode per line.

    Args:
        report: from `memory_report`.
        available: bytes of memory, optional. The table then marks modes that need more and ends
            with a recommendation.

    Example:
        >>> from maml_jax import MemoryUse, format_memory_report
        >>> report = {"reverse": MemoryUse(9_000_000, 0, 0), "mixed": MemoryUse(3_000_000, 0, 0)}
        >>> table = format_memory_report(report, available=5_000_000)
        >>> table.splitlines()[-1]
        "mode='mixed' fits."
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
    """Whether a meta-gradient fits into memory, and the changes that make it fit.

    Attributes:
        needed: bytes of the meta-gradient; only an upper bound if that fits.
        available: bytes of memory.
        changes: arguments with values that make it fit, for example `{"mode": "mixed"}`; empty if
            no change is needed, None if no change helps.
    """

    needed: int
    available: int
    changes: Mapping[str, str] | None

    @property
    def fits(self) -> bool:
        """Whether the meta-gradient fits without changes."""
        return self.changes is not None and not self.changes

    def sentence(self, write: Callable[[str, str], str] = "{}={!r}".format) -> str:
        """Returns the advice as a sentence; `write(argument, value)` formats each change."""
        if self.changes is None:
            return (
                "No mode fits: take fewer tasks at once, a smaller network, fewer or smaller "
                "examples, or more devices."
            )
        if self.fits:
            return "It fits."
        changes = " ".join(write(name, value) for name, value in self.changes.items())
        if self.changes.get("mode") == "first_order":
            return f"Only {changes} fits, which approximates the meta-gradient."
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
    """Checks whether a meta-gradient fits into memory; if not, finds a setting that fits.

    Runs nothing. Traces first (half a second) and compiles (up to half a minute) only if
    `upper_bound` exceeds the available memory. Optimizers and evaluations need additional memory.

    Args:
        loss_of_mode: `loss_of_mode(mode) -> loss(params, task)`, as in `memory_report`.
        params: meta-parameters, or their `jax.ShapeDtypeStruct`s.
        task: one task, or its shapes.
        mode: the intended mode, out of `MODES`.
        available: bytes of memory of one device.
        tasks_at_once: tasks that one device runs as one batch; 1 for `batching="scan"`.

    Returns:
        The advice. It prefers mixed mode, then one task at a time, then both. It falls back to
        first order, which approximates the meta-gradient. It omits remat, which needs as much
        memory as mixed mode.

    Raises:
        ValueError: `mode` is unknown, `tasks_at_once` is below 1, or `available` is below 0.
        NotImplementedError: the platform's compiler does not report memory.

    Example:
        >>> import functools
        >>> import jax.numpy as jnp
        >>> from maml_jax import Task, advise, meta_loss
        >>> loss_fn = lambda theta, target: ((theta - target) ** 2, {})
        >>> loss = functools.partial(meta_loss, loss_fn, inner_lr=0.1)
        >>> loss_of_mode = lambda mode: functools.partial(loss, mode=mode)
        >>> task = Task(support=jnp.array(1.0), query=jnp.array(2.0))
        >>> advise(loss_of_mode, jnp.array(0.0), task, mode="reverse", available=10**6).sentence()
        'It fits.'
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
    """Returns pairs of a mode and a number of tasks at once, in the order of preference."""
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
    """Returns the bytes that the compiler reports."""
    loss, tasks = _batched(loss_of_mode(mode), task, tasks_at_once)
    report = memory_report(lambda _: loss, params, tasks, modes=(mode,), has_aux=False)
    return report[mode].total


def _batched(loss: TaskLoss, task: Task, count: int) -> tuple[Callable[..., Any], PyTree]:
    """Returns the summed loss of `count` tasks and their shapes; one task has no task axis."""
    if count == 1:
        return lambda p, t: loss(p, t)[0], task
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), task)
    return lambda p, tasks: jax.vmap(lambda t: loss(p, t)[0])(tasks).sum(), shapes


def upper_bound(fn: Callable[..., Any], *args: Any) -> int:
    """Returns the bytes of all values that a function computes, an upper bound of its memory.

    The compiled program frees values after their last use and fuses most of them away; it needs
    1/30 to 1/3 of this bound on the paper's networks. Compiles nothing: `args` may be shapes.
    """
    jaxpr = jax.make_jaxpr(fn)(*args)
    inputs = sum(_bytes(v.aval) for v in jaxpr.jaxpr.invars)
    return inputs + sum(_bytes(v.aval) for v in _computed(jaxpr.jaxpr))


def _computed(jaxpr: Any) -> Iterator[Any]:
    """Yields the results of all equations at any depth; counts one iteration of each loop."""
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
