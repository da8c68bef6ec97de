"""Returns of a policy on fixed tasks, compiled once for all members and methods that share it."""

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
    """What a figure shows of the test tasks' episodes.

    Attributes:
        num_tasks: the first test tasks, at most.
        monitor: `monitor(trajectories) -> arrays by name`, from the episodes after one update.
    """

    num_tasks: int
    monitor: Callable[[Trajectories], Metrics]


class Returns(NamedTuple):
    """What adaptation achieves on T tasks.

    Attributes:
        returns: mean over the episodes of a task after each update [T, U + 1]; NaN where half of
            them blew up.
        nonfinite: share of the episodes that blew up, after each update [U + 1].
        watched: what the monitor returned, leaves [T, U + 1, ...].
    """

    returns: np.ndarray
    nonfinite: np.ndarray
    watched: dict[str, np.ndarray]


ReturnsFn = Callable[[Params, PyTree, Array, Array], Returns]


def draw_tasks(env: Environment, seed: int, count: int) -> PyTree:
    """Tasks that depend on nothing but a seed of no training run, leading axis T."""
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
        config: of a run; what may be swept does not count, and neither does the training.
        env: the family of tasks.
        watch: what to return of the episodes.
        sees_task: whether the policy sees the task, as the oracle does.
        num_updates: U.
        num_episodes: E, of a task and update.

    Returns:
        `returns(params, tasks, key, rates) -> Returns`, rates of each update [U].
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
