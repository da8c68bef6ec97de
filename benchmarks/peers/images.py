"""Omniglot's and MiniImagenet's meta-steps in PyTorch libraries, beside ours, in one run.

The same network, second-order meta-gradient and Adam step. Before anything is timed all must give
the same loss and meta-gradient on the same tasks. Ours draws its episodes inside the step; the
others are handed theirs.
"""

from __future__ import annotations

import functools
import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import classification, foreign
from benchmarks.classification import (
    OMNIGLOT_5,
    OMNIGLOT_15,
    OMNIGLOT_20,
    Case,
    synthetic_images,
    task_loss,
    trainer,
)
from benchmarks.harness import agreement, summarize
from maml_jax.batching import sum_gradient
from maml_jax.classification import classification_problem, draw_episodes
from maml_jax.networks.normalization import EPSILON
from maml_jax.types import is_float

MINI = next(case for case in classification.CASES if case.data == "mini_imagenet")
CASES = (OMNIGLOT_5, OMNIGLOT_20, OMNIGLOT_15, MINI)
# Of the largest element, in float64, where all agree to rounding. In float32, which is timed, five
# steps at alpha = 2 on random pixels amplify rounding to whatever the processor makes of it.
TOLERANCE = 1e-8
LAYERS = 4


def image_peers_suite(rounds: int = 5) -> list[dict[str, Any]]:
    """Times every contender that is installed on each case, in turns, and gives the ratios.

    A row says whether the contender's meta-gradient in float64 is ours.

    Raises:
        SystemExit: PyTorch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise SystemExit("the image_peers suite needs PyTorch; `make bench-peers` brings it.")
    rows = []
    for case in CASES:
        found = _compare(case, rounds)
        rows += found
        for row in found:
            print(f"  {row['name']}: {row['median_ms']:.1f} ms", flush=True)
    return rows


def _compare(case: Case, rounds: int) -> list[dict[str, Any]]:
    exact = reference(case, "float64")
    rough = reference(case, "float32")
    per_call = max(1, 20 // (case.steps * case.queries))
    contenders: dict[str, tuple[Callable[[], Any], int]] = {"maml_jax": _ours(case, per_call)}
    agree = {"maml_jax": "yes"}
    for name, make in torch_contenders():
        check, _ = make(case, *exact[:2])
        agree[name] = agreement(functools.partial(_check, name, check, exact))
        contenders[name] = (make(case, *rough[:2])[1], 1)
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for step, _ in contenders.values():
        step()  # compiles what is compiled
    for _ in range(rounds):
        for name, (step, per_step) in contenders.items():
            time.sleep(0.5)  # PyTorch's idle threads spin for a while before they sleep
            step()
            begun = time.perf_counter()
            step()
            samples[name].append((time.perf_counter() - begun) / per_step)
    ours = float(np.median(samples["maml_jax"])) * 1e3
    rows = []
    for name, values in samples.items():
        timing = summarize(f"{case.name}: {name}", values, None, None)
        ratio = timing.median_ms / ours
        rows.append({**timing._asdict(), "times_ours": ratio, "agree": agree[name]})
    return rows


def _check(name: str, check: Callable[[], Any], ours: Reference) -> None:
    assert_agrees(name, check(), ours)


class Reference(NamedTuple):
    """What all contenders are handed, and what they have to give.

    Attributes:
        params: in PyTorch's layout.
        tasks: with a leading axis of tasks.
        loss: ours, the mean over tasks.
        gradient: our meta-gradient, in PyTorch's layout.
    """

    params: list[np.ndarray]
    tasks: Any
    loss: float
    gradient: list[np.ndarray]


def reference(case: Case, dtype: str) -> Reference:
    """Tasks, parameters, and our loss and meta-gradient, in float32 or float64."""
    network = case.network()
    sample = classification_problem(network, case.ways, case.shots, case.queries).sample
    images = synthetic_images(case)
    tasks = jax.jit(lambda i: draw_episodes(sample, jax.random.key(1), i, case.tasks))(images)
    params = jax.jit(network.init)(jax.random.key(0))
    with jax.enable_x64(dtype == "float64"):
        tasks, params = jax.tree.map(
            lambda x: jnp.asarray(x, dtype) if is_float(x) else x, (tasks, params)
        )
        fn = task_loss(case, network)
        losses, _, grads, _ = jax.jit(lambda p, t: sum_gradient(fn, p, t, "scan"))(params, tasks)
        mean = jax.tree.map(lambda g: g / case.tasks, grads)
        found = float(losses.mean()), torch_layout(mean)
    return Reference(torch_layout(params), jax.tree.map(np.asarray, tasks), *found)


def assert_agrees(name: str, theirs: tuple[float, list[np.ndarray]], ours: Reference) -> None:
    """Raises an AssertionError unless loss and meta-gradient, in float64, are ours."""
    their_loss, their_gradient = theirs
    np.testing.assert_allclose(their_loss, ours.loss, rtol=TOLERANCE, err_msg=name)
    scale = max(np.abs(g).max() for g in ours.gradient)
    for a, b in zip(their_gradient, ours.gradient, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * scale, err_msg=name)


def torch_layout(params: Any) -> list[np.ndarray]:
    """Our parameters as PyTorch has them: kernels, biases, head; then the four offsets."""
    flat = []
    for i in range(LAYERS):
        conv = params[f"Conv_{i}"]
        flat += [np.asarray(conv["kernel"]).transpose(3, 2, 0, 1), np.asarray(conv["bias"])]
    flat += [np.asarray(params["Head"]["kernel"]).T, np.asarray(params["Head"]["bias"])]
    flat += [np.asarray(params[f"Norm_{i}"]["offset"]) for i in range(LAYERS)]
    return [np.ascontiguousarray(leaf) for leaf in flat]


def _ours(case: Case, per_call: int) -> tuple[Callable[[], Any], int]:
    train, state = trainer(case, per_call)
    holder = [state]

    def step() -> None:
        holder[0], metrics = train(holder[0])
        jax.block_until_ready(metrics)

    return step, per_call


def torch_contenders() -> Iterator[tuple[str, Callable[[Case, Any, Any], tuple[Any, Any]]]]:
    """Name and maker of each; a maker returns `(check, step)`."""
    yield "torch.func", lambda c, p, t: _torch_func(c, p, t, compiled=False)
    yield "torch.func, compiled", lambda c, p, t: _torch_func(c, p, t, compiled=True)
    yield "PyTorch, a loop over tasks", _torch_loop
    if importlib.util.find_spec("higher") is not None:
        yield "higher", _higher
    if importlib.util.find_spec("torchopt") is not None:
        yield "TorchOpt", _torchopt
    if (maml := foreign.find_maml("learn2learn")) is not None:
        yield "learn2learn", functools.partial(_learn2learn, maml)


def _apply(weights: Any, offsets: Any, x: Any) -> Any:
    """Logits; `weights` are kernels and biases, the head's last.

    Colour images are MiniImagenet's, whose layers have max-pooling in place of strides.
    """
    import torch
    from torch.nn import functional

    stride = 2 if x.shape[1] == 1 else 1
    for i in range(LAYERS):
        total = (-(-x.shape[-1] // stride) - 1) * stride + 3 - x.shape[-1]  # as XLA pads for SAME
        x = functional.pad(x, (total // 2, total - total // 2) * 2)
        x = functional.conv2d(x, weights[2 * i], weights[2 * i + 1], stride=stride)
        mean = x.mean((0, 2, 3), keepdim=True)
        variance = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
        x = (x - mean) * torch.rsqrt(variance + EPSILON) + offsets[i][None, :, None, None]
        x = torch.relu(x)
        if stride == 1:
            x = functional.max_pool2d(x, 2)
    x = x.mean((2, 3)) if stride == 2 else x.permute(0, 2, 3, 1).flatten(1)
    return x @ weights[-2].T + weights[-1]


def _loss(weights: Any, offsets: Any, x: Any, y: Any) -> Any:
    from torch.nn import functional

    return functional.cross_entropy(_apply(weights, offsets, x), y)


def _setup(params: Any, tasks: Any) -> tuple[list[Any], list[Any], tuple[Any, ...]]:
    """Weights, offsets, and the tasks' tensors: support and query images and labels."""
    import torch

    leaves = [torch.tensor(p, requires_grad=True) for p in params]
    batches = []
    for batch in tasks:
        images = np.ascontiguousarray(np.asarray(batch.images).transpose(0, 1, 4, 2, 3))
        batches += [torch.tensor(images), torch.tensor(np.asarray(batch.labels), dtype=torch.long)]
    return leaves[:-LAYERS], leaves[-LAYERS:], tuple(batches)


def _torch_func(case: Case, params: Any, tasks: Any, compiled: bool) -> tuple[Any, Any]:
    import torch
    from torch.func import grad, grad_and_value, vmap

    weights, offsets, batch = _setup(params, tasks)

    def task(w: Any, o: Any, xs: Any, ys: Any, xq: Any, yq: Any) -> Any:
        for _ in range(case.steps):
            gradients = grad(_loss)(w, o, xs, ys)
            w = tuple(p - case.inner_lr * g for p, g in zip(w, gradients, strict=True))
        return _loss(w, o, xq, yq)

    def total(w: Any, o: Any, *batch: Any) -> Any:
        return vmap(task, (None, None, 0, 0, 0, 0))(w, o, *batch).mean()

    meta_gradient = grad_and_value(total, argnums=(0, 1))
    if compiled:
        meta_gradient = torch.compile(meta_gradient)
    leaves = [*weights, *offsets]
    optimizer = torch.optim.Adam(leaves, lr=1e-3)

    def gradients() -> tuple[float, list[Any]]:
        (by_weight, by_offset), value = meta_gradient(
            tuple(w.detach() for w in weights), tuple(o.detach() for o in offsets), *batch
        )
        return value, [*by_weight, *by_offset]

    def check() -> Any:
        value, grads = gradients()
        return float(value), [g.detach().cpu().numpy() for g in grads]

    def step() -> None:
        _, grads = gradients()
        for leaf, g in zip(leaves, grads, strict=True):
            leaf.grad = g
        optimizer.step()

    return check, step


def _looped(
    case: Case, leaves: list[Any], batch: tuple[Any, ...], task_loss: Callable[..., Any]
) -> tuple[Any, Any]:
    """`(check, step)` of a contender that takes one task after the other."""
    import torch

    optimizer = torch.optim.Adam(leaves, lr=1e-3)

    def gradients() -> float:
        optimizer.zero_grad()
        total = 0.0
        for t in range(case.tasks):
            loss = task_loss(*(x[t] for x in batch)) / case.tasks
            loss.backward()
            total += loss.item()
        return total

    def check() -> Any:
        value = gradients()
        return value, [leaf.grad.cpu().numpy().copy() for leaf in leaves]

    def step() -> None:
        gradients()
        optimizer.step()

    return check, step


def _torch_loop(case: Case, params: Any, tasks: Any) -> tuple[Any, Any]:
    import torch

    weights, offsets, batch = _setup(params, tasks)

    def task_loss(xs: Any, ys: Any, xq: Any, yq: Any) -> Any:
        adapted = weights
        for _ in range(case.steps):
            inner = _loss(adapted, offsets, xs, ys)
            grads = torch.autograd.grad(inner, adapted, create_graph=True)
            adapted = [p - case.inner_lr * g for p, g in zip(adapted, grads, strict=True)]
        return _loss(adapted, offsets, xq, yq)

    return _looped(case, [*weights, *offsets], batch, task_loss)


def _module(weights: list[Any]) -> Any:
    """The network as a module; offsets are not adapted, so they come from outside."""
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.ParameterList([torch.nn.Parameter(w.detach()) for w in weights])

        def forward(self, x, offsets):
            return _apply(list(self.w), offsets, x)

    return Net()


def _higher(case: Case, params: Any, tasks: Any) -> tuple[Any, Any]:
    import higher
    import torch
    from torch.nn import functional

    weights, offsets, batch = _setup(params, tasks)
    net = _module(weights)
    inner = torch.optim.SGD(net.parameters(), lr=case.inner_lr)

    def task_loss(xs: Any, ys: Any, xq: Any, yq: Any) -> Any:
        with higher.innerloop_ctx(net, inner, copy_initial_weights=False) as (fast, optimizer):
            for _ in range(case.steps):
                optimizer.step(functional.cross_entropy(fast(xs, offsets), ys))
            return functional.cross_entropy(fast(xq, offsets), yq)

    return _looped(case, [*net.parameters(), *offsets], batch, task_loss)


def _torchopt(case: Case, params: Any, tasks: Any) -> tuple[Any, Any]:
    import torchopt
    from torch.nn import functional

    weights, offsets, batch = _setup(params, tasks)
    net = _module(weights)
    inner = torchopt.MetaSGD(net, lr=case.inner_lr)
    leaves = [*net.parameters(), *offsets]

    def task_loss(xs: Any, ys: Any, xq: Any, yq: Any) -> Any:
        before = torchopt.extract_state_dict(net, by="reference")
        optimizer_before = torchopt.extract_state_dict(inner, by="reference")
        for _ in range(case.steps):
            inner.step(functional.cross_entropy(net(xs, offsets), ys))
        loss = functional.cross_entropy(net(xq, offsets), yq)
        torchopt.recover_state_dict(net, before)
        torchopt.recover_state_dict(inner, optimizer_before)
        return loss

    return _looped(case, leaves, batch, task_loss)


def _learn2learn(maml: Any, case: Case, params: Any, tasks: Any) -> tuple[Any, Any]:
    from torch.nn import functional

    weights, offsets, batch = _setup(params, tasks)
    net = _module(weights)
    learner = maml(net, lr=case.inner_lr)

    def task_loss(xs: Any, ys: Any, xq: Any, yq: Any) -> Any:
        clone = learner.clone()
        for _ in range(case.steps):
            clone.adapt(functional.cross_entropy(clone(xs, offsets), ys))
        return functional.cross_entropy(clone(xq, offsets), yq)

    return _looped(case, [*net.parameters(), *offsets], batch, task_loss)
