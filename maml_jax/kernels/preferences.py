"""The preferred implementation of each computation per platform, with the evidence.

======================== ==============================================================
`MEASURED`               a benchmark of this repository, run on the platform
`COMPILED`               the compiler's report on the program, without a run
`ASSUMED`                no evidence yet
======================== ==============================================================
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from maml_jax import checks

MEASURED, COMPILED, ASSUMED = "measured", "compiled, not measured", "assumed"


class Preference(NamedTuple):
    """One choice for one platform.

    Attributes:
        value: the choice.
        evidence: `MEASURED`, `COMPILED` or `ASSUMED`.
        reason: the measurement, or the reason of the assumption.
    """

    value: Any
    evidence: str
    reason: str


PREFERENCES: dict[str, dict[str, Preference]] = {
    # The lowering of convolutions (`kernels.convolutions`).
    "lowering": {
        "cpu": Preference("patches", MEASURED, "benchmarks/README.md, suite classification"),
        "gpu": Preference("patches", COMPILED, "H100, Omniglot: 116 MB of scratch; native 403 MB"),
        "tpu": Preference("native", COMPILED, "v5e x 8, Omniglot: 0.30 GB accessed; patches 0.73"),
    },
    # The batching of tasks with large kernels: convolutional networks, policies in simulators.
    "batching": {
        "cpu": Preference("scan", MEASURED, "benchmarks/README.md, suite classification"),
        "gpu": Preference("vmap", ASSUMED, "one batched program fills the device"),
        "tpu": Preference("vmap", ASSUMED, "one batched program fills the device"),
    },
    # The batching of a run's members with separate parameters on one device.
    "members": {
        "cpu": Preference("scan", ASSUMED, "separate weights per member shrink small products"),
        "gpu": Preference("vmap", ASSUMED, "one batched program fills the device"),
        "tpu": Preference("vmap", ASSUMED, "one batched program fills the device"),
    },
}


def preferred(choice: str, platform: str | None = None) -> Any:
    """Returns the preferred value of a choice on a platform.

    Args:
        choice: a key of `PREFERENCES`: "lowering", "batching" or "members".
        platform: "cpu", "gpu" or "tpu"; default `jax.default_backend()`. Other platforms count as
            "gpu".

    Raises:
        ValueError: `choice` is unknown.

    Example:
        >>> from maml_jax.kernels.preferences import preferred
        >>> preferred("lowering", "cpu"), preferred("lowering", "tpu")
        ('patches', 'native')
    """
    checks.check_choice(choice, tuple(PREFERENCES), "choice")
    table = PREFERENCES[choice]
    return table.get(platform or jax.default_backend(), table["gpu"]).value
