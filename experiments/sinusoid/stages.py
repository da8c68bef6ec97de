"""Builds a training stage for each method."""

from __future__ import annotations

import functools

import jax
import optax

from maml_jax import algorithms, gradient_update
from maml_jax.regression import baselines, sinusoid, sinusoid_problem
from maml_jax.types import Array, Problem

from ..core.stages import Stage
from .config import ADAPTED, AVERAGED, Config, make_network

STEPS_PER_DRAW = 50  # one call of the generator for many small draws is faster


def make_stages(config: Config) -> list[Stage]:
    """Builds the stages, one for each method, in the order of METHODS."""
    return [
        _averaged_stage(config, name) if name in AVERAGED else _stage(config, name)
        for name in config.trained
    ]


def _stage(config: Config, name: str) -> Stage:
    """The stage of MAML, or of a network that learns all tasks at once."""
    problem = make_problem(config, name)
    loss = baselines.multi_task_loss(problem.inner_loss)
    if name in ADAPTED:
        mode = config.mode(name)
        loss = algorithms.maml(problem, config.inner_lr, config.inner_steps, mode=mode).loss
    return Stage(
        name=name,
        init=problem.init,
        sample=problem.sample,
        update=gradient_update(loss, optax.adam(config.meta_lr)),
        num_tasks=config.num_tasks,
        num_meta_steps=config.meta_steps,
        steps_per_call=config.steps_per_call,
        steps_per_draw=STEPS_PER_DRAW,
    )


def make_problem(config: Config, name: str) -> Problem:
    """The problem of a method; the oracle's inputs contain amplitude and phase."""
    oracle = name == "oracle"
    network = make_network(config, num_inputs=3 if oracle else 1)
    return sinusoid_problem(network, config.train_shots, config.train_queries, informed=oracle)


def _averaged_stage(config: Config, name: str) -> Stage:
    """The stage of many single-task networks, which train together as one task."""
    network = make_network(config)
    coefficient = config.l2_coefficient if name == "averaged_l2" else config.to_mean_coefficient
    loss = baselines.single_task_loss(network, AVERAGED[name], coefficient)

    def functions(key: Array) -> tuple[sinusoid.Sinusoid]:
        """The function that each network learns."""
        keys = jax.random.split(jax.random.fold_in(key, 1), config.num_networks)
        return (jax.vmap(sinusoid.sample_sinusoid)(keys),)

    return Stage(
        name=name,
        init=functools.partial(baselines.init_many, network, num_networks=config.num_networks),
        sample=baselines.sample_single_task_batches(config.network_points),
        update=gradient_update(loss, optax.adam(config.meta_lr)),
        num_tasks=1,
        num_meta_steps=config.network_steps,
        steps_per_call=max(1, config.steps_per_call // 5),  # a step of all networks is slow
        member_data=functions,
        shown=("mse",),
    )
