"""The core on the sinusoid's network."""

from __future__ import annotations

import functools
from typing import Any

import jax
import optax

from benchmarks.harness import Timing, measure, measure_loop
from maml_jax import MODES, Task, adapt, init, inner_update, make_train_fn, meta_loss
from maml_jax.batching import sum_gradient
from maml_jax.networks import mlp
from maml_jax.regression import sinusoid_problem

NUM_TASKS, SHOTS, INNER_LR = 25, 10, 0.001
OPTIMIZER = optax.adam(1e-3)
NETWORK = mlp(1, 1)
PROBLEM = sinusoid_problem(NETWORK, SHOTS, SHOTS)


def tasks_and_params() -> tuple[Task, Any]:
    """A meta-batch of sinusoids and initial parameters."""
    keys = jax.random.split(jax.random.key(1), NUM_TASKS)
    tasks = jax.jit(jax.vmap(lambda key: PROBLEM.sample(None, key)))(keys)
    return tasks, NETWORK.init(jax.random.key(0))


def sinusoid_loss(mode: str, num_steps: int = 1) -> Any:
    """The meta-loss of one task."""
    return functools.partial(
        meta_loss, PROBLEM.inner_loss, inner_lr=INNER_LR, num_steps=num_steps, mode=mode
    )


def trainer(
    mode: str,
    num_steps: int,
    batching: Any = None,
    draw: int = 50,
    num_tasks: int = NUM_TASKS,
    inner_steps: int = 1,
) -> Any:
    """Many meta-steps of the sinusoid in one dispatch, as the experiment compiles it."""
    return make_train_fn(
        PROBLEM.sample,
        sinusoid_loss(mode, inner_steps),
        OPTIMIZER,
        num_tasks=num_tasks,
        num_steps=num_steps,
        steps_per_draw=draw,
        batching=batching,
    )


def gradient_jaxpr(mode: str, num_steps: int = 1) -> Any:
    """Of one task's meta-gradient."""
    params = jax.eval_shape(NETWORK.init, jax.random.key(0))
    task = jax.eval_shape(lambda key: PROBLEM.sample(None, key), jax.random.key(0))
    gradient = jax.grad(sinusoid_loss(mode, num_steps), has_aux=True)
    return jax.make_jaxpr(gradient)(params, task).jaxpr


def start() -> Any:
    """A state at step 0."""
    return init(NETWORK.init(jax.random.key(0)), OPTIMIZER, 0)


def core_suite() -> list[Timing]:
    """inner_update, adapt, the meta-gradient in each mode, a meta-step, and many in a dispatch."""
    tasks, params = tasks_and_params()
    one = jax.tree.map(lambda x: x[0], tasks)
    loss = PROBLEM.inner_loss
    rows = [
        measure(
            "inner_update, 1 task",
            lambda p, b: inner_update(loss, p, b, 0.01)[0],
            params,
            one.support,
        ),
        measure(
            "adapt, 5 steps, 1 task",
            lambda p, b: adapt(loss, p, b, 0.01, 5)[0],
            params,
            one.support,
        ),
    ]
    for num_steps in (1, 5):
        for mode in MODES:
            task_loss = functools.partial(
                meta_loss, loss, inner_lr=0.01, num_steps=num_steps, mode=mode
            )
            gradient = lambda p, t, fn=task_loss: sum_gradient(fn, p, t, "vmap")
            rows.append(
                measure(
                    f"meta-gradient, {mode}, S={num_steps}, {NUM_TASKS} tasks",
                    gradient,
                    params,
                    tasks,
                )
            )
    for batching in ("scan", 5):
        task_loss = functools.partial(meta_loss, loss, inner_lr=0.01)
        gradient = lambda p, t, fn=task_loss, b=batching: sum_gradient(fn, p, t, b)
        rows.append(
            measure(f"meta-gradient, reverse, S=1, batching={batching}", gradient, params, tasks)
        )
    rows.append(
        measure_loop(
            "meta-step, dispatched one by one", trainer("mixed", 1, draw=1), start(), 200, 1
        )
    )
    for mode in MODES:
        step = trainer(mode, 1000)
        rows.append(measure_loop(f"meta-step, 1,000 a dispatch, {mode}", step, start(), 7, 1000))
    step = trainer("mixed", 1000, draw=1)
    rows.append(
        measure_loop(
            "meta-step, 1,000 a dispatch, mixed, tasks drawn one step at a time",
            step,
            start(),
            7,
            1000,
        )
    )
    return rows


def sinusoid_suite() -> list[Timing]:
    """The whole meta-training of the paper's sinusoid: 70 dispatches of 1,000 meta-steps."""
    timing = measure_loop("sinusoid: 70,000 meta-steps", trainer("mixed", 1000), start(), 70, 1000)
    whole = [v * 70 for v in (timing.median_ms, timing.low_ms, timing.high_ms)]
    total = Timing(
        "sinusoid: all of it, in seconds x 1,000", None, *(v * 1e3 for v in whole), None, 70
    )
    return [timing, total]
