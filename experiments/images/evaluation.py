"""Accuracy of each method on test episodes, in each protocol, and an episode to look at."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from experiments.core.results import make_row
from experiments.core.runner import Outcome
from experiments.core.selection import Selection
from experiments.few_shot.config import Config, make_network
from experiments.few_shot.data import Images
from experiments.few_shot.stages import (
    matching_accuracy,
    pretrained_network,
    validation_episodes,
)
from maml_jax import adapt, make_evaluate_fn
from maml_jax.batching import map_tasks
from maml_jax.classification import (
    baselines,
    cross_entropy,
    draw_episodes,
    episode_sampler,
    judge,
    judged,
)
from maml_jax.evaluation import Evaluation
from maml_jax.types import Array, Params, Task

TEST_SEED, TUNING_SEED = 1_000_001, 1_000_003  # of no training run: those are smaller
TUNING_TASKS = 100
TUNING_RATES = tuple(float(r) for r in np.logspace(-3, 1, 9))  # for fine-tuning baselines
STAGES = {  # whose checkpoint a method takes, where it is named otherwise
    "fine-tuning": "pretrained",
    "nearest neighbour": "pretrained",
    "matching nets": "matching",
}
PROTOCOL_NOTES = {
    "transductive": "",
    "support_statistics": ", support statistics",
    "one_query": ", one query at a time",
}


def evaluate(config: Config, seed: int, images: Images, states: Mapping[str, Selection]) -> Outcome:
    """Accuracy of each method on the same test episodes, in every protocol asked for."""
    judges = _judges(config, seed, images, states)
    chosen = {
        name: {"best_step": int(s.best_step), "validation_accuracy": float(s.best_score)}
        for name, s in states.items()
        if images.validation is not None
    }
    rows, arrays = [], {}
    for queries in dict.fromkeys(q or config.num_shots for q in config.eval_queries):
        sampler = episode_sampler(config.num_ways, config.num_shots, queries, config.rotations)
        draw = jax.jit(functools.partial(draw_episodes, sampler), static_argnums=2)
        tasks = draw(jax.random.key(TEST_SEED), images.test, config.eval_tasks)
        for protocol in config.protocols:
            note = "" if queries == config.num_shots else f", {queries} queries"
            setting = config.setting + note + PROTOCOL_NOTES[protocol]
            for name, accuracies in judges.items():
                found, extra = accuracies(tasks, protocol)
                for step, values in found.items():
                    row = make_row(name, setting, step, "accuracy", values)
                    rows.append({**row, **extra, **chosen.get(STAGES.get(name, name), {})})
                arrays[f"accuracy/{name}/{setting}"] = np.stack(list(found.values()))
            if "episode/support" not in arrays and config.maml_name in states:
                arrays |= _episode(config, states[config.maml_name].best_params, tasks)
    for name, selection in states.items():
        arrays[f"best_step/{name}"] = np.asarray(selection.best_step)
    return Outcome(rows, arrays)


def _episode(config: Config, params: Params, tasks: Task) -> dict[str, np.ndarray]:
    """The first test episode and what the adapted model says, for the figure."""
    network = make_network(config)
    support, query = jax.tree.map(lambda x: x[0], tasks)

    @jax.jit
    def answer(params: Params) -> Array:
        adapted, _ = adapt(
            cross_entropy(network.apply),
            params,
            support,
            config.inner_lr,
            config.report_steps,
            mask=network.mask,
        )
        return jax.nn.softmax(network.apply(adapted, query.images))

    def pixels(images: Array) -> np.ndarray:
        return np.rint(np.asarray(images) * 255).astype(np.uint8)

    return {
        "episode/support": pixels(support.images),
        "episode/support_labels": np.asarray(support.labels),
        "episode/query": pixels(query.images),
        "episode/query_labels": np.asarray(query.labels),
        "episode/probabilities": np.asarray(answer(params)),
    }


Judge = Callable[[Task, str], tuple[dict[int | None, np.ndarray], dict[str, Any]]]


def _judges(
    config: Config, seed: int, images: Images, states: Mapping[str, Selection]
) -> dict[str, Judge]:
    """For each method a function of test tasks and protocol to accuracies [T] by gradient step."""
    judges: dict[str, Judge] = {}
    network = make_network(config)
    if config.maml_name in states:
        params = states[config.maml_name].best_params
        judges[config.maml_name] = _adapting(config, params, config.inner_lr)
    if "pretrained" in states:
        trunk = states["pretrained"].best_params
        wide = pretrained_network(config, images)
        if "pretrained" in config.methods:
            started = baselines.with_new_head(trunk, config.num_ways)
            judges["fine-tuning"] = _fine_tuning(config, images, started)
        if "nearest_neighbour" in config.methods:
            judges["nearest neighbour"] = _not_adapting(
                config,
                trunk,
                functools.partial(baselines.nearest_neighbour_accuracy, wide.apply),
            )
    if "random" in config.methods:
        untrained = jax.jit(network.init)(jax.random.fold_in(jax.random.key(seed), 3))
        judges["random"] = _fine_tuning(config, images, untrained)
    if "matching" in states:
        judges["matching nets"] = _not_adapting(
            config,
            states["matching"].best_params,
            lambda protocol, p, task: matching_accuracy(config, network, protocol)(p, task),
        )
    return judges


@functools.lru_cache(maxsize=len(PROTOCOL_NOTES))
def _adapting_fn(config: Config, protocol: str) -> Callable[..., Evaluation]:
    """Judges after gradient steps; one program for all methods and runs that share the settings."""
    network = make_network(config)
    return make_evaluate_fn(
        cross_entropy(network.apply),
        config.report_steps if protocol == "one_query" else config.eval_steps,
        outer_loss=judge(network.apply, protocol),
        mask=network.mask,
        last_only=protocol == "one_query",  # a forward pass for each query image
        batching=config.batching,
    )


def _adapting(config: Config, params: Params, rate: float) -> Judge:
    """Judges a method that takes gradient steps on the support set."""

    def accuracies(tasks: Task, protocol: str) -> Any:
        evaluate_fn = _adapting_fn(config.shared, protocol)
        found = np.asarray(evaluate_fn(params, judged(tasks), rate).per_task["accuracy"])
        steps = [config.report_steps] if protocol == "one_query" else range(config.eval_steps + 1)
        return dict(zip(steps, found.T, strict=True)), {"inner_lr": rate}

    return accuracies


@functools.lru_cache(maxsize=1)
def _tuning_fn(config: Config) -> Callable[..., Evaluation]:
    """Judges fine-tuning on validation episodes; one program for all starting points."""
    network = make_network(config)
    return make_evaluate_fn(
        cross_entropy(network.apply),
        config.eval_steps,
        mask=network.mask,
        batching=config.batching,
    )


def _fine_tuning(config: Config, images: Images, params: Params) -> Judge:
    """Judges fine-tuning with the step size that does best on validation episodes."""
    # `make_stages` has seen to it that there are validation classes.
    episodes: Any = validation_episodes(config, images, TUNING_SEED, num_tasks=TUNING_TASKS)
    evaluate_fn = _tuning_fn(config.shared)
    curves = [evaluate_fn(params, episodes, r).mean["accuracy"] for r in TUNING_RATES]
    best = int(np.argmax([np.mean(curve[1:]) for curve in curves]))
    return _adapting(config, params, TUNING_RATES[best])


def _not_adapting(
    config: Config, params: Params, accuracy: Callable[[str, Params, Task], Array]
) -> Judge:
    """Judges a method that takes no gradient steps."""

    @functools.cache
    def compiled(protocol: str) -> Any:
        def every(p: Params, tasks: Task) -> Array:
            return map_tasks(lambda task: accuracy(protocol, p, task), tasks, config.batching)

        return jax.jit(every)

    return lambda tasks, protocol: ({None: np.asarray(compiled(protocol)(params, tasks))}, {})
