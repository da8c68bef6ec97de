"""How much memory a meta-gradient needs in each mode, and which modes fit: nothing is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from maml_jax import checks
from maml_jax.meta_gradient import MODES

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
    if available < 0:
        raise ValueError(f"available must be 0 or more bytes; received {available}.")
    return tuple(m for m in PREFERENCE if m in report and report[m].total <= available)


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
        lines.append(_advice(fitting, available))
    return "\n".join(lines)


def _advice(fitting: Sequence[str], available: int) -> str:
    """Which of the modes that fit to take, as a sentence."""
    memory = f"{available / 1e6:,.2f} MB"
    fewer = "a smaller chunk of tasks at once (batching=) or fewer tasks a device"
    if not fitting:
        return f"No mode fits into {memory}: take {fewer}."
    if fitting[0] == "first_order":
        return (
            f"No exact mode fits into {memory}: take {fewer}; "
            "mode='first_order' fits, but is another gradient."
        )
    return f"mode={fitting[0]!r} fits into {memory}."
