"""Meta-reinforcement learning: what the experiments on navigation and locomotion share.

A run trains the methods that it is asked for, keeps of each the parameters that do best on
validation tasks, and evaluates those on test tasks, after 0 to U updates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from maml_jax.fitting import Selection
from maml_jax.reinforcement import Environment

from ..core.config import ConfigError
from ..core.process import device_per_core
from ..core.stages import Blueprint, Experiment, Outcome, Stage
from . import evaluation
from .config import ADAPTED, METHODS, Config, make_problem
from .returns import Watch
from .stages import make_stages


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
        make_environment: `make_environment(settings) -> Environment`, one object for settings that
            differ in nothing that it is made of.
        setting: `setting(settings)`, as results name it.
        watch: `watch(settings)`, what the figure needs of the episodes.
        figure: draws `figure.png`, see `experiments.core.stages.Experiment`.
        **others: of `Experiment`, as they are.
    """

    def stages(settings: Any) -> list[Stage]:
        return make_stages(settings, make_environment(settings), watch(settings))

    def evaluate(settings: Any, seed: int, selections: Mapping[str, Selection]) -> Outcome:
        env = make_environment(settings)
        return evaluation.evaluate(
            settings, seed, env, setting(settings), watch(settings), selections
        )

    def blueprint(settings: Any, method: str, classes: tuple[str, ...]) -> Blueprint:
        del classes
        description = {"tasks": setting(settings)}
        return make_blueprint(settings, make_environment(settings), method, description)

    return Experiment(
        name=name,
        summary=summary,
        config=config,
        presets=presets,
        stages=stages,
        evaluate=evaluate,
        figure=figure,
        blueprint=blueprint,
        cpu_threads=1,
        cpu_devices=device_per_core,
        **others,
    )


def make_blueprint(
    config: Config, env: Environment, method: str, description: Mapping[str, Any]
) -> Blueprint:
    """The blueprint of a stage's parameters: the policy, and its inner loop on episodes.

    Args:
        config: of the run.
        env: of the run.
        method: name of the stage.
        description: of the tasks, as JSON.

    Raises:
        ConfigError: no such method, or a policy that does not fit the environment.
    """
    if method not in METHODS:
        raise ConfigError(f"the method must be one of {', '.join(METHODS)}; received {method!r}.")
    problem, adapts = make_problem(config, env, method), method in ADAPTED
    recurrent = config.policy == "recurrent"
    network = {
        "kind": f"{'recurrent' if recurrent else 'fully connected'} Gaussian policy",
        **({"num_units": config.num_units} if recurrent else {}),
        **({} if recurrent else {"hidden_sizes": list(config.hidden_sizes)}),
        "num_observations": problem.env.num_observations,
        "num_actions": problem.env.num_actions,
    }
    return Blueprint(
        problem.policy,
        {"network": network, **description},
        problem=problem,
        inner_lr=config.inner_lr if adapts else None,
        num_inner_steps=config.inner_steps if adapts else None,
        inner={"batch_per_step": True},
    )


__all__ = ["Config", "Watch", "meta_rl_experiment"]
