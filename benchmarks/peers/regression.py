"""The sinusoid's meta-step in PyTorch libraries, beside ours, in one run.

Every contender draws 25 tasks of 10 + 10 points, takes the second-order meta-gradient of one inner
step, then of ten, on the 1-40-40-1 network, and an Adam step. Before anything is timed, all of them
must give the same loss and meta-gradient on the same tasks and parameters.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks import core, foreign
from benchmarks.harness import agreement, summarize
from maml_jax.batching import sum_gradient

T, K, LR = core.NUM_TASKS, core.SHOTS, core.INNER_LR
TOLERANCE = 1e-4  # relative, float32
INNER_STEPS = (1, 10)


def peers_suite(rounds: int = 5) -> list[dict[str, Any]]:
    """Times every contender that is installed, in turn, and gives the ratios to ours.

    A row says whether the contender's meta-gradient is ours.

    Raises:
        SystemExit: PyTorch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise SystemExit("the peers suite needs PyTorch; `make bench-peers` brings it.")
    return [row for steps in INNER_STEPS for row in _compare(steps, rounds)]


def _compare(steps: int, rounds: int) -> list[dict[str, Any]]:
    contenders = all_with_agreement(steps)
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for step, _, _ in contenders.values():
        _steps_for(step, 1.0)  # warm up, compile
    for _ in range(rounds):
        for name, (step, per_call, _) in contenders.items():
            time.sleep(0.5)  # PyTorch's idle threads spin for a while before they sleep
            samples[name].append(_steps_for(step, 1.5) / per_call)
    ours = float(np.median(samples["maml_jax"]))
    rows = []
    for name, values in samples.items():
        label = name if steps == 1 else f"{name}, {steps} inner steps"
        timing = summarize(label, values, None, None)
        ratio = timing.median_ms / (ours * 1e3)
        rows.append({**timing._asdict(), "times_ours": ratio, "agree": contenders[name][2]})
    return rows


def all_with_agreement(steps: int) -> dict[str, tuple[Callable[[], Any], int, str]]:
    """By name a call of each contender, its meta-steps, and whether its meta-gradient is ours."""
    tasks, params = core.tasks_and_params()
    loss, gradient = our_meta_gradient(params, tasks, steps)
    scale = np.abs(gradient).max()

    def compare(name: str, check: Callable[[], Any]) -> None:
        their_loss, their_gradient = check()
        np.testing.assert_allclose(their_loss, loss, rtol=TOLERANCE, err_msg=name)
        np.testing.assert_allclose(
            their_gradient, gradient, rtol=TOLERANCE, atol=TOLERANCE * scale, err_msg=name
        )

    contenders: dict[str, tuple[Callable[[], Any], int, str]] = {
        "maml_jax": (our_steps(steps), 1000, "yes")
    }
    for name, make in all_contenders():
        check, step = make(params, tasks, steps)
        contenders[name] = (step, 1, agreement(functools.partial(compare, name, check)))
    return contenders


def _steps_for(step: Callable[[], Any], seconds: float) -> float:
    """Seconds a call, over about so many seconds."""
    begun, count = time.perf_counter(), 0
    while (now := time.perf_counter()) - begun < seconds or count < 2:
        step()
        count += 1
    return (now - begun) / count if count > 2 else (time.perf_counter() - begun) / count


def our_meta_gradient(params: Any, tasks: Any, steps: int) -> tuple[float, np.ndarray]:
    """Mean loss and flat meta-gradient, in the order of `_flat`."""
    task_loss = core.sinusoid_loss("mixed", steps)
    losses, _, grads, _ = jax.jit(lambda p, t: sum_gradient(task_loss, p, t))(params, tasks)
    return float(losses.mean()), np.concatenate([g.ravel() / T for g in _flat(grads)])


def our_steps(steps: int) -> Callable[[], Any]:
    """1,000 meta-steps a call, tasks drawn inside."""
    train = core.trainer("mixed", 1000, inner_steps=steps)
    holder = [core.start()]

    def step() -> None:
        holder[0], metrics = train(holder[0])
        jax.block_until_ready(metrics)

    return step


def _flat(params: Any) -> list[np.ndarray]:
    layers = [params[f"Dense_{i}"] for i in range(3)]
    return [np.asarray(layer[name]) for layer in layers for name in ("kernel", "bias")]


Maker = Callable[[Any, Any, int], tuple[Any, Any]]


def all_contenders() -> Iterator[tuple[str, Maker]]:
    """Those in PyTorch, and jax-meta where a checkout of it is named."""
    yield from torch_contenders()
    if (maml := foreign.find_maml("jax_meta")) is not None:
        yield "jax-meta", functools.partial(_jax_meta, maml)


def torch_contenders() -> Iterator[tuple[str, Maker]]:
    """Name and maker of each; a maker takes parameters, tasks and inner steps: `(check, step)`."""
    yield "torch.func", functools.partial(_torch_func, compiled=False)
    yield "torch.func, compiled", functools.partial(_torch_func, compiled=True)
    yield "PyTorch, loop over tasks", _torch_loop
    if importlib.util.find_spec("higher"):
        yield "higher", _higher
    if importlib.util.find_spec("torchopt"):
        yield "TorchOpt", _torchopt
    if (maml := foreign.find_maml("learn2learn")) is not None:
        yield "learn2learn", functools.partial(_learn2learn, maml)


def _torch_setup(params: Any, tasks: Any) -> tuple[Any, Any, Callable[[], Any]]:
    import torch

    weights = [torch.tensor(p, requires_grad=True) for p in _flat(params)]
    fixed = [
        torch.tensor(np.asarray(x))
        for x in (
            tasks.support.inputs,
            tasks.support.targets,
            tasks.query.inputs,
            tasks.query.targets,
        )
    ]

    def draw() -> Any:
        amplitude = torch.empty(T, 1, 1).uniform_(0.1, 5.0)
        phase = torch.empty(T, 1, 1).uniform_(0.0, math.pi)
        x = torch.empty(T, 2 * K, 1).uniform_(-5.0, 5.0)
        y = amplitude * torch.sin(x - phase)
        return x[:, :K], y[:, :K], x[:, K:], y[:, K:]

    return weights, fixed, draw


def _apply(w: Any, x: Any) -> Any:
    import torch

    x = torch.relu(x @ w[0] + w[1])
    x = torch.relu(x @ w[2] + w[3])
    return x @ w[4] + w[5]


def _torch_func(params: Any, tasks: Any, steps: int, compiled: bool) -> tuple[Any, Any]:
    import torch
    from torch.func import grad, grad_and_value, vmap

    weights, fixed, draw = _torch_setup(params, tasks)
    weights = tuple(w.detach() for w in weights)

    def loss(w: Any, x: Any, y: Any) -> Any:
        return torch.mean((_apply(w, x) - y) ** 2)

    def task(w: Any, xs: Any, ys: Any, xq: Any, yq: Any) -> Any:
        for _ in range(steps):
            w = tuple(p - LR * g for p, g in zip(w, grad(loss)(w, xs, ys), strict=True))
        return loss(w, xq, yq)

    def total(w: Any, *batch: Any) -> Any:
        return vmap(task, (None, 0, 0, 0, 0))(w, *batch).mean()

    meta_gradient = grad_and_value(total)
    if compiled:
        meta_gradient = torch.compile(meta_gradient)
    leaves = [w.clone().requires_grad_() for w in weights]
    optimizer = torch.optim.Adam(leaves, lr=1e-3)

    def check() -> Any:
        grads, value = meta_gradient(weights, *fixed)
        return value.item(), np.concatenate([g.detach().cpu().numpy().ravel() for g in grads])

    def step() -> None:
        grads, _ = meta_gradient(tuple(w.detach() for w in leaves), *draw())
        for w, g in zip(leaves, grads, strict=True):
            w.grad = g
        optimizer.step()

    return check, step


def _looped(params: Any, tasks: Any, task_loss: Callable[..., Any], weights: Any = None) -> Any:
    """`(check, step)` of a contender that takes one task after the other."""
    import torch

    own, fixed, draw = _torch_setup(params, tasks)
    weights = own if weights is None else weights
    optimizer = torch.optim.Adam(weights, lr=1e-3)

    def gradients(batch: Any) -> float:
        optimizer.zero_grad()
        total = 0.0
        for t in range(T):
            loss = task_loss(weights, *(x[t] for x in batch)) / T
            loss.backward()
            total += loss.item()
        return total

    def check() -> Any:
        value = gradients(fixed)
        return value, np.concatenate([w.grad.cpu().numpy().ravel() for w in weights])

    def step() -> None:
        gradients(draw())
        optimizer.step()

    return check, step


def _torch_loop(params: Any, tasks: Any, steps: int) -> Any:
    import torch

    def task_loss(w: Any, xs: Any, ys: Any, xq: Any, yq: Any) -> Any:
        for _ in range(steps):
            inner = torch.mean((_apply(w, xs) - ys) ** 2)
            grads = torch.autograd.grad(inner, w, create_graph=True)
            w = [p - LR * g for p, g in zip(w, grads, strict=True)]
        return torch.mean((_apply(w, xq) - yq) ** 2)

    return _looped(params, tasks, task_loss)


def _module(params: Any) -> Any:
    """The network as a module whose parameters come in the order of `_flat`."""
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.ParameterList(
                [torch.nn.Parameter(torch.tensor(p)) for p in _flat(params)]
            )

        def forward(self, x):
            return _apply(list(self.w), x)

    return Net()


def _higher(params: Any, tasks: Any, steps: int) -> Any:
    import higher
    import torch

    net = _module(params)
    inner = torch.optim.SGD(net.parameters(), lr=LR)

    def task_loss(w: Any, xs: Any, ys: Any, xq: Any, yq: Any) -> Any:
        with higher.innerloop_ctx(net, inner, copy_initial_weights=False) as (fast, optimizer):
            for _ in range(steps):
                optimizer.step(torch.mean((fast(xs) - ys) ** 2))
            return torch.mean((fast(xq) - yq) ** 2)

    return _looped(params, tasks, task_loss, list(net.parameters()))


def _torchopt(params: Any, tasks: Any, steps: int) -> Any:
    import torch
    import torchopt

    net = _module(params)
    inner = torchopt.MetaSGD(net, lr=LR)
    weights = list(net.parameters())

    def task_loss(w: Any, xs: Any, ys: Any, xq: Any, yq: Any) -> Any:
        before = torchopt.extract_state_dict(net, by="reference")
        optimizer_before = torchopt.extract_state_dict(inner, by="reference")
        for _ in range(steps):
            inner.step(torch.mean((net(xs) - ys) ** 2))
        loss = torch.mean((net(xq) - yq) ** 2)
        torchopt.recover_state_dict(net, before)
        torchopt.recover_state_dict(inner, optimizer_before)
        return loss

    return _looped(params, tasks, task_loss, weights)


def _learn2learn(maml: Any, params: Any, tasks: Any, steps: int) -> Any:
    import torch

    net = _module(params)
    learner = maml(net, lr=LR)

    def task_loss(w: Any, xs: Any, ys: Any, xq: Any, yq: Any) -> Any:
        clone = learner.clone()
        for _ in range(steps):
            clone.adapt(torch.mean((clone(xs) - ys) ** 2))
        return torch.mean((clone(xq) - yq) ** 2)

    return _looped(params, tasks, task_loss, list(net.parameters()))


def _jax_meta(maml: Any, params: Any, tasks: Any, steps: int) -> Any:
    """jax-meta compiles one meta-step; its tasks come from outside, by a program of their own."""

    class Regression(maml):
        def loss(self, params: Any, state: Any, inputs: Any, targets: Any, args: Any) -> Any:
            loss = jax.numpy.mean((core.NETWORK.apply(params, inputs) - targets) ** 2)
            return loss, (state, {"loss": loss})

        def meta_init(self, key: Any, *args: Any, **kwargs: Any) -> Any:
            return params, {}

    learner = Regression(None, num_steps=steps, alpha=LR)
    holder = list(learner.init(jax.random.key(0), core.OPTIMIZER))
    draw = jax.jit(lambda key: jax.vmap(functools.partial(core.PROBLEM.sample, None))(
        jax.random.split(key, T)))  # fmt: skip
    keys = iter(range(2**31))

    def check() -> Any:
        gradient = jax.jit(
            lambda p, a, b: jax.value_and_grad(learner.batch_outer_loss, has_aux=True)(
                p, {}, a, b, ()
            )
        )
        (loss, _), grads = gradient(params, tasks.support, tasks.query)
        return float(loss), np.concatenate([g.ravel() for g in _flat(grads)])

    def step() -> None:
        drawn = draw(jax.random.key(next(keys)))
        *holder[:], logs = learner.step(*holder, drawn.support, drawn.query)
        jax.block_until_ready(logs)

    return check, step
