"""Times `torch.func` on JAX's device and on the same tasks."""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

import importlib.util

import jax

from benchmarks.harness import Row, sample_times, summarize
from benchmarks.peers import comparison, images
from benchmarks.peers.torch_contenders import torch_func
from benchmarks.problems import ImageCase

DEVICES = {"gpu": "cuda", "cpu": "cpu"}


def torch_func_row(name: str, case: ImageCase, seconds: float) -> Row:
    """Checks that the meta-gradient in float64 is ours; then times a meta-step.

    The timing uses TF32, JAX's default on GPUs that support it.

    Args:
        name: of the row.
        case: training settings.
        seconds: approximate time to measure for.

    Returns:
        The timing, or the reason why there is none.

    Raises:
        AssertionError: the meta-gradients differ.
    """
    device = DEVICES.get(jax.default_backend())
    if importlib.util.find_spec("torch") is None:
        return {"name": name, "not run": "PyTorch is not installed"}
    import torch

    if device is None or (device == "cuda" and not torch.cuda.is_available()):
        return {"name": name, "not run": "PyTorch does not see the device"}
    exact, timed = (images.make_reference(case, dtype) for dtype in ("float64", "float32"))
    settle = torch.cuda.synchronize if device == "cuda" else lambda: None
    with torch.device(device):
        check, _ = torch_func(images.torch_problem(case, exact))
        comparison.assert_agrees(name, check, exact)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        _, step = torch_func(images.torch_problem(case, timed))
        row = summarize(name, sample_times(lambda: (step(), settle()), seconds, 3))
    return {**row, "meta_steps_per_s": 1e3 / row["median_ms"]}
