"""Contenders beside ours, in one run: first that they compute what we do, then how fast."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Row, agreement, sample_in_turns, summarize
from benchmarks.problems import Program, Setup
from maml_jax.types import Params, is_float

# Of the largest element, in float64, where all agree to rounding. In float32, which is timed,
# several inner steps amplify rounding to whatever the processor makes of it.
TOLERANCE = 1e-8

Layout = Callable[[Params], list[np.ndarray]]


class Reference(NamedTuple):
    """What all contenders are handed, and what they have to give.

    Attributes:
        params: in the contenders' layout.
        tasks: with a leading axis of tasks.
        loss: ours, the mean over tasks.
        gradient: our meta-gradient, in the contenders' layout.
    """

    params: list[np.ndarray]
    tasks: Any
    loss: float
    gradient: list[np.ndarray]


def reference(setup: Setup, layout: Layout, dtype: str) -> Reference:
    """Tasks, parameters, and our loss and meta-gradient, in float32 or float64."""
    tasks, params = setup.tasks(), setup.params()
    with jax.enable_x64(dtype == "float64"):
        tasks, params = jax.tree.map(
            lambda x: jnp.asarray(x, dtype) if is_float(x) else x, (tasks, params)
        )
        terms = jax.jit(setup.gradient)(params, tasks)
        gradient = jax.tree.map(lambda g: g / setup.num_tasks, terms.gradient)
        loss = float(terms.losses.mean())
        return Reference(layout(params), jax.tree.map(np.asarray, tasks), loss, layout(gradient))


def assert_agrees(name: str, check: Callable[[], Any], ours: Reference) -> None:
    """Raises an AssertionError unless a contender gives our loss and meta-gradient in float64."""
    loss, gradient = check()
    np.testing.assert_allclose(loss, ours.loss, rtol=TOLERANCE, err_msg=name)
    scale = max(np.abs(g).max() for g in ours.gradient)
    for a, b in zip(gradient, ours.gradient, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * scale, err_msg=name)


def compare(
    title: Callable[[str], str],
    program: Program,
    contenders: Mapping[str, Callable[[Reference], Any]],
    references: Mapping[str, Reference],
    rounds: int,
    seconds: float,
) -> Iterator[Row]:
    """Times ours and every contender in turns; whether a contender's meta-gradient is ours.

    Args:
        title: of a contender, the name of its row.
        program: ours, tasks drawn inside it.
        contenders: by name a maker, `make(reference) -> (check, step)`.
        references: of "float64", which is checked, and of "float32", which is timed.
        rounds: samples of each.
        seconds: about how long a sample takes.
    """
    agree, calls = {"maml_jax": "yes"}, {"maml_jax": _stepper(program)}
    for name, make in contenders.items():
        exact = references["float64"]
        agree[name] = agreement(assert_agrees, name, make(exact)[0], exact)
        calls[name] = make(references["float32"])[1]
    samples = sample_in_turns(calls, rounds, seconds)
    samples["maml_jax"] = [s / program.train.num_meta_steps for s in samples["maml_jax"]]
    ours = float(np.median(samples["maml_jax"])) * 1e3
    for name, values in samples.items():
        row = summarize(title(name), values)
        yield {**row, "times_ours": row["median_ms"] / ours, "agree": agree[name]}


def _stepper(program: Program) -> Callable[[], Any]:
    state = program.state

    def step() -> None:
        nonlocal state
        state, metrics = program.step(state)
        jax.block_until_ready(metrics)

    return step


def check_torch(suite: str) -> None:
    """Raises SystemExit where PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise SystemExit(f"the {suite} suite needs PyTorch; `make bench-peers` brings it.")
