"""Measures memory and time of the meta-gradient modes against inner steps and network width."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import harness, problems
from benchmarks.harness import Row, in_fresh_process
from benchmarks.problems import MINI_5_SHOT, OMNIGLOT_5, ImageCase
from maml_jax import MODES, Task, meta_loss
from maml_jax.networks import mlp
from maml_jax.regression import Examples, mean_squared_error

STEPS, WIDTHS = (1, 3, 10, 30, 100), (64, 128, 256, 512, 1024)
FIXED_STEPS, FIXED_WIDTH, EXAMPLES = 10, 256, 2000
SECONDS = 4.0  # to time one row; a longer call is timed once


def wide_problem(
    mode: str, num_inner_steps: int, width: int = FIXED_WIDTH, examples: int = EXAMPLES
) -> tuple[Callable[..., Any], Any, Task]:
    """Makes a regression problem whose activations outweigh its parameters, as in image networks.

    The network has 64 inputs, three tanh layers and 1 output.

    Args:
        mode: of the meta-gradient.
        num_inner_steps: S.
        width: of the hidden layers.
        examples: in the support set, and in the query set.

    Returns:
        The meta-loss of one task, the meta-parameters, and a task.
    """
    network = mlp(64, 1, (width, width, width), activation=jnp.tanh)

    def batch(seed: int) -> Examples:
        x = jax.random.normal(jax.random.key(seed), (examples, 64))
        return Examples(x, jnp.sin(x.sum(1, keepdims=True)))

    loss = functools.partial(
        meta_loss,
        mean_squared_error(network.apply),
        inner_lr=0.01,
        num_inner_steps=num_inner_steps,
        mode=mode,
    )
    return loss, network.init(jax.random.key(0)), Task(batch(1), batch(2))


def memory_suite(
    steps: Sequence[int] = STEPS,
    widths: Sequence[int] = WIDTHS,
    modes: Sequence[str] = MODES,
    examples: int = EXAMPLES,
    seconds: float = SECONDS,
) -> Iterator[Row]:
    """Measures planned and resident memory and time of each mode, each in a new process.

    Args:
        steps: numbers of inner steps, at a width of 256.
        widths: widths of the hidden layers, at 10 inner steps.
        modes: of the meta-gradient.
        examples: in the support set, and in the query set.
        seconds: approximate time to measure each for.
    """
    points = [(s, FIXED_WIDTH) for s in steps] + [(FIXED_STEPS, w) for w in widths]
    for s, w in dict.fromkeys(points):
        for mode in modes:
            row = in_fresh_process(measure_point, mode, s, w, examples, seconds)
            yield {"mode": mode, "inner_steps": s, "width": w} | row


def measure_point(
    mode: str, num_inner_steps: int, width: int, examples: int, seconds: float
) -> Row:
    """Compiles a meta-gradient, runs it once to measure memory, and then times it."""
    loss, params, task = wide_problem(mode, num_inner_steps, width, examples)
    compiled, memory = _memory(loss, params, task)
    call = harness.rotating(compiled, harness.variants((params, task)))
    return harness.summarize("meta-gradient", harness.sample_times(call, seconds, 1)) | memory


def fits_suite(limit_mb: int = 1000, num_inner_steps: int = 100) -> Iterator[Row]:
    """Runs 100 second-order inner steps under a limit of the process's memory (Linux).

    Args:
        limit_mb: MB beyond those in use before the run.
        num_inner_steps: S.
    """
    for mode in ("mixed", "reverse"):
        fits = in_fresh_process(_fits, mode, num_inner_steps, limit_mb)
        name = f"{num_inner_steps} inner steps, {mode}, in {limit_mb:,} MB"
        yield {"name": name, "mode": mode, "fits": fits}


def _fits(mode: str, num_inner_steps: int, limit_mb: int) -> str:
    """Compiles, limits the memory, runs; returns "yes", or "NO" and the error."""
    import resource

    loss, params, task = wide_problem(mode, num_inner_steps)
    compiled = jax.jit(jax.grad(loss, has_aux=True)).lower(params, task).compile()
    jax.block_until_ready(jnp.ones(1000) @ jnp.ones(1000))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + limit_mb * 10**6
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        jax.block_until_ready(compiled(params, task))
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        return f"NO: {str(error).splitlines()[0][:120]}"
    return "yes"


def image_memory_suite() -> Iterator[Row]:
    """Measures planned and resident memory of image classifiers' meta-gradients in each mode.

    The cases are MiniImagenet 5-way 5-shot with 5 inner steps, one task and four at once, and one
    task of Omniglot 5-way 1-shot.
    """
    for case, tasks in ((MINI_5_SHOT, 1), (MINI_5_SHOT, MINI_5_SHOT.tasks), (OMNIGLOT_5, 1)):
        for mode in MODES:
            row = in_fresh_process(_memory_of_images, case, tasks, mode)
            yield {"case": case.name, "tasks at once": tasks, "mode": mode} | row


def _memory_of_images(case: ImageCase, num_tasks: int, mode: str) -> Row:
    setup = problems.images(case, mode)

    def loss(params: Any, tasks: Task) -> Any:
        losses, metrics = jax.vmap(setup.loss, (None, 0))(params, tasks)
        return jnp.mean(losses), metrics

    return _memory(loss, setup.params(), setup.tasks(num_tasks))[1]


def _memory(loss: Callable[..., Any], params: Any, tasks: Task) -> tuple[Any, Row]:
    """Returns the compiled meta-gradient, and the planned and resident memory of one run."""
    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    compiled = gradient.lower(params, tasks).compile()
    peak = harness.resident_mb(lambda: jax.block_until_ready(compiled(params, tasks)))
    return compiled, {"temporary_mb": harness.planned_mb(compiled), "resident_mb": peak}
