"""Times the core functions on the sinusoid's network."""

from __future__ import annotations

from collections.abc import Iterator

import jax

from benchmarks.harness import TIMES, Row, measure
from benchmarks.problems import NUM_TASKS, sinusoid
from maml_jax import MODES, adapt, inner_update

LR = 0.01


def core_suite() -> Iterator[Row]:
    """Times `inner_update`, `adapt`, the meta-gradient in each mode, and meta-steps."""
    setup = sinusoid()
    params, tasks, loss = setup.params(), setup.tasks(), setup.problem.inner_loss
    support = jax.tree.map(lambda x: x[0], tasks.support)
    step = lambda p, batch: inner_update(loss, p, batch, LR)[0]
    yield measure("inner_update, 1 task", step, params, support)
    steps = lambda p, batch: adapt(loss, p, batch, LR, 5)[0]
    yield measure("adapt, 5 steps, 1 task", steps, params, support)
    for num_inner_steps in (1, 5):
        for mode in MODES:
            gradient = sinusoid(mode, num_inner_steps, inner_lr=LR).gradient
            name = f"meta-gradient, {mode}, S={num_inner_steps}, {NUM_TASKS} tasks"
            yield measure(name, gradient, params, tasks)
    for batching in ("scan", 5):
        gradient = sinusoid("reverse", inner_lr=LR, batching=batching).gradient
        name = f"meta-gradient, reverse, S=1, batching={batching}"
        yield measure(name, gradient, params, tasks)
    one_by_one = setup._replace(steps_per_draw=1)
    yield one_by_one.program(1).measure("meta-step, dispatched one by one", 200)
    setups = {mode: sinusoid(mode) for mode in MODES}
    setups["mixed, tasks drawn one step at a time"] = one_by_one
    for name, chosen in setups.items():
        yield chosen.program(1000).measure(f"meta-step, 1,000 a dispatch, {name}", 7)


def sinusoid_suite() -> Iterator[Row]:
    """Times the paper's whole meta-training on sinusoids: 70 dispatches of 1,000 meta-steps."""
    row = sinusoid().program(1000).measure("sinusoid: 70,000 meta-steps", 70)
    yield row
    whole = {key: row[key] * 70e3 for key in TIMES}
    yield {**row, "name": "sinusoid: all of it, in seconds x 1,000", "compile_s": None, **whole}
