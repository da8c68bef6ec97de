"""Times meta-steps of the paper's image classifiers, and their shares of the machine's peaks.

On a CPU each core is one JAX device with one thread, as in the experiments.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp

from benchmarks import bounds, problems
from benchmarks.harness import Row
from benchmarks.problems import OMNIGLOT_5, ImageCase, images

CASES = (
    OMNIGLOT_5,
    problems.OMNIGLOT_20,
    problems.OMNIGLOT_15,
    problems.OMNIGLOT_5_SHOT,
    problems.MLP,
    problems.MINI,
)
CHOICES: tuple[dict[str, Any], ...] = (
    {"lowering": "shifts"},
    {"lowering": "native"},
    {"batching": 4},
    {"batching": "vmap"},
    {"mode": "mixed"},
    {"mode": "first_order"},
    {"dtype": jnp.bfloat16},
)


def classification_suite() -> Iterator[Row]:
    """Times all cases with their shares of the measured peaks; then the choices on the first."""
    gflops, copy_gb_s = bounds.product_peak(), bounds.copy_peak(256)
    yield {"name": "peak: 1024^3 matrix products on every device", "gflops": gflops}
    yield {"name": "peak: 256 MB read and written on every device", "gb_s": copy_gb_s}
    runs = [(case.name, case, {}) for case in CASES]
    for choice in CHOICES:
        ((key, value),) = choice.items()
        shown = getattr(value, "__name__", value)
        runs.append((f"{OMNIGLOT_5.name}, {key}={shown}", OMNIGLOT_5, choice))
    for name, case, options in runs:
        per_call = 10 if case.steps == 1 and case.queries < 15 else 2
        if options.get("lowering") == "native":
            per_call = 1
        row = images(case, **options).program(per_call).measure(name, 5)
        work = work_of(case, options.get("mode", case.mode))
        row |= {"gflop": work[0] / 1e9, "gbyte": work[1] / 1e9}
        yield row | bounds.shares_of(row["median_ms"], work, gflops, copy_gb_s)


def work_of(case: ImageCase, mode: str, **network: Any) -> tuple[float, float]:
    """Returns `Setup.work` of a case without recomputation: that of reverse mode or first order.

    Args:
        case: training settings.
        mode: of the meta-gradient.
        **network: options of the network.
    """
    exact = mode if mode == "first_order" else "reverse"
    return images(case, exact, **network).work()
