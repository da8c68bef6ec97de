"""Evaluates each method on test episodes, in each protocol; records one episode for the figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from maml_jax import adapt
from maml_jax.classification import baselines, cross_entropy, with_support_images
from maml_jax.fitting import Selection
from maml_jax.types import Array, Params, Task

from ..core.results import make_row
from ..core.stages import Outcome
from . import accuracy, data
from .config import Config
from .model import num_training_classes
from .network import make_network

TEST_SEED = 1_000_001  # seeds of training runs are smaller
TUNING_RATES = tuple(float(r) for r in np.logspace(-3, 1, 9))  # step sizes of fine-tuning
STAGES = {  # the stage of a method, where their names differ
    "fine-tuning": "pretrained",
    "nearest neighbour": "pretrained",
    "matching nets": "matching",
}
PROTOCOL_NOTES = {
    "transductive": "",
    "support_statistics": ", support statistics",
    "one_query": ", one query at a time",
}


def evaluate(config: Config, seed: int, selections: Mapping[str, Selection]) -> Outcome:
    """Measures each method's accuracy on the same test episodes, in each protocol."""
    images = data.load(config)
    methods = _methods(config, seed, selections)
    chosen = {
        name: {"best_step": int(s.best_step), "validation_accuracy": float(s.best_score)}
        for name, s in selections.items()
        if images.validation is not None
    }
    rows, arrays = [], {}
    for queries in dict.fromkeys(q or config.num_shots for q in config.eval_queries):
        tasks = accuracy.episodes(config, queries, TEST_SEED, images.test, config.eval_tasks)
        for protocol in config.protocols:
            setting = setting_of(config, queries, protocol)
            for name, accuracies in methods.items():
                by_step, extra = accuracies(tasks, protocol)
                for step, values in by_step.items():
                    row = make_row(name, setting, step, "accuracy", values)
                    rows.append({**row, **extra, **chosen.get(STAGES.get(name, name), {})})
                arrays[f"accuracy/{name}/{setting}"] = np.stack(list(by_step.values()))
            if "episode/support" not in arrays and config.maml_name in selections:
                arrays |= _episode(config, selections[config.maml_name].best_params, tasks)
    for name, selection in selections.items():
        arrays[f"best_step/{name}"] = np.asarray(selection.best_step)
    return Outcome(rows, arrays, images.classes)


def setting_of(config: Config, queries: int, protocol: str) -> str:
    """Names the measurement in results; departures from the paper become part of the name."""
    note = "" if queries == config.num_shots else f", {queries} queries"
    return config.setting + note + PROTOCOL_NOTES[protocol]


def _episode(config: Config, params: Params, tasks: Task) -> dict[str, np.ndarray]:
    """The first test episode with the adapted model's answers, for the figure."""
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


Accuracies = Callable[[Task, str], tuple[dict[int | None, np.ndarray], dict[str, Any]]]


def _methods(
    config: Config, seed: int, selections: Mapping[str, Selection]
) -> dict[str, Accuracies]:
    """By method, a function from test tasks and protocol to accuracies [T] by gradient step."""
    methods: dict[str, Accuracies] = {}
    if config.maml_name in selections:
        params = selections[config.maml_name].best_params
        methods[config.maml_name] = _adapting(config, params, config.inner_lr)
    if "pretrained" in selections:
        trunk = selections["pretrained"].best_params
        if "pretrained" in config.methods:
            started = baselines.with_new_head(trunk, config.num_ways)
            methods["fine-tuning"] = _fine_tuning(config, started)
        if "nearest_neighbour" in config.methods:
            num_classes = num_training_classes(config, data.load(config).classes)
            methods["nearest neighbour"] = _not_adapting(
                config, "nearest_neighbour", num_classes, trunk
            )
    if "random" in config.methods:
        init_key = jax.random.fold_in(jax.random.key(seed), 3)
        methods["random"] = _fine_tuning(config, jax.jit(make_network(config).init)(init_key))
    if "matching" in selections:
        params = selections["matching"].best_params
        methods["matching nets"] = _not_adapting(config, "matching", config.num_ways, params)
    return methods


def _adapting(config: Config, params: Params, rate: Any) -> Accuracies:
    """Accuracies of a method that takes gradient steps on the support set."""

    def accuracies(tasks: Task, protocol: str) -> Any:
        one = protocol == "one_query"  # slow: a forward pass for each query image
        last = config.report_steps if one else config.eval_steps
        evaluate_fn = accuracy.adapting(config.shared, last, protocol, last_only=one)
        per_task = evaluate_fn(params, with_support_images(tasks), rate).per_task["accuracy"]
        steps = [last] if one else range(last + 1)
        return dict(zip(steps, np.asarray(per_task).T, strict=True)), {"inner_lr": rate}

    return accuracies


def _fine_tuning(config: Config, params: Params) -> Accuracies:
    """Accuracies of fine-tuning, with the step size that is best on validation episodes."""
    # `make_stages` has checked that validation classes exist.
    tasks = with_support_images(
        accuracy.validation_episodes(config.shared, accuracy.TUNING_SEED, accuracy.TUNING_TASKS)
    )
    evaluate_fn = accuracy.adapting(config.shared, config.eval_steps)
    curves = [evaluate_fn(params, tasks, rate).mean["accuracy"] for rate in TUNING_RATES]
    best = int(np.argmax([np.mean(curve[1:]) for curve in curves]))
    return _adapting(config, params, TUNING_RATES[best])


def _not_adapting(config: Config, method: str, num_outputs: int, params: Params) -> Accuracies:
    """Accuracies of a method without gradient steps."""

    def accuracies(tasks: Task, protocol: str) -> Any:
        evaluate_fn = accuracy.not_adapting(config.shared, method, num_outputs, protocol)
        return {None: np.asarray(evaluate_fn(params, tasks).per_task["accuracy"])}, {}

    return accuracies
