"""Returns of a policy on fixed tasks; members and methods share the compiled program."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from maml_jax import PerStep, make_evaluate_fn
from maml_jax.reinforcement import (
    Environment,
    Trajectories,
    adaptation_returns,
    sound_returns,
)
from maml_jax.types import Array, Metrics, Params, PyTree

from ..core.config import without_swept
from .config import Config, make_problem


class Watch(NamedTuple):
    """Data of the test tasks' episodes for a figure.

    Attributes:
        num_tasks: number of test tasks to record, from the first.
        monitor: `monitor(trajectories) -> arrays by name`, for the episodes of one task after one
            number of gradient steps.
    """

    num_tasks: int
    monitor: Callable[[Trajectories], Metrics]


class Returns(NamedTuple):
    """Returns on T tasks after 0 to U gradient steps.

    Attributes:
        returns: means over the episodes of a task [T, U + 1]; NaN where half of them became
            non-finite.
        nonfinite: share of non-finite episodes [U + 1].
        watched: outputs of the monitor, leaves [T, U + 1, ...].
    """

    returns: np.ndarray
    nonfinite: np.ndarray
    watched: dict[str, np.ndarray]


ReturnsFn = Callable[[Params, PyTree, Array, Array], Returns]


def draw_tasks(env: Environment, seed: int, count: int) -> PyTree:
    """Draws tasks [T] from a seed that no training run has."""
    return jax.jit(jax.vmap(env.sample_task))(jax.random.split(jax.random.key(seed), count))


def make_returns_fn(
    config: Config,
    env: Environment,
    watch: Watch,
    sees_task: bool,
    num_updates: int,
    num_episodes: int,
) -> ReturnsFn:
    """Compiles the evaluation of policies.

    Args:
        config: of a run; swept and training settings do not matter.
        env: the family of tasks.
        watch: the data to record.
        sees_task: whether the policy observes the task, as the oracle does.
        num_updates: U, gradient steps.
        num_episodes: E, of a task and gradient step.

    Returns:
        `returns(params, tasks, key, rates) -> Returns`; rates [U] are step sizes.
    """
    training = {"meta_steps": 1, "num_tasks": 1, "num_episodes": num_episodes, "inner_steps": 1}
    same = dataclasses.replace(without_swept(config), **training)
    evaluate = _evaluate_fn(same, env, watch.monitor, sees_task, num_updates)

    def returns(params: Params, tasks: PyTree, key: Array, rates: Array) -> Returns:
        keys = jax.random.split(key, jax.tree.leaves(tasks)[0].shape[0])
        per_task = evaluate(params, (tasks, keys), PerStep(rates)).per_task
        watched = {
            k: np.asarray(v) for k, v in per_task.items() if k not in ("return", "nonfinite")
        }
        share = np.mean(np.asarray(per_task["nonfinite"]), axis=0)
        return Returns(np.asarray(sound_returns(per_task)), share, watched)

    return returns


@functools.lru_cache(maxsize=16)
def _evaluate_fn(
    config: Config,
    env: Environment,
    monitor: Callable[[Trajectories], Metrics],
    sees_task: bool,
    num_updates: int,
) -> Any:
    problem = make_problem(config, env, "oracle" if sees_task else "maml")
    return make_evaluate_fn(
        functools.partial(adaptation_returns, problem, num_updates=num_updates, monitor=monitor)
    )
