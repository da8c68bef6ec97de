"""Evaluates each method after 0 to S steps on the same test functions; records fits to draw."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maml_jax import Selection, adapt, adaptation_curve, make_evaluate_fn
from maml_jax.evaluation import Evaluation
from maml_jax.regression import baselines, mean_squared_error, sinusoid
from maml_jax.types import Array, Metrics, Params, Task

from ..core.config import without_swept
from ..core.results import make_row
from ..core.stages import Outcome
from .config import ADAPTED, AVERAGED, Config, make_network

TEST_SEED, VALIDATION_SEED = 1_000_001, 1_000_002  # seeds of training runs are smaller
TUNING_RATES = tuple(float(r) for r in np.logspace(-4, 0, 25))  # baselines' step sizes


def evaluate(config: Config, seed: int, selections: Mapping[str, Selection]) -> Outcome:
    """Adapts the parameters of every method to the same test functions.

    MAML uses its step size of training, each baseline the step size with the least error on
    validation functions. The oracle has amplitude and phase as inputs and is not adapted.
    """
    del seed  # test and validation functions are the same for all seeds
    draw = jax.jit(sinusoid.sample_fixed_tasks, static_argnums=(1, 2))
    tests = draw(jax.random.key(TEST_SEED), config.eval_tasks, max(config.num_shots))
    validation = draw(
        jax.random.key(VALIDATION_SEED), config.validation_tasks, max(config.num_shots)
    )
    few_shot = jax.jit(sinusoid.few_shot_tasks, static_argnums=(1, 2, 3))
    programs = without_swept(config)
    final = {name: final_params(name, selection) for name, selection in selections.items()}
    rows, arrays = [], {"grid": np.asarray(sinusoid.grid_inputs(config.eval_points)[:, 0])}
    for name, params in final.items():
        for shots in config.num_shots:
            setting = f"K={shots}"
            if name == "oracle":
                tasks = few_shot(tests, shots, config.eval_points, True)
                errors = _oracle_fn(programs)(params, tasks).per_task["loss"]
                rows.append(make_row(name, setting, 0, "mse", errors))
                continue
            tasks = few_shot(tests, shots, config.eval_points, False)
            rate = config.inner_lr
            if name not in ADAPTED:
                tuning = few_shot(validation, shots, config.eval_points, False)
                rate = float(_tuning_fn(programs)(params, tuning))
            errors = np.asarray(_curve_fn(programs)(params, tasks, rate).per_task["loss"])
            for step in range(config.eval_steps + 1):
                row = make_row(name, setting, step, "mse", errors[:, step])
                rows.append({**row, "inner_lr": rate})
            arrays[f"errors/{name}/{setting}"] = errors
            task = jax.tree.map(lambda x: x[0], tasks)
            arrays[f"fit/{name}/{setting}"] = np.asarray(_fit_fn(programs)(params, task, rate))
            arrays[f"support/{setting}"] = np.concatenate(
                [np.asarray(x) for x in task.support], axis=1
            )
            arrays["truth"] = np.asarray(task.query.targets[:, 0])
    return Outcome(rows, arrays, params=final)


def final_params(name: str, selection: Selection) -> Params:
    """The parameters of a method before adaptation; averages single-task networks."""
    params = selection.best_params
    return baselines.average_networks(params) if name in AVERAGED else params


def _curve(config: Config) -> Callable[..., Metrics]:
    """Makes `curve(params, task, inner_lr)`: errors [S + 1] of one task, as "loss"."""
    loss_fn = mean_squared_error(make_network(config).apply)
    return functools.partial(adaptation_curve, loss_fn, num_inner_steps=config.eval_steps)


# The programs below compile once for all members of a run, which differ in step sizes only.
@functools.lru_cache(maxsize=1)
def _curve_fn(config: Config) -> Callable[..., Evaluation]:
    """Makes `evaluate(params, tasks, inner_lr)`: errors after 0 to S steps."""
    return make_evaluate_fn(_curve(config))


@functools.lru_cache(maxsize=1)
def _oracle_fn(config: Config) -> Callable[..., Evaluation]:
    """Makes `evaluate(params, tasks)`: errors of a network without adaptation."""
    loss_fn = mean_squared_error(make_network(config, num_inputs=3).apply)
    return make_evaluate_fn(lambda params, task: {"loss": loss_fn(params, task.query)[0]})


@functools.lru_cache(maxsize=1)
def _tuning_fn(config: Config) -> Callable[[Params, Task], Array]:
    """Makes `tune(params, tasks)`: the step size with the least mean error of steps 1 to S."""
    curve = _curve(config)

    @jax.jit
    def tune(params: Params, tasks: Task) -> Array:
        def mean_curve(rate: Array) -> Array:
            return jnp.mean(jax.vmap(lambda task: curve(params, task, rate)["loss"])(tasks), axis=0)

        return baselines.tune_inner_lr(mean_curve, jnp.array(TUNING_RATES))[0]

    return tune


@functools.lru_cache(maxsize=1)
def _fit_fn(config: Config) -> Callable[..., Array]:
    """Makes `fit(params, task, inner_lr)`: predictions [S + 1, grid] of one task."""
    network = make_network(config)
    grid = sinusoid.grid_inputs(config.eval_points)

    @jax.jit
    def fit(params: Params, task: Task, inner_lr: Any) -> Array:
        monitor = lambda p: network.apply(p, grid)[:, 0]  # noqa: E731
        loss_fn = mean_squared_error(network.apply)
        _, recorded = adapt(
            loss_fn, params, task.support, inner_lr, config.eval_steps, monitor=monitor
        )
        return recorded[1]

    return fit
