"""`torch.func` on the device that JAX runs on, on the same tasks."""

from __future__ import annotations

import importlib.util
import time
from typing import Any

import jax
import numpy as np

from benchmarks.classification import Case
from benchmarks.harness import summarize

DEVICES = {"gpu": "cuda", "cpu": "cpu"}


def torch_func_row(name: str, case: Case, seconds: float) -> dict[str, Any]:
    """Milliseconds a meta-step, after its meta-gradient was found to be ours in float64.

    It is timed with TF32, which is what JAX's default is on the GPUs that have it.

    Args:
        name: of the row.
        case: the problem.
        seconds: about how long to time for.

    Returns:
        The timing, or why there is none.

    Raises:
        AssertionError: the meta-gradients differ.
    """
    device = DEVICES.get(jax.default_backend())
    if importlib.util.find_spec("torch") is None:
        return {"name": name, "not run": "PyTorch is not installed"}
    import torch

    if device is None or (device == "cuda" and not torch.cuda.is_available()):
        return {"name": name, "not run": "PyTorch does not see the device"}
    from benchmarks import image_peers

    make = dict(image_peers.torch_contenders())["torch.func"]
    exact, rough = (image_peers.reference(case, dtype) for dtype in ("float64", "float32"))
    settle = torch.cuda.synchronize if device == "cuda" else lambda: None
    with torch.device(device):
        image_peers.assert_agrees(name, make(case, *exact[:2])[0](), exact)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        _, step = make(case, *rough[:2])
        begun = time.perf_counter()
        step()
        settle()
        count = int(np.clip(seconds / (time.perf_counter() - begun), 3, 200))
        samples = []
        for _ in range(count):
            begun = time.perf_counter()
            step()
            settle()
            samples.append(time.perf_counter() - begun)
    timing = summarize(name, samples[1:], None, None)
    return {**timing._asdict(), "meta_steps_per_s": 1e3 / timing.median_ms}
