"""Few-shot classification of images: Omniglot, MiniImagenet, or a folder of your images.

A run trains the chosen methods, selects the parameters of each on validation episodes, and tests
them on test episodes.
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
from .model import make_blueprint
from .stages import make_stages

PRESETS: dict[str, dict[str, Any]] = {
    "full": {},
    "paper": {},  # its name in the other experiments
    "quick": {"meta_steps": 1_000, "validate_every": 250, "validation_tasks": 100},
}


def images_experiment(
    name: str, summary: str, config: type[Config], presets: Mapping[str, Mapping[str, Any]]
) -> Experiment:
    """Makes an experiment of a configuration class, which chooses data and network.

    Args:
        name: of the experiment in results.
        summary: one sentence, for the first line of a run and of `--help`.
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
        blueprint=make_blueprint,
        modes={"adapt": adapt.adapt_to_images},
        mode_flags={"adapt": adapt.FLAGS},
        mode_settings={"adapt": ("inner_lr",)},
        reads_data=True,
        cpu_threads=1,
        cpu_devices=device_per_core,
    )


EXPERIMENT = images_experiment("images", "few-shot classification of images", Config, PRESETS)
