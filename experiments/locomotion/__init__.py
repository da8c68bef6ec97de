"""Locomotion: half-cheetah and ant, the paper's section 5.3 and its Figure 5.

A robot is to run at a speed, or in a direction, that its policy does not see; adaptation finds out.
"""

from ..meta_rl import meta_rl_experiment
from . import render
from .config import PRESETS, Config, make_environment, setting
from .figure import locomotion_sheet, watch

EXPERIMENT = meta_rl_experiment(
    "locomotion",
    "half-cheetah and ant at unknown speeds and in unknown directions (MAML paper, 5.3)",
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
