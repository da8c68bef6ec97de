"""Meta-reinforcement learning: what the experiments on navigation and locomotion share.

A run trains the methods that it is asked for, keeps of each the parameters that do best on
validation tasks, and judges those on test tasks, after 0 to U updates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from experiments.core.process import device_per_core
from experiments.core.runner import Experiment, Outcome, Stage
from experiments.meta_rl import evaluation
from experiments.meta_rl.config import Config
from experiments.meta_rl.evaluation import Watch
from experiments.meta_rl.stages import make_stages
from maml_jax.reinforcement import Environment


def meta_rl_experiment(
    name: str,
    summary: str,
    config: type,
    presets: Mapping[str, Mapping[str, Any]],
    make_environment: Callable[[Any], Environment],
    setting: Callable[[Any], str],
    watch: Callable[[Any], Watch],
    figure: Callable[..., None],
    **others: Any,
) -> Experiment:
    """The experiment of a configuration, which says what environment it is about.

    Args:
        name: as in `python -m experiments.NAME`.
        summary: a sentence for the first line of a run and of `--help`.
        config: a subclass of `Config`.
        presets: by name, the fields that differ from the defaults.
        make_environment: `make_environment(settings) -> Environment`.
        setting: `setting(settings)`, as results name it.
        watch: `watch(settings)`, which episodes the figure needs.
        figure: draws `figure.png`, see `experiments.core.runner.Experiment`.
        **others: of `Experiment`, as they are.
    """

    def stages(settings: Any, seed: int) -> list[Stage]:
        return make_stages(settings, seed, make_environment(settings))

    def evaluate(settings: Any, seed: int, states: Mapping[str, Any]) -> Outcome:
        env = make_environment(settings)
        return evaluation.evaluate(settings, seed, env, setting(settings), watch(settings), states)

    return Experiment(
        name=name,
        summary=summary,
        config=config,
        presets=presets,
        stages=stages,
        evaluate=evaluate,
        figure=figure,
        cpu_threads=1,
        cpu_devices=device_per_core,
        **others,
    )


__all__ = ["Config", "Watch", "meta_rl_experiment"]
