"""That every choice of lowering, mode and batching gives one meta-gradient on this device.

All are compared with float64 on the same device, at the device's default matrix precision (TF32 on
NVIDIA's GPUs, bfloat16 products on TPUs, float32 on CPUs) and at "highest".
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.classification import OMNIGLOT_5, Case, synthetic_images, task_loss
from maml_jax import MODES
from maml_jax.batching import sum_gradient
from maml_jax.classification import classification_problem, draw_episodes
from maml_jax.kernels.convolutions import LOWERINGS
from maml_jax.types import is_float

# Norm of the difference, relative to the meta-gradient's; TF32 has ten bits of mantissa, 1e-3, in
# each product, and a ReLU's input that is zero but for rounding falls to either side.
TOLERANCE = {"default": 5e-2, "highest": 1e-3}
# Steps short enough for rounding to stay rounding.
CASE = OMNIGLOT_5._replace(tasks=4, steps=2, rate=0.2)


def equivalence_rows(case: Case = CASE, **network: Any) -> list[dict[str, Any]]:
    """Deviations of each choice from the exact meta-gradient, with whether they are as allowed.

    Args:
        case: the problem.
        **network: options of its network.
    """
    tasks, params = _inputs(case, network)
    exact = {
        order: _exact(case, order, tasks, params, network) for order in ("reverse", "first_order")
    }
    choices = [(lowering, "reverse", "vmap") for lowering in LOWERINGS]
    choices += [(LOWERINGS[0], mode, "vmap") for mode in MODES if mode != "reverse"]
    choices += [(LOWERINGS[0], "mixed", batching) for batching in ("scan", 2)]
    rows = []
    for precision in TOLERANCE:
        for lowering, mode, batching in choices:
            options = {**network, "lowering": lowering}
            with _precision(precision):
                found = _gradient(case, mode, batching, options)(params, tasks)
            target = exact["first_order" if mode == "first_order" else "reverse"]
            deviation = _distance(found, target)
            rows.append({
                "name": f"meta-gradient: {lowering}, {mode}, {batching}, precision {precision}",
                "precision": precision,
                "deviation": deviation,
                "agree": "yes" if deviation <= TOLERANCE[precision] else "NO",
            })  # fmt: skip
    return rows


def _precision(name: str) -> Any:
    if name == "default":
        return contextlib.nullcontext()
    return jax.default_matmul_precision(name)


def _inputs(case: Case, network: dict[str, Any]) -> tuple[Any, Any]:
    net = case.network(**network)
    sample = classification_problem(net, case.ways, case.shots, case.queries).sample
    draw = jax.jit(functools.partial(draw_episodes, sample), static_argnums=2)
    tasks = draw(jax.random.key(1), synthetic_images(case), case.tasks)
    return tasks, jax.jit(net.init)(jax.random.key(0))


def _gradient(case: Case, mode: str, batching: Any, options: dict[str, Any]) -> Any:
    fn = task_loss(case, case.network(**options), mode)
    return jax.jit(lambda p, t: sum_gradient(fn, p, t, batching)[2])


def _exact(case: Case, mode: str, tasks: Any, params: Any, network: dict[str, Any]) -> Any:
    """In float64, or, where the device has none, at the highest precision of float32."""
    double = jax.default_backend() != "tpu"
    with jax.enable_x64(double), jax.default_matmul_precision("highest"):
        if double:
            tasks, params = jax.tree.map(
                lambda x: jnp.asarray(x, jnp.float64) if is_float(x) else x, (tasks, params)
            )
        found = _gradient(case, mode, "vmap", {**network, "lowering": "native"})(params, tasks)
        return jax.tree.map(np.asarray, found)


def _distance(found: Any, exact: Any) -> float:
    flat = [
        np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)])
        for tree in (found, exact)
    ]
    return float(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1]))
