"""Settings of 2D navigation, and its environment."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from maml_jax.reinforcement import Environment, navigation
from maml_jax.reinforcement.navigation import REWARDS

from .. import meta_rl
from ..core.config import option


@dataclasses.dataclass(frozen=True)
class Config(meta_rl.Config):
    """Settings of a run; defaults are the paper's, but for the number of meta-steps."""

    reward: str = option(
        "distance",
        "Minus the distance to the goal, as the published returns; or minus its square, as the "
        "paper writes.",
        choices=REWARDS,
    )


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "quick": {
        "methods": ("maml", "pretrained", "random", "oracle"),
        "meta_steps": 50,
        "curvature_episodes": 5,
    },
}


def make_environment(config: Config) -> Environment:
    """The environment of a configuration."""
    return _environment(config.reward, config.horizon)


_environment = functools.cache(navigation)


def setting(config: Config) -> str:
    """As results name it: what the policy may use, and the reward's unit, are never mixed."""
    unit = "" if config.reward == "distance" else ", squared distance"
    return f"2D navigation{unit}{config.departures}"
