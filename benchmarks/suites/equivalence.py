"""Checks that all choices of lowering, mode and batching give the same meta-gradient on a device.

Each is compared with float64 on the same device, at the device's default matrix precision (TF32 on
NVIDIA's GPUs, bfloat16 products on TPUs, float32 on CPUs) and at "highest".
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks import problems
from benchmarks.harness import Row
from benchmarks.problems import OMNIGLOT_5, ImageCase, cast_floats
from maml_jax import MODES
from maml_jax.kernels.convolutions import LOWERINGS

# Norm of the difference relative to the meta-gradient's. TF32 rounds each operand of a product to
# ten bits of mantissa, 1e-3, and rounding decides the sign of a ReLU's input near zero.
TOLERANCE = {"default": 5e-2, "highest": 1e-3}
# The inner learning rate is small, so that the steps do not amplify rounding.
CASE = OMNIGLOT_5._replace(tasks=4, steps=2, rate=0.2)
CHOICES: tuple[Row, ...] = (
    *({"lowering": name} for name in LOWERINGS),
    *({"mode": mode} for mode in MODES if mode != "reverse"),
    *({"mode": "mixed", "batching": batching} for batching in ("scan", 2)),
)


def equivalence_rows(case: ImageCase = CASE, **network: Any) -> Iterator[Row]:
    """Compares the meta-gradient of each choice with the exact one.

    Args:
        case: training settings.
        **network: options of the network.

    Yields:
        Rows with the relative `deviation` and whether it is within `TOLERANCE`.
    """
    setup = problems.images(case, **network)
    tasks, params = setup.tasks(), setup.params()
    exact = functools.cache(lambda mode: _exact(case, mode, params, tasks, network))
    for precision in TOLERANCE:
        for choice in CHOICES:
            options = {"lowering": LOWERINGS[0], "mode": "reverse", "batching": "vmap", **choice}
            with _precision(precision):
                gradient = _gradient(case, {**network, **options})(params, tasks)
            target = exact("first_order" if options["mode"] == "first_order" else "reverse")
            deviation = _distance(gradient, target)
            settings = ", ".join(str(options[key]) for key in ("lowering", "mode", "batching"))
            yield {
                "name": f"meta-gradient: {settings}, precision {precision}",
                "precision": precision,
                "deviation": deviation,
                "agree": "yes" if deviation <= TOLERANCE[precision] else "NO",
            }


def _precision(name: str) -> Any:
    if name == "default":
        return contextlib.nullcontext()
    return jax.default_matmul_precision(name)


def _gradient(case: ImageCase, options: Row) -> Any:
    setup = problems.images(case, **options)
    return jax.jit(lambda p, t: setup.gradient(p, t).gradient)


def _exact(case: ImageCase, mode: str, params: Any, tasks: Any, network: Row) -> Any:
    """Computes the meta-gradient in float64, or on a TPU, which has none, in precise float32."""
    double = jax.default_backend() != "tpu"
    with jax.enable_x64(double), jax.default_matmul_precision("highest"):
        if double:
            tasks, params = cast_floats((tasks, params), "float64")
        options = {**network, "lowering": "native", "mode": mode, "batching": "vmap"}
        return jax.tree.map(np.asarray, _gradient(case, options)(params, tasks))


def _distance(actual: Any, exact: Any) -> float:
    flat = [
        np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)])
        for tree in (actual, exact)
    ]
    return float(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1]))
