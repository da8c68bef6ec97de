"""What is meta-trained: a stage for each method, which validates now and then.

A stage keeps the parameters that do best on validation episodes; those are judged on test episodes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from experiments.core.config import ConfigError
from experiments.core.logbook import say
from experiments.core.runner import Advance, Stage
from experiments.core.selection import Selection, ValidatedStage, begin, validate
from experiments.few_shot import memory
from experiments.few_shot.config import Config, make_network
from experiments.few_shot.data import Images
from maml_jax import init, make_evaluate_fn, make_train_fn, meta_loss, task_mesh
from maml_jax.batching import TASK_AXIS, bring_home, map_tasks, place
from maml_jax.classification import (
    ImageSet,
    baselines,
    classification_problem,
    cross_entropy,
    draw_episodes,
    episode_sampler,
)
from maml_jax.classification.episodes import CLASS_SPECS, split_classes
from maml_jax.evaluation import Evaluation
from maml_jax.networks import ImageNetwork
from maml_jax.training import TrainFn
from maml_jax.types import Array, Params, Task, TaskLoss

VALIDATION_SEED = 1_000_002  # of no training run: those are smaller


def make_stages(config: Config, seed: int, images: Images) -> list[Stage]:
    """One stage for each method that is trained.

    Raises:
        ConfigError: a method needs validation classes, and there are none.
    """
    tuned = [m for m in ("pretrained", "random") if m in config.methods]
    if tuned and images.validation is None:
        raise ConfigError(
            f"--methods={','.join(tuned)}: fine-tuning takes the step size that does best on "
            "validation classes, and this splitting has none."
        )
    stages = []
    if "maml" in config.methods:
        stages.append(_maml_stage(config, seed, images))
    if "pretrained" in config.methods or "nearest_neighbour" in config.methods:
        stages.append(_pretraining_stage(config, seed, images))
    if "matching" in config.methods:
        stages.append(_matching_stage(config, seed, images))
    return stages


def _optimizer(config: Config) -> optax.GradientTransformation:
    if config.clip == 0:
        return optax.adam(config.meta_lr)
    scale = config.num_ways * config.train_queries / config.num_shots
    return optax.chain(optax.clip(config.clip / scale), optax.adam(config.meta_lr))


def _maml_stage(config: Config, seed: int, images: Images) -> Stage:
    network = make_network(config)
    sizes = config.num_ways, config.num_shots, config.train_queries
    problem = classification_problem(network, *sizes, config.rotations, config.class_axis)

    def loss_of_mode(mode: str) -> TaskLoss:
        return functools.partial(
            meta_loss,
            problem.inner_loss,
            inner_lr=config.inner_lr,
            num_steps=config.inner_steps,
            mask=network.mask,
            mode=mode,
        )

    def score(params: Params, episodes: Task) -> Array:
        evaluate = _validation_fn(config.shared)
        return evaluate(params, episodes, config.inner_lr).mean["accuracy"][-1]

    def check_memory(mesh: Mesh) -> None:
        params = jax.eval_shape(network.init, jax.random.key(0))
        sample = episode_sampler(*sizes, config.rotations)  # as from images on one device
        task = jax.eval_shape(sample, params, jax.random.key(0), images.train)
        memory.warn_if_too_large(config, loss_of_mode, params, task, mesh)

    return _stage(
        config,
        seed,
        images,
        name=config.maml_name,
        network=network,
        sample=problem.sample,
        task_loss=loss_of_mode(config.mode),
        num_tasks=config.num_tasks,
        num_steps=config.meta_steps,
        score=score,
        before_training=check_memory,
    )


@functools.lru_cache(maxsize=1)
def _validation_fn(config: Config) -> Callable[..., Evaluation]:
    """Adapts to validation episodes; one program for all runs that share these settings."""
    network = make_network(config)
    return make_evaluate_fn(
        cross_entropy(network.apply),
        config.report_steps,
        mask=network.mask,
        batching=config.batching,
    )


def _matching_stage(config: Config, seed: int, images: Images) -> Stage:
    network = make_network(config)
    return _stage(
        config,
        seed,
        images,
        name="matching",
        network=network,
        sample=episode_sampler(
            config.num_ways,
            config.num_shots,
            config.train_queries,
            config.rotations,
            config.class_axis,
        ),
        task_loss=baselines.matching_loss(network.apply, config.num_ways),
        num_tasks=config.num_tasks,
        num_steps=config.meta_steps,
        score=_mean_over_tasks(config, matching_accuracy(config, network, "transductive")),
    )


def _pretraining_stage(config: Config, seed: int, images: Images) -> Stage:
    network = pretrained_network(config, images)
    rotations = "classes" if config.rotations != "none" else "none"
    neighbours = functools.partial(
        baselines.nearest_neighbour_accuracy, network.apply, "transductive"
    )
    return _stage(
        config,
        seed,
        images,
        name="pretrained",
        network=network,
        sample=baselines.class_batches(config.pretrain_images, rotations),
        task_loss=baselines.pretraining_loss(network.apply),
        num_tasks=1,
        num_steps=config.pretrain_steps,
        score=_mean_over_tasks(config, neighbours),
    )


def pretrained_network(config: Config, images: Images) -> ImageNetwork:
    """A network that tells all training classes apart, turned ones included."""
    turns = 4 if config.rotations != "none" else 1
    return make_network(config, turns * images.train.images.shape[0])


def _mean_over_tasks(
    config: Config, accuracy: Callable[[Params, Task], Array]
) -> Callable[[Params, Task], Array]:
    """The mean accuracy over episodes, compiled."""

    @jax.jit
    def score(params: Params, episodes: Task) -> Array:
        return jnp.mean(map_tasks(lambda task: accuracy(params, task), episodes, config.batching))

    return score


def matching_accuracy(
    config: Config, network: ImageNetwork, protocol: str
) -> Callable[[Params, Task], Array]:
    """Accuracy of a matching network on one episode under a protocol."""
    loss = baselines.matching_loss(network.apply, config.num_ways, protocol)
    return lambda params, task: loss(params, task)[1]["query"]["accuracy"]


def _stage(
    config: Config,
    seed: int,
    images: Images,
    *,
    name: str,
    network: ImageNetwork,
    sample: Callable[..., Task],
    task_loss: Callable[..., Any],
    num_tasks: int,
    num_steps: int,
    score: Callable[[Params, Task], Array],
    before_training: Callable[[Mesh], None] = lambda mesh: None,
) -> ValidatedStage:
    """A stage that trains, and validates now and then."""
    optimizer = optax.adam(config.meta_lr) if name == "pretrained" else _optimizer(config)
    specs = (CLASS_SPECS if config.class_axis else PartitionSpec(),)

    def start() -> Selection:
        init_key, train_key = jax.random.split(jax.random.key(seed))
        return begin(init(jax.jit(network.init)(init_key), optimizer, train_key))

    @functools.cache
    def own_mesh() -> Mesh:
        return task_mesh(num_tasks)

    @functools.cache
    def checked(mesh: Mesh) -> None:
        before_training(mesh)

    @functools.cache
    def train_set(mesh: Mesh) -> ImageSet:
        """Training images on the devices, or on their way there."""
        checked(mesh)
        parts = mesh.shape[TASK_AXIS]
        _say_memory(config, images.train, mesh.size, parts)
        whole = split_classes(images.train, parts) if config.class_axis else images.train
        return place((whole,), mesh, specs)[0]

    @functools.cache
    def episodes() -> Task | None:
        return validation_episodes(config, images)

    def make_train(count: int, mesh: Mesh) -> TrainFn:
        return make_train_fn(
            sample,
            task_loss,
            optimizer,
            num_tasks=num_tasks,
            num_steps=count,
            batching=config.batching,
            mesh=mesh,
            data_specs=specs,
        )

    def make_advance(count: int) -> Advance:
        mesh = own_mesh()
        checked(mesh)
        train = make_train(count, mesh)

        def compile_ahead(selection: Selection) -> None:
            with ThreadPoolExecutor(1) as pool:
                ready = pool.submit(episodes)  # meanwhile; and the images' transfer goes on, too
                train.lower(selection.train, train_set(mesh)).compile()
                ready.result()

        def advance(selection: Selection) -> tuple[Selection, Any]:
            state, metrics = train(selection.train, train_set(mesh))
            judged = episodes()
            return validate(
                selection._replace(train=state),
                metrics,
                None if judged is None else lambda: score(bring_home(state.params), judged),
                count=count,
                every=config.validate_every,
                num_steps=num_steps,
            )

        return Advance(advance, compile_ahead)

    return ValidatedStage(
        name=name,
        num_steps=num_steps,
        steps_per_call=config.steps_per_call,
        init=start,
        make_advance=make_advance,
        shown=("loss", "query/accuracy"),
        make_train=make_train,
        data=lambda mesh: (train_set(mesh), episodes()),
        score=score,
        validate_every=config.validate_every,
    )


def _say_memory(config: Config, images: ImageSet, num_devices: int, parts: int) -> None:
    """What the training images take on each device, as they are placed and otherwise."""
    whole = np.asarray(images.images).nbytes / 1e6
    each = {"replicated": whole, "sharded": whole / parts}
    chosen = config.data_placement
    other = next(name for name in each if name != chosen)
    say(
        f"  training images: {each[chosen]:,.0f} MB on each of {num_devices} device(s), {chosen} "
        f"(--data_placement={other}: {each[other]:,.0f} MB)"
    )


def validation_episodes(
    config: Config, images: Images, seed: int = VALIDATION_SEED, num_tasks: int | None = None
) -> Task | None:
    """Episodes of the validation classes with K queries; None if there are no such classes."""
    if images.validation is None:
        return None
    sampler = episode_sampler(config.num_ways, config.num_shots, config.num_shots, config.rotations)
    draw = jax.jit(functools.partial(draw_episodes, sampler), static_argnums=2)
    count = config.validation_tasks if num_tasks is None else num_tasks
    return draw(jax.random.key(seed), images.validation, count)
