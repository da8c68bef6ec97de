"""Accuracy of classifiers on episodes, by compiled programs that members and methods share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from maml_jax import adaptation_curve, make_evaluate_fn
from maml_jax.classification import (
    baselines,
    cross_entropy,
    draw_episodes,
    episode_sampler,
    query_loss,
)
from maml_jax.evaluation import Evaluation
from maml_jax.types import Metrics, Params, Task

from . import data
from .config import Config
from .network import make_network

VALIDATION_SEED, TUNING_SEED = 1_000_002, 1_000_003  # seeds of training runs are smaller
TUNING_TASKS = 100


@functools.lru_cache(maxsize=8)
def adapting(
    config: Config, num_inner_steps: int, protocol: str = "transductive", last_only: bool = False
) -> Callable[..., Evaluation]:
    """Makes `evaluate(params, tasks, inner_lr)`: accuracy after 0 to S gradient steps.

    Tasks come from `with_support_images`.

    Args:
        config: a `Config.shared`, so that members share the program.
        num_inner_steps: S.
        protocol: source of the query images' batch statistics, one of `PROTOCOLS`.
        last_only: whether to evaluate after step S only.
    """
    network = make_network(config)
    curve = functools.partial(
        adaptation_curve,
        cross_entropy(network.apply),
        num_inner_steps=num_inner_steps,
        outer_loss=query_loss(network.apply, protocol),
        mask=network.mask,
        last_only=last_only,
    )
    return make_evaluate_fn(curve, batching=config.batching)


@functools.lru_cache(maxsize=8)
def not_adapting(
    config: Config, method: str, num_outputs: int, protocol: str = "transductive"
) -> Callable[..., Evaluation]:
    """Makes `evaluate(params, tasks)`: accuracy of a method without gradient steps.

    Args:
        config: a `Config.shared`, so that members share the program.
        method: `"matching"` or `"nearest_neighbour"`.
        num_outputs: of the network.
        protocol: as in `adapting`.
    """
    network = make_network(config, num_outputs)
    matching = baselines.matching_loss(network.apply, config.num_ways, protocol)

    def metrics(params: Params, task: Task) -> Metrics:
        if method == "matching":
            return {"accuracy": matching(params, task)[1]["query"]["accuracy"]}
        return {
            "accuracy": baselines.nearest_neighbour_accuracy(network.apply, protocol, params, task)
        }

    return make_evaluate_fn(metrics, batching=config.batching)


@functools.lru_cache(maxsize=2)
def validation_episodes(
    config: Config, seed: int = VALIDATION_SEED, num_tasks: int | None = None
) -> Task:
    """Draws episodes of the validation classes, with K queries a class.

    Args:
        config: a `Config.shared` whose data has validation classes.
        seed: of the draw.
        num_tasks: T; default `config.validation_tasks`.
    """
    count = config.validation_tasks if num_tasks is None else num_tasks
    image_set: Any = data.load(config).validation
    return episodes(config, config.num_shots, seed, image_set, count)


def episodes(config: Config, num_queries: int, seed: int, image_set: Any, count: int) -> Task:
    """Draws `count` episodes from a set of images; the seed determines them."""
    sampler = episode_sampler(config.num_ways, config.num_shots, num_queries, config.rotations)
    draw = jax.jit(functools.partial(draw_episodes, sampler), static_argnums=2)
    return draw(jax.random.key(seed), image_set, count)
