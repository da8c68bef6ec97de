"""N-way K-shot episodes, drawn on the device from a set of images that lies there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import PartitionSpec

from maml_jax import checks
from maml_jax.classification.losses import LabelledImages, cross_entropy
from maml_jax.mesh import TASK_AXIS
from maml_jax.networks.image import ImageNetwork
from maml_jax.types import Array, Params, Problem, Task

ROTATIONS = ("none", "augment", "classes")
EpisodeSampler = Callable[[Params, Array, "ImageSet"], Task]


class ImageSet(NamedTuple):
    """The images of some classes, for `episode_sampler`: of one split, never of two.

    Attributes:
        images: uint8 [classes, examples, H, W, C]; classes with fewer examples are padded.
        counts: int32 [classes], examples that each class has. Every class must have as many as an
            episode takes, K + Q. The sampler checks that where it sees the numbers, as the first
            call of a train function does; where they are traced, images of a class with too few
            examples are NaN. `datasets.check_episodes` checks it before anything is compiled.
    """

    images: Array
    counts: Array


_SPLIT: Any = PartitionSpec(TASK_AXIS)
_WHOLE: Any = PartitionSpec()
CLASS_SPECS = ImageSet(_SPLIT, _WHOLE)  # how what `split_classes` returns lies on a mesh


def episode_sampler(
    num_ways: int,
    num_shots: int,
    num_queries: int,
    rotations: str = "none",
    class_axis: str | None = None,
) -> EpisodeSampler:
    """A sampler of episodes, to be compiled into the training step.

    An episode has N distinct classes, uniform among those of the set, in random order; of each, K
    support and Q query examples, all distinct. Labels are 0 to N - 1. Images are scaled to [0, 1].

    Args:
        num_ways: N.
        num_shots: K.
        num_queries: Q.
        rotations: `"none"`; `"augment"`: each class of an episode is turned by one random multiple
            of 90 degrees; `"classes"`: a turned class is another class, so that an episode may
            have a character beside the same one turned. The original code does the first.
        class_axis: the axis of the device mesh that the images of `split_classes` are spread over,
            if they are; the sampler then runs under `shard_map`, on every device at once, and
            draws the episodes that it draws from a whole set.

    Returns:
        `sample(params, key, image_set) -> Task` of `LabelledImages`, ordered by class: support
        [N * K], query [N * Q].

    Raises:
        ValueError: a count below 1; (from the sampler) the set has too few classes, a class has too
            few examples, or the images are not square and are to be turned.
        TypeError: a count is no integer; (from the sampler) the images are not uint8.
    """
    checks.check_counts(num_ways=num_ways, num_shots=num_shots, num_queries=num_queries)
    checks.check_choice(rotations, ROTATIONS, "rotations")
    per_class = num_shots + num_queries

    def sample(params: Params, key: Array, image_set: ImageSet) -> Task:
        del params  # supervised tasks do not depend on the learner
        check_image_set(image_set, num_ways, per_class, rotations, spread=class_axis is not None)
        class_key, turn_key, example_key = jax.random.split(key, 3)
        num_classes = image_set.counts.shape[0]
        if rotations == "classes":
            turned = distinct(class_key, 4 * num_classes, num_ways)
            classes, turns = turned // 4, turned % 4
        else:
            classes = distinct(class_key, num_classes, num_ways)
            turns = jax.random.randint(turn_key, (num_ways,), 0, 4)
        examples = jax.vmap(distinct, (0, 0, None))(
            jax.random.split(example_key, num_ways), image_set.counts[classes], per_class
        )
        if class_axis is None:
            images = image_set.images[classes[:, None], examples]  # [N, K + Q, H, W, C]
        else:
            images = _fetch(image_set.images, classes, examples, class_axis)
        if rotations != "none":
            images = jax.vmap(turn)(images, turns)
        enough = image_set.counts[classes] >= per_class
        images = scaled(images) * jnp.where(enough, 1.0, jnp.nan)[:, None, None, None, None]
        return Task(_batch(images[:, :num_shots]), _batch(images[:, num_shots:]))

    return sample


def split_classes(image_set: ImageSet, num_devices: int) -> ImageSet:
    """A set whose classes can be spread over devices, for those that do not fit on each of them.

    Images are padded with empty classes to a multiple of the devices, counts are not: they say how
    many classes there are. Give it to `make_train_fn`'s function with `data_specs=(CLASS_SPECS,)`
    and a sampler with `class_axis="tasks"`.

    Args:
        image_set: whole, on the host or a device.
        num_devices: of the mesh.
    """
    checks.check_counts(num_devices=num_devices)
    images = np.asarray(image_set.images)
    missing = -len(images) % num_devices
    padded: Any = np.pad(images, ((0, missing), *((0, 0) for _ in images.shape[1:])))
    return image_set._replace(images=padded)


def _fetch(images: Array, classes: Array, examples: Array, axis: str) -> Array:
    """Images [N, k, H, W, C] of classes [N] and examples [N, k] that other devices may hold.

    Every device asks all others for its episodes, and answers what they ask of its classes.
    """
    asked = jax.lax.all_gather(jnp.concatenate([classes[:, None], examples], axis=1), axis)
    asked_classes, asked_examples = asked[..., 0], asked[..., 1:]
    local = asked_classes - jax.lax.axis_index(axis) * images.shape[0]
    held = (local >= 0) & (local < images.shape[0])
    fetched = images[jnp.clip(local, 0, images.shape[0] - 1)[..., None], asked_examples]
    answers = jnp.where(held[..., None, None, None, None], fetched, 0)
    return jax.lax.psum_scatter(answers, axis)


def _batch(images: Array) -> LabelledImages:
    """Images [N, k, ...] as one batch, with labels."""
    ways, count = images.shape[:2]
    labels = jnp.repeat(jnp.arange(ways, dtype=jnp.int32), count)
    return LabelledImages(images.reshape(ways * count, *images.shape[2:]), labels)


def turn(images: Array, quarters: Array) -> Array:
    """Images [..., H, W, C], turned counter-clockwise by so many quarter turns."""
    by_one = jnp.where(quarters % 2 == 1, jnp.rot90(images, axes=(-3, -2)), images)
    return jnp.where(quarters >= 2, by_one[..., ::-1, ::-1, :], by_one)


def distinct(key: Array, population: Array | int, count: int) -> Array:
    """Draws `count` distinct whole numbers below `population`, all ordered choices equally likely.

    Floyd's algorithm, in `count` steps whatever the population (which may be traced, and must be
    at least `count`), and then a shuffle.
    """
    draw_key, order_key = jax.random.split(key)
    last = jnp.asarray(population, jnp.int32) - count + jnp.arange(count, dtype=jnp.int32)
    draws = jax.random.randint(draw_key, (count,), 0, last + 1, jnp.int32)

    def step(i: Array, chosen: Array) -> Array:
        taken = jnp.any(chosen == draws[i])
        return chosen.at[i].set(jnp.where(taken, last[i], draws[i]))

    chosen = jnp.full((count,), -1, jnp.int32)
    if count <= 32:
        for i in range(count):  # unrolled: a loop costs more than its body
            chosen = step(jnp.asarray(i), chosen)
    else:
        chosen = jax.lax.fori_loop(0, count, step, chosen)
    return jax.random.permutation(order_key, chosen)


def scaled(images: Array) -> Array:
    """Bytes as float32 from 0 to 1.

    Raises:
        TypeError: the images are not uint8, so that their range is not known.
    """
    dtype = jnp.result_type(images)
    if dtype != jnp.uint8:
        raise TypeError(
            f"images of an image set must be uint8, from 0 to 255; received {dtype}. Convert them "
            "first, images from 0 to 1 by np.round(255 * images).astype(np.uint8)."
        )
    return images.astype(jnp.float32) / 255


def check_image_set(
    image_set: ImageSet, num_ways: int, per_class: int, rotations: str, spread: bool = False
) -> None:
    """Raises unless episodes can be drawn from a set.

    Args:
        image_set: the set, or a device's part of one that is spread.
        num_ways: N.
        per_class: examples that are needed of each class.
        rotations: as in `episode_sampler`.
        spread: whether the images are a device's part.
    """
    shape, counts = jnp.shape(image_set.images), image_set.counts
    if len(shape) != 5 or jnp.ndim(counts) != 1 or (not spread and len(counts) != shape[0]):
        raise ValueError(
            "an image set must have images [classes, examples, H, W, C] and counts [classes]; "
            f"received {shape} and {jnp.shape(counts)}."
        )
    if not jnp.issubdtype(jnp.result_type(counts), jnp.integer):
        raise TypeError(f"counts must be integers; received {jnp.result_type(counts)}.")
    classes = len(counts) * (4 if rotations == "classes" else 1)
    if classes < num_ways:
        raise ValueError(f"{num_ways}-way episodes need as many classes; the set has {classes}.")
    if shape[1] < per_class:
        raise ValueError(
            f"episodes need {per_class} examples of a class (support and query); "
            f"the set has at most {shape[1]}."
        )
    if not isinstance(counts, Tracer):
        values = np.asarray(counts)
        if values.min() < per_class:
            raise ValueError(
                f"episodes need {per_class} examples of a class (support and query); class "
                f"{values.argmin()} of the set has {values.min()}."
            )
        if values.max() > shape[1]:
            raise ValueError(
                f"class {values.argmax()} of the set has {values.max()} examples by counts, and "
                f"{shape[1]} by images."
            )
    if rotations != "none" and shape[2] != shape[3]:
        raise ValueError(f"only square images can be turned; received {shape[2]}x{shape[3]}.")


def draw_episodes(sampler: EpisodeSampler, key: Array, image_set: ImageSet, num_tasks: int) -> Task:
    """A fixed set of episodes [T], for validation or test: the same for the same key."""
    checks.check_counts(num_tasks=num_tasks)
    keys = jax.random.split(key, num_tasks)
    return jax.vmap(lambda k: sampler(None, k, image_set))(keys)


def classification_problem(
    network: ImageNetwork,
    num_ways: int,
    num_shots: int,
    num_queries: int,
    rotations: str = "none",
    class_axis: str | None = None,
) -> Problem:
    """Few-shot classification of images.

    Its `sample(params, key, image_set)` takes the images as a third argument, which
    `make_train_fn` passes on, so that they stay out of the compiled program. Pass
    `mask=network.mask` to the core beside it.

    Args:
        network: with N outputs.
        num_ways: N.
        num_shots: K.
        num_queries: Q.
        rotations: as in `episode_sampler`.
        class_axis: as in `episode_sampler`.
    """
    loss = cross_entropy(network.apply)
    sample = episode_sampler(num_ways, num_shots, num_queries, rotations, class_axis)
    return Problem(network.init, sample, loss, loss)
