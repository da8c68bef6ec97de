"""Draws N-way K-shot episodes on the device from a set of images in its memory."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from maml_jax import checks
from maml_jax.classification.image_sets import ROTATIONS, ImageSet, check_image_set, scaled, turn
from maml_jax.classification.losses import LabelledImages, cross_entropy
from maml_jax.networks.image import ImageNetwork
from maml_jax.types import Array, Params, Problem, Task

EpisodeSampler = Callable[[Params, Array, ImageSet], Task]


def episode_sampler(
    num_ways: int,
    num_shots: int,
    num_queries: int,
    rotations: str = "none",
    class_axis: str | None = None,
) -> EpisodeSampler:
    """Makes a sampler of episodes that compiles into the training step.

    An episode has N distinct classes, drawn uniformly and in random order, and K support and Q
    query examples of each class, all distinct. Labels are 0 to N - 1. Images are scaled to [0, 1].

    Args:
        num_ways: N.
        num_shots: K.
        num_queries: Q.
        rotations: `"none"`; `"augment"`: rotates each class of an episode by a random multiple of
            90 degrees, as the original code; `"classes"`: makes four classes of each, one for each
            rotation, so an episode may hold a character twice under two rotations.
        class_axis: the axis of the device mesh over which the images are spread, see
            `split_classes`; None for whole sets. With an axis the sampler runs under `shard_map`
            and draws the same episodes as from a whole set.

    Returns:
        `sample(params, key, image_set) -> Task` of `LabelledImages`, ordered by class: support
        [N * K], query [N * Q].

    Raises:
        ValueError: a count below 1; (from the sampler) too few classes, a class with too few
            examples, or rotations of images that are not square.
        TypeError: a count that is not an integer; (from the sampler) images that are not uint8.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from maml_jax.classification import ImageSet, episode_sampler
        >>> image_set = ImageSet(jnp.zeros((3, 8, 4, 4, 1), jnp.uint8), jnp.full(3, 8))
        >>> sample = episode_sampler(num_ways=2, num_shots=1, num_queries=3)
        >>> task = jax.jit(sample)(None, jax.random.key(0), image_set)
        >>> task.support.images.shape, task.query.labels.tolist()
        ((2, 4, 4, 1), [0, 0, 0, 1, 1, 1])
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


def _fetch(images: Array, classes: Array, examples: Array, axis: str) -> Array:
    """Fetches images [N, k, H, W, C] of classes [N] and examples [N, k] from all devices.

    Each device sends its requests to all devices and answers requests for its classes.
    """
    requests = jax.lax.all_gather(jnp.concatenate([classes[:, None], examples], axis=1), axis)
    requested_classes, requested_examples = requests[..., 0], requests[..., 1:]
    local = requested_classes - jax.lax.axis_index(axis) * images.shape[0]
    held = (local >= 0) & (local < images.shape[0])
    fetched = images[jnp.clip(local, 0, images.shape[0] - 1)[..., None], requested_examples]
    answers = jnp.where(held[..., None, None, None, None], fetched, 0)
    return jax.lax.psum_scatter(answers, axis)


def _batch(images: Array) -> LabelledImages:
    """Makes one labelled batch of images [N, k, ...]."""
    ways, count = images.shape[:2]
    labels = jnp.repeat(jnp.arange(ways, dtype=jnp.int32), count)
    return LabelledImages(images.reshape(ways * count, *images.shape[2:]), labels)


def distinct(key: Array, population: Array | int, count: int) -> Array:
    """Draws `count` distinct integers from 0 to `population` - 1; all orders are equally likely.

    Runs Floyd's algorithm, whose `count` steps do not depend on the population, and shuffles. The
    population may be traced and must be at least `count`.
    """
    draw_key, order_key = jax.random.split(key)
    last = jnp.asarray(population, jnp.int32) - count + jnp.arange(count, dtype=jnp.int32)
    draws = jax.random.randint(draw_key, (count,), 0, last + 1, jnp.int32)

    def step(i: Array, chosen: Array) -> Array:
        taken = jnp.any(chosen == draws[i])
        return chosen.at[i].set(jnp.where(taken, last[i], draws[i]))

    chosen = jnp.full((count,), -1, jnp.int32)
    if count <= 32:
        for i in range(count):  # unrolled: a compiled loop costs more than its body
            chosen = step(jnp.asarray(i), chosen)
    else:
        chosen = jax.lax.fori_loop(0, count, step, chosen)
    return jax.random.permutation(order_key, chosen)


def draw_episodes(sampler: EpisodeSampler, key: Array, image_set: ImageSet, num_tasks: int) -> Task:
    """Draws a fixed set of episodes [T] for validation or test.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from maml_jax.classification import ImageSet, draw_episodes, episode_sampler
        >>> image_set = ImageSet(jnp.zeros((3, 8, 4, 4, 1), jnp.uint8), jnp.full(3, 8))
        >>> sampler = episode_sampler(num_ways=2, num_shots=1, num_queries=3)
        >>> draw = jax.jit(draw_episodes, static_argnames=("sampler", "num_tasks"))
        >>> tasks = draw(sampler, jax.random.key(0), image_set, num_tasks=10)
        >>> tasks.query.images.shape  # [T, N * Q, H, W, C]
        (10, 6, 4, 4, 1)
    """
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
    """Builds a few-shot classification problem from an image network.

    Its sampler is `sample(params, key, image_set)`; train functions pass the image set on as an
    argument, so the compiled program does not contain the images. Pass `mask=network.mask` to the
    core with it.

    Args:
        network: with N outputs.
        num_ways: N.
        num_shots: K.
        num_queries: Q.
        rotations: as in `episode_sampler`.
        class_axis: as in `episode_sampler`.

    Raises:
        ValueError, TypeError: as in `episode_sampler`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from maml_jax.classification import ImageSet, classification_problem
        >>> from maml_jax.networks import fully_connected
        >>> network = fully_connected((4, 4, 1), num_outputs=2)
        >>> problem = classification_problem(network, num_ways=2, num_shots=1, num_queries=3)
        >>> image_set = ImageSet(jnp.zeros((3, 8, 4, 4, 1), jnp.uint8), jnp.full(3, 8))
        >>> task = jax.eval_shape(problem.sample, None, jax.random.key(0), image_set)
        >>> task.support.images.shape
        (2, 4, 4, 1)
    """
    loss = cross_entropy(network.apply)
    sample = episode_sampler(num_ways, num_shots, num_queries, rotations, class_axis)
    return Problem(network.init, sample, loss, loss)
