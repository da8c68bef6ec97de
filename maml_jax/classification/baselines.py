"""Baselines for few-shot classification (paper section 5.2): pretraining, matching networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from maml_jax import checks
from maml_jax.classification.image_sets import ROTATIONS, ImageSet, check_image_set, scaled, turn
from maml_jax.classification.losses import (
    LabelledImages,
    loss_and_accuracy,
    one_hot,
    query_outputs,
)
from maml_jax.networks.image import ImageApply
from maml_jax.types import Array, Params, Task, TaskLoss


def class_batches(
    num_images: int, rotations: str = "none"
) -> Callable[[Params, Array, ImageSet], Task]:
    """Makes a sampler of labelled batches from all classes of a set, for pretraining.

    Args:
        num_images: size of a batch. Classes are uniform; examples are drawn with replacement.
        rotations: `"classes"` makes four classes of each, one for each rotation; `"augment"`
            rotates each image by a random multiple of 90 degrees and keeps its class.

    Returns:
        `sample(params, key, image_set) -> Task` with an empty support and the batch as query. A
        label is the index of the class c, or 4 * c + rotation for `"classes"`.

    Raises:
        ValueError: an unknown choice, or a count below 1; (from the sampler) an empty class.
        TypeError: a count that is not an integer.
    """
    checks.check_choice(rotations, ROTATIONS, "rotations")
    checks.check_counts(num_images=num_images)

    def sample(params: Params, key: Array, image_set: ImageSet) -> Task:
        del params
        check_image_set(image_set, 1, 1, rotations)
        class_key, example_key, turn_key = jax.random.split(key, 3)
        classes = jax.random.randint(class_key, (num_images,), 0, image_set.images.shape[0])
        examples = jax.random.randint(example_key, (num_images,), 0, image_set.counts[classes])
        images, labels = image_set.images[classes, examples], classes
        if rotations != "none":
            turns = jax.random.randint(turn_key, (num_images,), 0, 4)
            images = jax.vmap(turn)(images, turns)
            labels = 4 * classes + turns if rotations == "classes" else classes
        some = jnp.where(image_set.counts[classes] > 0, 1.0, jnp.nan)[:, None, None, None]
        return Task((), LabelledImages(scaled(images) * some, labels))

    return sample


def pretraining_loss(apply: ImageApply) -> TaskLoss:
    """Makes the cross-entropy loss over all training classes, for `training.make_train_fn`."""

    def task_loss(params: Params, task: Task) -> tuple[Array, dict[str, Any]]:
        logits = apply(params, task.query.images)
        loss, metrics = loss_and_accuracy(logits, task.query.labels)
        return loss, {"query": {**metrics, "loss": loss}}

    return task_loss


def matching_logits(
    apply: ImageApply, num_ways: int, protocol: str, params: Params, support: Any, images: Array
) -> Array:
    """Returns log-probabilities [n, N] by attention over the support.

    Source: Vinyals et al. 2016, equation 1. The attention is the softmax of cosine similarities of
    features. One network embeds support and query. Departure: no full-context embeddings.

    Args:
        apply: of an image network; its features are the embedding.
        num_ways: N.
        protocol: one of `losses.PROTOCOLS`, the source of the query's batch statistics.
        params: of the network.
        support: `LabelledImages`.
        images: query images [n, H, W, C].
    """
    keys = _unit(apply(params, support.images, features=True))
    queries = _unit(query_outputs(apply, protocol, params, support.images, images, features=True))
    attention = jax.nn.softmax(queries @ keys.T)
    shares = attention @ one_hot(support.labels, num_ways)
    return jnp.log(jnp.maximum(shares, 1e-12))


def matching_loss(apply: ImageApply, num_ways: int, protocol: str = "transductive") -> TaskLoss:
    """Makes the query loss of a matching network, for `training.make_train_fn`."""

    def task_loss(params: Params, task: Task) -> tuple[Array, dict[str, Any]]:
        images, labels = task.query.images, task.query.labels
        logits = matching_logits(apply, num_ways, protocol, params, task.support, images)
        loss, metrics = loss_and_accuracy(logits, labels)
        return loss, {"query": {**metrics, "loss": loss}}

    return task_loss


def nearest_neighbour_accuracy(
    apply: ImageApply, protocol: str, params: Params, task: Task
) -> Array:
    """Returns the accuracy of nearest-neighbour classification by cosine similarity of features.

    Args:
        apply: of an image network; its features are the embedding.
        protocol: one of `losses.PROTOCOLS`, the source of the query's batch statistics.
        params: of the network.
        task: an episode of `LabelledImages`.
    """
    keys = _unit(apply(params, task.support.images, features=True))
    queries = query_outputs(
        apply, protocol, params, task.support.images, task.query.images, features=True
    )
    nearest = jnp.argmax(_unit(queries) @ keys.T, axis=-1)
    return jnp.mean(task.support.labels[nearest] == task.query.labels)


def _unit(features: Array) -> Array:
    return features * jax.lax.rsqrt(jnp.sum(jnp.square(features), -1, keepdims=True) + 1e-12)


def with_new_head(params: Params, num_outputs: int) -> Params:
    """Replaces the head of pretrained parameters by zeros, for another number of classes.

    With zeros, fine-tuning starts from equal probabilities at any scale of the features. It would
    have to unlearn a random head first.

    Args:
        params: of a network with a `"Head"`.
        num_outputs: number of classes of the new head.
    """
    head = jax.tree.map(lambda p: jnp.zeros((*p.shape[:-1], num_outputs), p.dtype), params["Head"])
    return {**params, "Head": head}
