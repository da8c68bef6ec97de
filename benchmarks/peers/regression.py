"""Compares the sinusoid's meta-step in other libraries with ours, in one run.

Every contender draws 25 tasks of 10 + 10 points, computes the second-order meta-gradient of the
1-40-40-1 network over one or ten inner steps, and takes an Adam step.
"""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks import problems
from benchmarks.harness import Row
from benchmarks.peers import foreign
from benchmarks.peers.comparison import Reference, check_torch, compare, make_reference
from benchmarks.peers.torch_contenders import Contender, TorchProblem, torch_contenders
from benchmarks.problems import INNER_LR, NUM_TASKS, OPTIMIZER, SHOTS
from maml_jax.networks import mlp

INNER_STEPS = (1, 10)


def peers_suite(rounds: int = 5) -> Iterator[Row]:
    """Times all installed contenders, in turns, with the ratios to ours.

    A row reports whether the contender's meta-gradient in float64 is ours.

    Args:
        rounds: number of samples of each.

    Raises:
        SystemExit: PyTorch is not installed.
    """
    check_torch("peers")
    for steps in INNER_STEPS:
        setup = problems.sinusoid("mixed", steps)
        title = lambda name, n=steps: name if n == 1 else f"{name}, {n} inner steps"
        reference = functools.partial(make_reference, setup, layout)
        yield from compare(title, setup.program(1000), contenders(steps), reference, rounds, 1.5)


def layout(params: Any) -> list[np.ndarray]:
    """Returns kernel and bias of each layer."""
    layers = [params[f"Dense_{i}"] for i in range(3)]
    return [np.asarray(layer[name]) for layer in layers for name in ("kernel", "bias")]


def contenders(steps: int) -> dict[str, Any]:
    """Returns makers of all contenders by name: those in PyTorch, and jax-meta if available.

    Args:
        steps: S, inner steps.
    """
    makers = torch_contenders(functools.partial(torch_problem, steps))
    if (maml := foreign.find_maml("jax_meta")) is not None:
        makers["jax-meta"] = functools.partial(_jax_meta, maml, steps)
    return makers


def torch_problem(steps: int, reference: Reference) -> TorchProblem:
    """Makes the sinusoid in PyTorch; each meta-step draws new tasks.

    Args:
        steps: S, inner steps.
        reference: parameters and tasks.
    """
    import torch
    from torch.nn import functional

    def apply(w: Any, shared: Any, x: Any) -> Any:
        x = torch.relu(x @ w[0] + w[1])
        x = torch.relu(x @ w[2] + w[3])
        return x @ w[4] + w[5]

    def draw() -> tuple[Any, ...]:
        amplitude = torch.empty(NUM_TASKS, 1, 1).uniform_(0.1, 5.0)
        phase = torch.empty(NUM_TASKS, 1, 1).uniform_(0.0, math.pi)
        x = torch.empty(NUM_TASKS, 2 * SHOTS, 1).uniform_(-5.0, 5.0)
        y = amplitude * torch.sin(x - phase)
        return x[:, :SHOTS], y[:, :SHOTS], x[:, SHOTS:], y[:, SHOTS:]

    weights = [torch.tensor(p, requires_grad=True) for p in reference.params]
    tasks = tuple(torch.tensor(x) for batch in reference.tasks for x in batch)
    return TorchProblem(weights, [], apply, functional.mse_loss, tasks, draw, INNER_LR, steps)


def _jax_meta(maml: Any, steps: int, reference: Reference) -> Contender:
    """Makes the contender jax-meta, whose step compiles without drawing tasks."""
    network, sample = mlp(1, 1), problems.sinusoid().problem.sample
    pairs = zip(reference.params[::2], reference.params[1::2], strict=True)
    params = {f"Dense_{i}": {"kernel": k, "bias": b} for i, (k, b) in enumerate(pairs)}

    class Regression(maml):
        def loss(self, params: Any, state: Any, inputs: Any, targets: Any, args: Any) -> Any:
            loss = jax.numpy.mean((network.apply(params, inputs) - targets) ** 2)
            return loss, (state, {"loss": loss})

        def meta_init(self, key: Any, *args: Any, **kwargs: Any) -> Any:
            return params, {}

    learner = Regression(None, num_steps=steps, alpha=INNER_LR)

    def check() -> Any:
        with jax.enable_x64(reference.params[0].dtype == np.float64):
            gradient = jax.jit(jax.value_and_grad(learner.batch_outer_loss, has_aux=True))
            support, query = reference.tasks
            (loss, _), grads = gradient(params, {}, support, query, ())
            return float(loss), layout(grads)

    holder = list(learner.init(jax.random.key(0), OPTIMIZER))
    draw = jax.jit(
        lambda key: jax.vmap(lambda k: sample(None, k))(jax.random.split(key, NUM_TASKS))
    )
    keys = iter(range(2**31))

    def step() -> None:
        drawn = draw(jax.random.key(next(keys)))
        *holder[:], logs = learner.step(*holder, drawn.support, drawn.query)
        jax.block_until_ready(logs)

    return check, step
