"""What each platform prefers, in one table, and by what evidence.

`"measured"` names a benchmark of this repository that was run there; `"compiled, not measured"`
goes by what the compiler says of the program; `"assumed"` has no evidence yet.
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
        reason: what was measured where, or why it is assumed.
    """

    value: Any
    evidence: str
    reason: str


PREFERENCES: dict[str, dict[str, Preference]] = {
    # How a convolution is computed (`kernels.convolutions`).
    "lowering": {
        "cpu": Preference("patches", MEASURED, "benchmarks/README.md, suite classification"),
        "gpu": Preference("patches", COMPILED, "H100, Omniglot: 116 MB of scratch; native 403 MB"),
        "tpu": Preference("native", COMPILED, "v5e x 8, Omniglot: 0.30 GB accessed; patches 0.73"),
    },
    # Tasks at once, of networks whose kernels are large: convolutions, policies in physics.
    "batching": {
        "cpu": Preference("scan", MEASURED, "benchmarks/README.md, suite classification"),
        "gpu": Preference("vmap", ASSUMED, "one batched program fills the device"),
        "tpu": Preference("vmap", ASSUMED, "one batched program fills the device"),
    },
    # Members of a run on one device whose parameters differ: side by side, or in sequence.
    "members": {
        "cpu": Preference("scan", ASSUMED, "weights of each member make small products smaller"),
        "gpu": Preference("vmap", ASSUMED, "one batched program fills the device"),
        "tpu": Preference("vmap", ASSUMED, "one batched program fills the device"),
    },
}


def preferred(choice: str, platform: str | None = None) -> Any:
    """The value of a choice for a platform.

    Args:
        choice: a name in `PREFERENCES`: "lowering", "batching" or "members".
        platform: "cpu", "gpu" or "tpu"; default that of the first device. Others count as "gpu".

    Raises:
        ValueError: an unknown choice.
    """
    checks.check_choice(choice, tuple(PREFERENCES), "choice")
    table = PREFERENCES[choice]
    return table.get(platform or jax.default_backend(), table["gpu"]).value
