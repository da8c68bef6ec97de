"""Few-shot image classification: what the experiments on Omniglot and MiniImagenet share.

A run trains the methods that it is asked for, keeps of each the parameters that do best on
validation episodes, and judges those on test episodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.core.process import device_per_core
from experiments.core.runner import Experiment, Outcome, Stage
from experiments.few_shot import adapt, data, evaluation
from experiments.few_shot.config import Config
from experiments.few_shot.sheet import few_shot_sheet
from experiments.few_shot.stages import make_stages


def few_shot_experiment(
    name: str, summary: str, config: type, presets: Mapping[str, Mapping[str, Any]]
) -> Experiment:
    """The experiment of a configuration, which says what data and which network it is about.

    Args:
        name: as in `python -m experiments.NAME`.
        summary: a sentence for the first line of a run and of `--help`.
        config: a subclass of `Config` with a field `dataset`.
        presets: by name, the fields that differ from the defaults.
    """

    def stages(settings: Any, seed: int) -> list[Stage]:
        return make_stages(settings, seed, data.load(settings))

    def evaluate(settings: Any, seed: int, states: Mapping[str, Any]) -> Outcome:
        return evaluation.evaluate(settings, seed, data.load(settings), states)

    return Experiment(
        name=name,
        summary=summary,
        config=config,
        presets=presets,
        stages=stages,
        evaluate=evaluate,
        figure=few_shot_sheet,
        modes={"adapt": adapt.adapt_to_images},
        mode_flags={"adapt": adapt.FLAGS},
        cpu_threads=1,
        cpu_devices=device_per_core,
    )


__all__ = ["Config", "few_shot_experiment"]
