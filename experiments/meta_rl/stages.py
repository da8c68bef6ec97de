"""Stages of meta-training: one for each method, scored by its return on validation tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maml_jax.kernels.preferences import preferred
from maml_jax.reinforcement import Environment, check_episodes
from maml_jax.types import Params

from ..core.stages import Stage
from .config import ADAPTED, Config, make_meta_update, make_problem
from .returns import ReturnsFn, Watch, draw_tasks, make_returns_fn

VALIDATION_SEED = 1_000_002  # seeds of training runs are smaller


def make_stages(config: Config, env: Environment, watch: Watch) -> list[Stage]:
    """Makes a stage for each trained method."""
    return [_stage(config, env, watch, name) for name in config.trained if name != "random"]


def _stage(config: Config, env: Environment, watch: Watch, name: str) -> Stage:
    problem = make_problem(config, env, name)
    return Stage(
        name=name,
        init=problem.init,
        sample=problem.sample,
        update=make_meta_update(config, problem),
        num_tasks=config.num_tasks,
        num_meta_steps=config.meta_steps,
        steps_per_call=config.steps_per_call,
        score=_score(config, env, watch, name),
        score_name="return",
        validate_every=config.validate_every,
        one_by_one=preferred("members") == "scan",
        shown=("before/return", "after/return"),
        check=check_episodes,
    )


def _score(
    config: Config, env: Environment, watch: Watch, name: str
) -> Callable[[Params], np.ndarray]:
    """Makes the score: the return on validation tasks, adapted as in training."""
    num_updates = config.inner_steps if name in ADAPTED else 0

    def score(params: Params) -> Any:
        returns: ReturnsFn = make_returns_fn(
            config, env, watch, name == "oracle", num_updates, config.num_episodes
        )
        tasks = draw_tasks(env, VALIDATION_SEED, config.validation_tasks)
        key = jax.random.key(VALIDATION_SEED + 1)
        rates = jnp.full((num_updates,), config.inner_lr)
        return np.mean(returns(params, tasks, key, rates).returns[:, -1])

    return score
