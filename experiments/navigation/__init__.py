"""2D navigation: the paper's section 5.3 and its Figure 4.

A point on the plane must go to a goal. The policy does not observe the goal: adaptation
infers it from the rewards.
"""

from ..meta_rl import meta_rl_experiment
from .config import PRESETS, Config, make_environment, setting
from .figure import navigation_sheet, watch

EXPERIMENT = meta_rl_experiment(
    "navigation",
    "2D navigation to unknown goals by policy gradients (MAML paper, section 5.3)",
    Config,
    PRESETS,
    make_environment,
    setting,
    watch,
    navigation_sheet,
)

__all__ = ["EXPERIMENT", "PRESETS", "Config", "make_environment", "setting"]
