"""Settings of 2D navigation and its environment."""

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
    """Settings of a run; defaults are the paper's, except for the number of meta-steps."""

    reward: str = option(
        "distance",
        "Reward of a step. distance: minus the distance to the goal, as in the published returns. "
        "squared_distance: minus its square, as in the paper's text.",
        choices=REWARDS,
    )


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "quick": {
        # As many meta-steps as `paper`: after 50, pretraining still adapts as well as MAML does.
        "methods": ("maml", "pretrained", "random"),
        "curvature_episodes": 5,
    },
}


def make_environment(config: Config) -> Environment:
    """Makes the environment of a configuration; equal settings share one object."""
    return _environment(config.reward, config.horizon)


_environment = functools.cache(navigation)


def setting(config: Config) -> str:
    """The setting's name in results: returns with different names are not comparable."""
    unit = "" if config.reward == "distance" else ", squared distance"
    return f"2D navigation{unit}{config.departures}"
