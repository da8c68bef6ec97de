"""Builds a training stage for each method.

A stage selects the parameters with the best accuracy on validation episodes.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from maml_jax.algorithms import maml
from maml_jax.batching import resolve_batching
from maml_jax.classification import (
    CLASS_SPECS,
    ImageSet,
    baselines,
    classification_problem,
    episode_sampler,
    split_classes,
    with_support_images,
)
from maml_jax.kernels.preferences import preferred
from maml_jax.memory import advise
from maml_jax.mesh import TASK_AXIS, place
from maml_jax.types import Array, MetaLearner, Params, Task, TaskLoss
from maml_jax.updates import gradient_update

from ..core import process
from ..core.config import ConfigError
from ..core.logbook import say
from ..core.stages import Stage
from . import accuracy, data
from .config import Config
from .data import Images
from .model import num_training_classes
from .network import make_network

FLAGS = {"mode": "meta_gradient", "batching": "set=task_batching"}  # by library argument


def make_stages(config: Config) -> list[Stage]:
    """Builds the stages, one for each trained method.

    Raises:
        ConfigError: the data is missing or unusable, or has no validation classes for a method that
            needs them.
    """
    images = data.load(config)
    tuned = [m for m in ("pretrained", "random") if m in config.methods]
    if tuned and images.validation is None:
        raise ConfigError(
            f"--methods={','.join(tuned)}: fine-tuning selects its step size on validation "
            "classes, and this splitting has none."
        )
    stages = []
    if "maml" in config.methods:
        stages.append(_maml_stage(config, images))
    if config.plain_methods:
        stages.append(_pretraining_stage(config, images))
    if "matching" in config.methods:
        stages.append(_matching_stage(config, images))
    return stages


def _maml_stage(config: Config, images: Images) -> Stage:
    network = make_network(config)
    problem = classification_problem(network, *config.episode_sizes, config.rotations)

    def learner(mode: str) -> MetaLearner:
        return maml(problem, config.inner_lr, config.inner_steps, mask=network.mask, mode=mode)

    def score(params: Params) -> Array:
        evaluate = accuracy.adapting(config.shared, config.report_steps)
        episodes = with_support_images(accuracy.validation_episodes(config.shared))
        return evaluate(params, episodes, config.inner_lr).mean["accuracy"][-1]

    def advise_on_memory(mesh: Mesh) -> None:
        params = jax.eval_shape(network.init, jax.random.key(0))
        task = jax.eval_shape(problem.sample, params, jax.random.key(0), images.train)
        warn_if_too_large(config, lambda mode: learner(mode).loss, params, task, mesh)

    return _stage(
        config,
        images,
        name=config.maml_name,
        init=network.init,
        sample=_sampler(config, images),
        loss=learner(config.mode).loss,
        optimizer=_optimizer(config),
        score=score,
        before_training=advise_on_memory,
    )


def _matching_stage(config: Config, images: Images) -> Stage:
    network = make_network(config)

    def score(params: Params) -> Array:
        evaluate = accuracy.not_adapting(config.shared, "matching", config.num_ways)
        return evaluate(params, accuracy.validation_episodes(config.shared)).mean["accuracy"]

    return _stage(
        config,
        images,
        name="matching",
        init=network.init,
        sample=_sampler(config, images),
        loss=baselines.matching_loss(network.apply, config.num_ways),
        optimizer=_optimizer(config),
        score=score,
    )


def _pretraining_stage(config: Config, images: Images) -> Stage:
    num_classes = num_training_classes(config, images.classes)
    network = make_network(config, num_classes)
    rotations = "classes" if config.rotations != "none" else "none"

    def score(params: Params) -> Array:
        evaluate = accuracy.not_adapting(config.shared, "nearest_neighbour", num_classes)
        return evaluate(params, accuracy.validation_episodes(config.shared)).mean["accuracy"]

    return _stage(
        config,
        images,
        name="pretrained",
        init=network.init,
        sample=baselines.class_batches(config.pretrain_images, rotations),
        loss=baselines.pretraining_loss(network.apply),
        optimizer=optax.adam(config.meta_lr),
        score=score,
        num_tasks=1,
        num_meta_steps=config.pretrain_steps,
    )


def _sampler(config: Config, images: Images) -> Callable[..., Task]:
    axis = TASK_AXIS if images.spread else None
    return episode_sampler(*config.episode_sizes, config.rotations, axis)


def _optimizer(config: Config) -> optax.GradientTransformation:
    adam = optax.adam(config.meta_lr)
    return optax.chain(optax.clip(config.clip), adam) if config.clip else adam


def _stage(
    config: Config,
    images: Images,
    *,
    name: str,
    init: Callable[[Array], Params],
    sample: Callable[..., Task],
    loss: TaskLoss,
    optimizer: optax.GradientTransformation,
    score: Callable[[Params], Array],
    num_tasks: int | None = None,
    num_meta_steps: int | None = None,
    before_training: Callable[[Mesh], None] | None = None,
) -> Stage:
    """A stage on the training images; by default with the episodes of the configuration."""
    specs = (CLASS_SPECS,) if images.spread else PartitionSpec()

    def train_set(mesh: Mesh) -> tuple[Any, ...]:
        parts = mesh.shape[TASK_AXIS] if images.spread else 1
        _say_memory(images.train, mesh.size, parts)
        whole = split_classes(images.train, parts) if images.spread else images.train
        return place((whole,), mesh, specs)

    validated = images.validation is not None
    return Stage(
        name=name,
        init=jax.jit(init),
        sample=sample,
        update=gradient_update(loss, optimizer, batching=config.batching),
        num_tasks=num_tasks or config.num_tasks,
        num_meta_steps=num_meta_steps or config.meta_steps,
        steps_per_call=config.steps_per_call,
        data=train_set,
        data_specs=specs,
        score=score if validated else None,
        validate_every=config.validate_every,
        one_by_one=preferred("members") == "scan",
        shown=("loss", "query/accuracy"),
        before_training=before_training,
        prepare=functools.partial(accuracy.validation_episodes, config.shared)
        if validated
        else None,
    )


def _say_memory(images: ImageSet, num_devices: int, parts: int) -> None:
    """Prints the memory of the training images on each device."""
    each = np.asarray(images.images).nbytes / 1e6 / parts
    how = "classes spread over the devices" if parts > 1 else "whole"
    say(f"  training images: {each:,.0f} MB on each of {num_devices} device(s), {how}")


def warn_if_too_large(
    config: Config,
    loss_of_mode: Callable[[str], TaskLoss],
    params: Params,
    task: Task,
    mesh: Mesh,
) -> None:
    """Warns on stderr if the meta-gradient exceeds the memory, and names the flag that helps."""
    available = process.available_memory()
    if available is None:
        return
    if mesh.devices.flat[0].platform == "cpu":  # CPU devices share one memory
        available //= len(mesh.local_devices)
    chunk = resolve_batching(config.batching, config.num_tasks // mesh.shape[TASK_AXIS])
    advice = advise(
        loss_of_mode,
        params,
        task,
        mode=config.mode,
        tasks_at_once=chunk,
        available=available,
    )
    if not advice.fits:
        sentence = advice.sentence(lambda name, value: f"--{FLAGS[name]}={value}")
        print(
            f"warning: the meta-gradient of {chunk} task{'s' * (chunk > 1)} at once needs "
            f"{advice.needed / 1e6:,.0f} MB on each device, and {available / 1e6:,.0f} MB are "
            f"left. {sentence}",
            file=sys.stderr,
        )
