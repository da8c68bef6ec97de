"""A few-shot experiment, put together for the runner and the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments import few_shot, few_shot_adapt, image_data
from experiments.few_shot_sheet import few_shot_sheet
from experiments.runner import Experiment, Outcome, Stage


def few_shot_experiment(
    name: str, summary: str, config: type, presets: Mapping[str, Mapping[str, Any]]
) -> Experiment:
    """The experiment of a configuration, which says what data and which network it is about.

    Args:
        name: as in `python -m experiments.NAME`.
        summary: a sentence for the first line of a run and of `--help`.
        config: a subclass of `few_shot.Config` with a field `dataset`.
        presets: by name, the fields that differ from the defaults.
    """

    def stages(settings: Any, seed: int) -> list[Stage]:
        return few_shot.make_stages(settings, seed, image_data.load(settings))

    def evaluate(settings: Any, seed: int, states: Mapping[str, Any]) -> Outcome:
        return few_shot.evaluate(settings, seed, image_data.load(settings), states)

    return Experiment(
        name=name,
        summary=summary,
        config=config,
        presets=presets,
        stages=stages,
        evaluate=evaluate,
        figure=few_shot_sheet,
        modes={"adapt": few_shot_adapt.adapt_to_images},
        mode_flags={"adapt": few_shot_adapt.FLAGS},
        cpu_threads=1,
        device_per_core=True,
    )
