"""Compares contenders with this library: first their meta-gradients, then their speed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.harness import Row, agreement, sample_in_turns, summarize
from benchmarks.problems import Program, Setup, cast_floats
from maml_jax.types import Params

# Relative to the largest element, in float64, where all agree to rounding. In float32, which is
# timed, several inner steps amplify rounding by factors that depend on the processor.
TOLERANCE = 1e-8

Layout = Callable[[Params], list[np.ndarray]]


class Reference(NamedTuple):
    """Inputs of all contenders, and the results that are expected of them.

    Attributes:
        params: meta-parameters in the contenders' layout.
        tasks: a meta-batch, with a leading axis of tasks.
        loss: our mean loss over tasks.
        gradient: our meta-gradient, in the contenders' layout.
    """

    params: list[np.ndarray]
    tasks: Any
    loss: float
    gradient: list[np.ndarray]


def make_reference(setup: Setup, layout: Layout, dtype: str) -> Reference:
    """Computes our loss and meta-gradient of a meta-batch.

    Args:
        setup: the problem.
        layout: converts parameters to the contenders' layout.
        dtype: "float32" or "float64".
    """
    tasks, params = setup.tasks(), setup.params()
    with jax.enable_x64(dtype == "float64"):
        tasks, params = cast_floats((tasks, params), dtype)
        terms = jax.jit(setup.gradient)(params, tasks)
        gradient = jax.tree.map(lambda g: g / setup.num_tasks, terms.gradient)
        loss = float(terms.losses.mean())
        return Reference(layout(params), jax.tree.map(np.asarray, tasks), loss, layout(gradient))


def assert_agrees(name: str, check: Callable[[], Any], ours: Reference) -> None:
    """Checks that a contender's loss and meta-gradient in float64 are ours.

    Args:
        name: of the contender.
        check: returns the contender's loss and meta-gradient.
        ours: in float64.

    Raises:
        AssertionError: they differ by more than `TOLERANCE`.
    """
    loss, gradient = check()
    np.testing.assert_allclose(loss, ours.loss, rtol=TOLERANCE, err_msg=name)
    scale = max(np.abs(g).max() for g in ours.gradient)
    for a, b in zip(gradient, ours.gradient, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * scale, err_msg=name)


def compare(
    title: Callable[[str], str],
    program: Program,
    contenders: Mapping[str, Callable[[Reference], Any]],
    reference: Callable[[str], Reference],
    rounds: int,
    seconds: float,
) -> Iterator[Row]:
    """Times this library and every contender in turns, and checks the meta-gradients.

    Args:
        title: maps the name of a contender to that of its row.
        program: our meta-steps.
        contenders: makers by name, `make(reference) -> (check, step)`.
        reference: returns the reference in a dtype: "float64" is checked, "float32" timed.
        rounds: number of samples of each.
        seconds: approximate time of a sample.
    """
    agree, calls = {"maml_jax": "yes"}, {"maml_jax": _stepper(program)}
    exact, timed = reference("float64"), reference("float32")
    for name, make in contenders.items():
        agree[name] = agreement(assert_agrees, name, make(exact)[0], exact)
        calls[name] = make(timed)[1]
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
    """Raises SystemExit if PyTorch is not installed.

    Args:
        suite: name for the message.
    """
    if importlib.util.find_spec("torch") is None:
        raise SystemExit(f"the suite {suite} needs PyTorch; `make bench-peers` installs it.")
