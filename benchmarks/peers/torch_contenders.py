"""MAML in PyTorch, by hand and by libraries, for any network and loss.

Each contender is a pair `(check, step)` made from a `TorchProblem`: `check()` returns the loss and
the meta-gradient of fixed tasks; `step()` takes one meta-step.
"""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from benchmarks.peers import foreign
from benchmarks.peers.comparison import Reference


class TorchProblem(NamedTuple):
    """A meta-learning problem in PyTorch.

    Attributes:
        weights: adapted tensors.
        shared: meta-learned tensors that are not adapted.
        apply: `apply(weights, shared, inputs) -> outputs`.
        criterion: `criterion(outputs, targets) -> loss`.
        tasks: support inputs and targets, query inputs and targets, each [T, ...].
        draw: returns the tasks of one meta-step, in the same form.
        inner_lr: alpha.
        num_inner_steps: S.
    """

    weights: list[Any]
    shared: list[Any]
    apply: Callable[..., Any]
    criterion: Callable[[Any, Any], Any]
    tasks: tuple[Any, ...]
    draw: Callable[[], tuple[Any, ...]]
    inner_lr: float
    num_inner_steps: int

    def loss(self, weights: Any, shared: Any, inputs: Any, targets: Any) -> Any:
        """Returns the loss of a batch."""
        return self.criterion(self.apply(weights, shared, inputs), targets)


Contender = tuple[Callable[[], Any], Callable[[], None]]


def torch_contenders(
    make_problem: Callable[[Reference], TorchProblem],
) -> dict[str, Callable[[Reference], Contender]]:
    """Returns makers of all contenders in PyTorch that are installed, by name.

    Args:
        make_problem: makes the problem with a reference's parameters and tasks.
    """
    return {
        name: lambda reference, make=make: make(make_problem(reference))
        for name, make in _installed()
    }


def _installed() -> Iterator[tuple[str, Callable[[TorchProblem], Contender]]]:
    yield "torch.func", functools.partial(torch_func, compiled=False)
    yield "torch.func, compiled", functools.partial(torch_func, compiled=True)
    yield "PyTorch, loop over tasks", _torch_loop
    if importlib.util.find_spec("higher") is not None:
        yield "higher", _higher
    if importlib.util.find_spec("torchopt") is not None:
        yield "TorchOpt", _torchopt
    if (maml := foreign.find_maml("learn2learn")) is not None:
        yield "learn2learn", functools.partial(_learn2learn, maml)


def torch_func(problem: TorchProblem, compiled: bool = False) -> Contender:
    """Makes the contender `torch.func`, which computes all tasks at once.

    Args:
        problem: network, loss and tasks.
        compiled: whether to use `torch.compile`.
    """
    import torch
    from torch.func import grad, grad_and_value, vmap

    def task(w: Any, shared: Any, xs: Any, ys: Any, xq: Any, yq: Any) -> Any:
        for _ in range(problem.num_inner_steps):
            grads = grad(problem.loss)(w, shared, xs, ys)
            w = tuple(p - problem.inner_lr * g for p, g in zip(w, grads, strict=True))
        return problem.loss(w, shared, xq, yq)

    def total(w: Any, shared: Any, *tasks: Any) -> Any:
        return vmap(task, (None, None, 0, 0, 0, 0))(w, shared, *tasks).mean()

    meta_gradient = grad_and_value(total, argnums=(0, 1))
    if compiled:
        meta_gradient = torch.compile(meta_gradient)
    leaves = [*problem.weights, *problem.shared]
    optimizer = torch.optim.Adam(leaves, lr=1e-3)

    def gradients(tasks: tuple[Any, ...]) -> tuple[Any, list[Any]]:
        theta = (tuple(x.detach() for x in group) for group in (problem.weights, problem.shared))
        grads, value = meta_gradient(*theta, *tasks)
        return value, [*grads[0], *grads[1]]

    def check() -> Any:
        value, grads = gradients(problem.tasks)
        return float(value), [g.detach().cpu().numpy() for g in grads]

    def step() -> None:
        _, grads = gradients(problem.draw())
        for leaf, g in zip(leaves, grads, strict=True):
            leaf.grad = g
        optimizer.step()

    return check, step


def _looped(problem: TorchProblem, weights: list[Any], task_loss: Callable[..., Any]) -> Contender:
    """Makes a contender that computes `task_loss(xs, ys, xq, yq)` of one task after the other."""
    import torch

    leaves = [*weights, *problem.shared]
    optimizer = torch.optim.Adam(leaves, lr=1e-3)

    def gradients(tasks: tuple[Any, ...]) -> float:
        optimizer.zero_grad()
        total = 0.0
        for task in zip(*tasks, strict=True):
            loss = task_loss(*task) / len(tasks[0])
            loss.backward()
            total += loss.item()
        return total

    def check() -> Any:
        value = gradients(problem.tasks)
        return value, [leaf.grad.cpu().numpy().copy() for leaf in leaves]

    def step() -> None:
        gradients(problem.draw())
        optimizer.step()

    return check, step


def _torch_loop(problem: TorchProblem) -> Contender:
    import torch

    def task_loss(xs: Any, ys: Any, xq: Any, yq: Any) -> Any:
        adapted = problem.weights
        for _ in range(problem.num_inner_steps):
            inner = problem.loss(adapted, problem.shared, xs, ys)
            grads = torch.autograd.grad(inner, adapted, create_graph=True)
            adapted = [p - problem.inner_lr * g for p, g in zip(adapted, grads, strict=True)]
        return problem.loss(adapted, problem.shared, xq, yq)

    return _looped(problem, problem.weights, task_loss)


def _module(problem: TorchProblem) -> Any:
    """Wraps the network in a module, whose parameters are the adapted ones only."""
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.ParameterList(
                [torch.nn.Parameter(w.detach().clone()) for w in problem.weights]
            )

        def forward(self, x):
            return problem.apply(list(self.w), problem.shared, x)

    return Net()


def _higher(problem: TorchProblem) -> Contender:
    import higher
    import torch

    net = _module(problem)
    inner = torch.optim.SGD(net.parameters(), lr=problem.inner_lr)

    def task_loss(xs: Any, ys: Any, xq: Any, yq: Any) -> Any:
        with higher.innerloop_ctx(net, inner, copy_initial_weights=False) as (fast, optimizer):
            for _ in range(problem.num_inner_steps):
                optimizer.step(problem.criterion(fast(xs), ys))
            return problem.criterion(fast(xq), yq)

    return _looped(problem, list(net.parameters()), task_loss)


def _torchopt(problem: TorchProblem) -> Contender:
    import torchopt

    net = _module(problem)
    inner = torchopt.MetaSGD(net, lr=problem.inner_lr)
    weights = list(net.parameters())

    def task_loss(xs: Any, ys: Any, xq: Any, yq: Any) -> Any:
        before = torchopt.extract_state_dict(net, by="reference")
        optimizer_before = torchopt.extract_state_dict(inner, by="reference")
        for _ in range(problem.num_inner_steps):
            inner.step(problem.criterion(net(xs), ys))
        loss = problem.criterion(net(xq), yq)
        torchopt.recover_state_dict(net, before)
        torchopt.recover_state_dict(inner, optimizer_before)
        return loss

    return _looped(problem, weights, task_loss)


def _learn2learn(maml: Any, problem: TorchProblem) -> Contender:
    net = _module(problem)
    learner = maml(net, lr=problem.inner_lr)

    def task_loss(xs: Any, ys: Any, xq: Any, yq: Any) -> Any:
        clone = learner.clone()
        for _ in range(problem.num_inner_steps):
            clone.adapt(problem.criterion(clone(xs), ys))
        return problem.criterion(clone(xq), yq)

    return _looped(problem, list(net.parameters()), task_loss)
