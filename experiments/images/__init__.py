"""Few-shot classification of images: Omniglot, MiniImagenet, a folder of your own.

A run trains the methods that it is asked for, keeps of each the parameters that do best on
validation episodes, and tests those.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.process import device_per_core
from ..core.stages import Experiment
from . import adapt
from .config import Config
from .evaluation import evaluate
from .figure import images_figure
from .stages import make_stages

PRESETS: dict[str, dict[str, Any]] = {
    "full": {},
    "paper": {},  # as the other experiments call it
    "quick": {"meta_steps": 1_000, "validate_every": 250, "validation_tasks": 100},
}


def images_experiment(
    name: str, summary: str, config: type[Config], presets: Mapping[str, Mapping[str, Any]]
) -> Experiment:
    """The experiment of a configuration, which says what data and which network it is about.

    Args:
        name: of its runs in results.
        summary: a sentence for the first line of a run and of `--help`.
        config: `Config`, or a subclass with other defaults.
        presets: by name, the fields that differ from the defaults.
    """
    return Experiment(
        name=name,
        summary=summary,
        config=config,
        presets=presets,
        stages=make_stages,
        evaluate=evaluate,
        figure=images_figure,
        modes={"adapt": adapt.adapt_to_images},
        mode_flags={"adapt": adapt.FLAGS},
        cpu_threads=1,
        cpu_devices=device_per_core,
    )


EXPERIMENT = images_experiment("images", "few-shot classification of images", Config, PRESETS)
