"""Locomotion: half-cheetah and ant, the paper's section 5.3 and its Figure 5.

A robot must run at a goal speed or in a goal direction. The policy does not observe the goal:
adaptation infers it from the rewards.
"""

from ..meta_rl import meta_rl_experiment
from . import render
from .config import PRESETS, Config, make_environment, setting
from .figure import locomotion_sheet, watch

EXPERIMENT = meta_rl_experiment(
    "locomotion",
    "half-cheetah and ant with unknown goals, speeds or directions (MAML paper, section 5.3)",
    Config,
    PRESETS,
    make_environment,
    setting,
    watch,
    locomotion_sheet,
    modes={"render": render.render},
    mode_flags={"render": render.FLAGS},
    small_kernels=True,
)

__all__ = ["EXPERIMENT", "PRESETS", "Config", "make_environment", "setting"]
