"""Memory and time of each meta-gradient mode against inner steps and against network width."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib import pyplot as plt

from benchmarks.harness import (
    in_fresh_process,
    resident_mb,
    rotating,
    sample_times,
    summarize,
    variants,
)
from experiments.core import plotting
from experiments.core.results import format_table
from maml_jax import MODES, Task, memory_report, meta_loss
from maml_jax.networks import mlp
from maml_jax.regression import Examples, mean_squared_error

STEPS, WIDTHS = (1, 3, 10, 30, 100), (64, 128, 256, 512, 1024)
FIXED_STEPS, FIXED_WIDTH, EXAMPLES = 10, 256, 2000
SECONDS = 4.0  # for the timing of one row; a longer call is timed once
# Okabe and Ito's palette; markers tell the lines apart without colour.
LOOKS = {
    "reverse": ("#D55E00", "o"),
    "remat": ("#E69F00", "s"),
    "mixed": ("#0072B2", "^"),
    "first_order": ("#009E73", "D"),
}
AXES = {"inner_steps": "inner steps S", "width": "width of the hidden layers"}
MEASURES = {"resident_mb": "peak memory, MB", "median_ms": "one meta-gradient, ms"}


def wide_problem(width: int = FIXED_WIDTH, examples: int = EXAMPLES) -> tuple[Any, Any, Task]:
    """Loss, parameters and task: a tanh network of 64 inputs and three layers, and 1 output.

    With 2,000 support and as many query examples activations outweigh parameters, as they do in
    image networks.
    """
    network = mlp(64, 1, (width, width, width), activation=jnp.tanh)

    def batch(seed: int) -> Examples:
        x = jax.random.normal(jax.random.key(seed), (examples, 64))
        return Examples(x, jnp.sin(x.sum(1, keepdims=True)))

    params = network.init(jax.random.key(0))
    return mean_squared_error(network.apply), params, Task(batch(1), batch(2))


def memory_rows(
    steps: Sequence[int] = STEPS,
    widths: Sequence[int] = WIDTHS,
    modes: Sequence[str] = MODES,
    examples: int = EXAMPLES,
    seconds: float = SECONDS,
) -> list[dict[str, Any]]:
    """Planned and resident memory and time of each mode, each in a process of its own.

    Args:
        steps: inner steps, at a width of 256.
        widths: of the hidden layers, at 10 inner steps.
        modes: of the meta-gradient.
        examples: of the support set, and of the query set.
        seconds: about how long to time each for.
    """
    points = [(s, FIXED_WIDTH) for s in steps] + [(FIXED_STEPS, w) for w in widths]
    return [
        {"mode": mode, "inner_steps": s, "width": w}
        | in_fresh_process(measure_point, mode, s, w, examples, seconds)
        for s, w in dict.fromkeys(points)
        for mode in modes
    ]


def measure_point(
    mode: str, num_steps: int, width: int, examples: int, seconds: float
) -> dict[str, Any]:
    """One row: compiles, runs once for the memory, and then for the time."""
    loss, params, task = wide_problem(width, examples)
    fn = functools.partial(meta_loss, loss, inner_lr=0.01, num_steps=num_steps)
    planned = memory_report(lambda m: functools.partial(fn, mode=m), params, task, modes=(mode,))
    gradient = jax.jit(jax.value_and_grad(functools.partial(fn, mode=mode), has_aux=True))
    compiled = gradient.lower(params, task).compile()
    peak = resident_mb(lambda: jax.block_until_ready(compiled(params, task)))
    times = sample_times(rotating(compiled, variants((params, task))), seconds, 1)
    timing = summarize("meta-gradient", times, None, planned[mode].temporary / 1e6)
    return {**timing._asdict(), "resident_mb": peak}


def against(rows: Sequence[dict[str, Any]], axis: str) -> list[dict[str, Any]]:
    """The rows that differ in one axis only, in its order."""
    other, fixed = ("width", FIXED_WIDTH) if axis == "inner_steps" else ("inner_steps", FIXED_STEPS)
    return sorted((row for row in rows if row[other] == fixed), key=lambda row: row[axis])


def memory_table(rows: Sequence[dict[str, Any]]) -> str:
    """For each axis a table of all modes: memory planned and resident, and time."""
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    parts = []
    for axis, title in AXES.items():
        chosen, lines = against(rows, axis), []
        for value in dict.fromkeys(row[axis] for row in chosen):
            cells = {row["mode"]: _cell(row) for row in chosen if row[axis] == value}
            lines.append([str(value), *(cells.get(mode, "") for mode in modes)])
        parts.append(format_table([title, *modes], lines))
    note = "MB that the compiler plans; MB resident; milliseconds of one meta-gradient"
    return "\n\n".join([note, *parts])


def _cell(row: dict[str, Any]) -> str:
    resident = "?" if row["resident_mb"] is None else f"{row['resident_mb']:,.0f}"
    return f"{row['temporary_mb']:,.0f}; {resident}; {row['median_ms']:,.4g}"


def memory_chart(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Memory and time (rows) against inner steps and width (columns), all axes logarithmic."""
    with plt.rc_context(plotting.STYLE):
        figure, axes = plt.subplots(
            2, 2, figsize=(9, 6.4), sharex="col", sharey="row", layout="constrained"
        )
        for line, (measure, label) in zip(axes, MEASURES.items(), strict=True):
            line[0].set_ylabel(label)
            for ax, axis in zip(line, AXES, strict=True):
                _draw(ax, against(rows, axis), axis, measure)
        for ax, (axis, title) in zip(axes[1], AXES.items(), strict=True):
            values = sorted({row[axis] for row in against(rows, axis)})
            ax.set_xticks(values, [str(v) for v in values])
            ax.minorticks_off()
            ax.set_xlabel(title)
        axes[0][0].set_title(f"width {FIXED_WIDTH}")
        axes[0][1].set_title(f"{FIXED_STEPS} inner steps")
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels) // 2)
        plotting.save(figure, path)


def _draw(ax: Any, rows: Sequence[dict[str, Any]], axis: str, measure: str) -> None:
    """A line for each mode; where it is of memory, what was planned as a dotted line beside it."""
    for mode in dict.fromkeys(row["mode"] for row in rows):
        color, marker = LOOKS[mode]
        mine = [row for row in rows if row["mode"] == mode]
        for name, style in ((measure, "-"), ("temporary_mb", ":")):
            points = [(row[axis], row[name]) for row in mine if row[name] is not None]
            if not points or (style == ":" and measure != "resident_mb"):
                continue
            label = mode.replace("_", " ") + (" (planned)" if style == ":" else "")
            shown = {"marker": marker, "ms": 4} if style == "-" else {}
            ax.plot(*zip(*points, strict=True), style, color=color, lw=1.6, label=label, **shown)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.grid(axis="y", color="#dddddd", lw=0.6)
