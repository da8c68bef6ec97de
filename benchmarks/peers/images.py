"""Compares meta-steps on Omniglot and MiniImagenet in PyTorch libraries with ours, in one run.

All use the same network, second-order meta-gradient and Adam step. Our step includes drawing the
episodes; the others receive theirs.
"""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks import problems
from benchmarks.harness import Row
from benchmarks.peers import comparison
from benchmarks.peers.comparison import Reference, check_torch, compare
from benchmarks.peers.torch_contenders import TorchProblem, torch_contenders
from benchmarks.problems import MINI, OMNIGLOT_5, OMNIGLOT_15, OMNIGLOT_20, ImageCase
from maml_jax.networks.normalization import EPSILON

CASES = (OMNIGLOT_5, OMNIGLOT_20, OMNIGLOT_15, MINI)
LAYERS = 4


def image_peers_suite(rounds: int = 5) -> Iterator[Row]:
    """Times all installed contenders on each case, in turns, with the ratios to ours.

    A row reports whether the contender's meta-gradient in float64 is ours.

    Args:
        rounds: number of samples of each.

    Raises:
        SystemExit: PyTorch is not installed.
    """
    check_torch("image_peers")
    for case in CASES:
        contenders = torch_contenders(functools.partial(torch_problem, case))
        program = problems.images(case).program(max(1, 20 // (case.steps * case.queries)))
        # The names in committed results have "a loop".
        title = lambda name, case=case: f"{case.name}: {name.replace(', loop', ', a loop')}"
        reference = functools.partial(make_reference, case)
        yield from compare(title, program, contenders, reference, rounds, 0.0)


def make_reference(case: ImageCase, dtype: str) -> Reference:
    """Computes our meta-gradient of a case, in PyTorch's layout.

    Args:
        case: training settings.
        dtype: "float32" or "float64".
    """
    return comparison.make_reference(problems.images(case, "mixed"), layout, dtype)


def layout(params: Any) -> list[np.ndarray]:
    """Converts our parameters to PyTorch's layout: kernels and biases, head, then offsets."""
    flat = []
    for i in range(LAYERS):
        conv = params[f"Conv_{i}"]
        flat += [np.asarray(conv["kernel"]).transpose(3, 2, 0, 1), np.asarray(conv["bias"])]
    flat += [np.asarray(params["Head"]["kernel"]).T, np.asarray(params["Head"]["bias"])]
    flat += [np.asarray(params[f"Norm_{i}"]["offset"]) for i in range(LAYERS)]
    return [np.ascontiguousarray(leaf) for leaf in flat]


def torch_problem(case: ImageCase, reference: Reference) -> TorchProblem:
    """Makes a case in PyTorch. Kernels, biases and head are adapted; offsets are not.

    Args:
        case: training settings.
        reference: parameters and tasks.
    """
    import torch
    from torch.nn import functional

    leaves = [torch.tensor(p, requires_grad=True) for p in reference.params]
    tasks = []
    for batch in reference.tasks:
        pixels = np.ascontiguousarray(batch.images.transpose(0, 1, 4, 2, 3))
        tasks += [torch.tensor(pixels), torch.tensor(batch.labels, dtype=torch.long)]
    return TorchProblem(
        leaves[:-LAYERS],
        leaves[-LAYERS:],
        _apply,
        functional.cross_entropy,
        tuple(tasks),
        lambda: tuple(tasks),
        case.inner_lr,
        case.steps,
    )


def _apply(weights: Any, offsets: Any, x: Any) -> Any:
    """Returns logits; `weights` are kernels and biases, with the head's at the end.

    The layers of colour images, MiniImagenet's, have max-pooling in place of strides.
    """
    import torch
    from torch.nn import functional

    stride = 2 if x.shape[1] == 1 else 1
    for i in range(LAYERS):
        total = (-(-x.shape[-1] // stride) - 1) * stride + 3 - x.shape[-1]  # XLA's padding for SAME
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
