"""The sinusoid's meta-step in other libraries, beside ours, in one run.

Every contender draws 25 tasks of 10 + 10 points, takes the second-order meta-gradient of one inner
step, then of ten, on the 1-40-40-1 network, and an Adam step.
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
from benchmarks.peers.comparison import Reference, check_torch, compare, reference
from benchmarks.peers.torch_contenders import Contender, TorchProblem, torch_contenders
from benchmarks.problems import INNER_LR, NUM_TASKS, OPTIMIZER, SHOTS
from maml_jax.networks import mlp

INNER_STEPS = (1, 10)
DTYPES = ("float64", "float32")


def peers_suite(rounds: int = 5) -> Iterator[Row]:
    """Times every contender that is installed, in turns, and gives the ratios to ours.

    A row says whether the contender's meta-gradient in float64 is ours.

    Raises:
        SystemExit: PyTorch is not installed.
    """
    check_torch("peers")
    for steps in INNER_STEPS:
        setup = problems.sinusoid("mixed", steps)
        title = lambda name, n=steps: name if n == 1 else f"{name}, {n} inner steps"
        references = {dtype: reference(setup, layout, dtype) for dtype in DTYPES}
        yield from compare(title, setup.program(1000), contenders(steps), references, rounds, 1.5)


def layout(params: Any) -> list[np.ndarray]:
    """Kernel and bias of each layer."""
    layers = [params[f"Dense_{i}"] for i in range(3)]
    return [np.asarray(layer[name]) for layer in layers for name in ("kernel", "bias")]


def contenders(steps: int) -> dict[str, Any]:
    """By name a maker of `(check, step)`: those in PyTorch, and jax-meta where it is named."""
    makers: dict[str, Any] = {
        name: lambda given, make=make: make(torch_problem(given, steps))
        for name, make in torch_contenders()
    }
    if (maml := foreign.find_maml("jax_meta")) is not None:
        makers["jax-meta"] = functools.partial(_jax_meta, maml, steps)
    return makers


def torch_problem(given: Reference, steps: int) -> TorchProblem:
    """The sinusoid in PyTorch, tasks drawn anew in each step."""
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

    weights = [torch.tensor(p, requires_grad=True) for p in given.params]
    tasks = tuple(torch.tensor(x) for batch in given.tasks for x in batch)
    return TorchProblem(weights, [], apply, functional.mse_loss, tasks, draw, INNER_LR, steps)


def _jax_meta(maml: Any, steps: int, given: Reference) -> Contender:
    """jax-meta compiles one meta-step; a second program draws its tasks."""
    network, sample = mlp(1, 1), problems.sinusoid().problem.sample
    pairs = zip(given.params[::2], given.params[1::2], strict=True)
    params = {f"Dense_{i}": {"kernel": k, "bias": b} for i, (k, b) in enumerate(pairs)}

    class Regression(maml):
        def loss(self, params: Any, state: Any, inputs: Any, targets: Any, args: Any) -> Any:
            loss = jax.numpy.mean((network.apply(params, inputs) - targets) ** 2)
            return loss, (state, {"loss": loss})

        def meta_init(self, key: Any, *args: Any, **kwargs: Any) -> Any:
            return params, {}

    learner = Regression(None, num_steps=steps, alpha=INNER_LR)

    def check() -> Any:
        with jax.enable_x64(given.params[0].dtype == np.float64):
            gradient = jax.jit(jax.value_and_grad(learner.batch_outer_loss, has_aux=True))
            support, query = given.tasks
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
