"""Cross-entropy on labelled images, and the protocols in which query images are classified."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from maml_jax import checks
from maml_jax.networks.image import ImageApply
from maml_jax.types import Array, LossFn, Params, Task

PROTOCOLS = ("transductive", "support_statistics", "one_query")


class LabelledImages(NamedTuple):
    """A batch for classification.

    Attributes:
        images: [n, H, W, C], float.
        labels: [n], int32, from 0 to N - 1.
    """

    images: Array
    labels: Array


class QueryImages(NamedTuple):
    """Query images with the support images whose statistics they may need.

    Attributes:
        support_images: [N * K, H, W, C].
        images: [n, H, W, C].
        labels: [n].
    """

    support_images: Array
    images: Array
    labels: Array


def cross_entropy(apply: ImageApply) -> LossFn:
    """The mean cross-entropy of a batch, with its accuracy (paper section 3.1, with the mean).

    The original code sums over classes what it averages over shots: its loss is N times this one,
    and its step size alpha acts as N times alpha here.

    Args:
        apply: `apply(params, images) -> logits [n, N]`.

    Returns:
        `loss_fn(params, batch) -> (nats, {"accuracy"})`, for a batch of `LabelledImages`.

    Raises:
        ValueError: (from the loss) logits and labels do not fit.
    """

    def loss_fn(params: Params, batch: LabelledImages) -> tuple[Array, dict[str, Any]]:
        return loss_and_accuracy(apply(params, batch.images), batch.labels)

    return loss_fn


def loss_and_accuracy(logits: Array, labels: Array) -> tuple[Array, dict[str, Array]]:
    """Mean cross-entropy of logits [n, N] in nats, and the share of right answers.

    Raises:
        ValueError: logits and labels do not fit; a label is not from 0 to N - 1. A label that is
            traced cannot raise: the loss, its gradient and the accuracy are then NaN.
        TypeError: labels are not integers.
    """
    if jnp.ndim(logits) != 2 or jnp.shape(labels) != jnp.shape(logits)[:1]:
        raise ValueError(
            "logits must be [n, N] with labels [n]; received "
            f"{jnp.shape(logits)} and {jnp.shape(labels)}."
        )
    # A product with the one-hot labels, not a gather: its derivatives of every order are products.
    picked = one_hot(labels, logits.shape[-1], logits.dtype)
    nats = -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * picked, axis=-1))
    right = jnp.argmax(logits, -1) == labels
    return nats, {"accuracy": jnp.mean(jnp.where(jnp.isnan(picked[:, 0]), jnp.nan, right))}


def one_hot(labels: Array, num_ways: int, dtype: Any = jnp.float32) -> Array:
    """Labels [...] as rows [..., N] with a 1 at the label's place.

    Raises:
        ValueError: a label is not from 0 to N - 1. Where labels are traced and nothing can be
            raised, the row of such a label is NaN.
        TypeError: labels are not integers.
    """
    if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        raise TypeError(
            f"labels must be integers from 0 to {num_ways - 1}, one for each example; received "
            f"{jnp.result_type(labels)}."
        )
    if not isinstance(labels, Tracer) and np.size(labels):
        lowest, highest = np.min(np.asarray(labels)), np.max(np.asarray(labels))
        if lowest < 0 or highest >= num_ways:
            raise ValueError(
                f"labels must be from 0 to {num_ways - 1} for {num_ways} ways; received labels "
                f"from {lowest} to {highest}. Number the classes of an episode from 0."
            )
    valid = (labels >= 0) & (labels < num_ways)
    rows = jax.nn.one_hot(labels, num_ways, dtype=dtype)
    return jnp.where(valid[..., None], rows, jnp.nan)


def query_loss(apply: ImageApply, protocol: str) -> LossFn:
    """The loss on query images under one of three protocols, which give different numbers.

    Batch normalisation makes an answer depend on what else is in the batch:

    - `"transductive"`: statistics of all query images of the episode together, as the paper and
      the original code. Answers use that the query is balanced between classes.
    - `"support_statistics"`: statistics of the support images alone.
    - `"one_query"`: statistics of the support images and the one query image that is asked about,
      for each by itself (as Nichol et al. 2018, arXiv 1803.02999).

    Returns:
        `loss_fn(params, batch: QueryImages) -> (nats, {"accuracy"})`.

    Raises:
        ValueError: the protocol is none of `PROTOCOLS`.
    """
    checks.check_choice(protocol, PROTOCOLS, "protocol")

    def loss_fn(params: Params, batch: QueryImages) -> tuple[Array, dict[str, Any]]:
        logits = query_outputs(apply, protocol, params, batch.support_images, batch.images)
        return loss_and_accuracy(logits, batch.labels)

    return loss_fn


def query_outputs(
    apply: ImageApply,
    protocol: str,
    params: Params,
    support_images: Array,
    images: Array,
    features: bool = False,
) -> Array:
    """Logits [n, N] (or features) of query images under a protocol, see `query_loss`."""
    count = support_images.shape[0]
    if protocol == "transductive":
        return apply(params, images, features=features)
    if protocol == "support_statistics":
        both = jnp.concatenate([support_images, images])
        return apply(params, both, num_statistics=count, features=features)[count:]

    def one(image: Array) -> Array:
        both = jnp.concatenate([support_images, image[None]])
        return apply(params, both, features=features)[-1]

    return jax.lax.map(one, images)


def with_support_images(task: Task) -> Task:
    """The task with a query batch for `query_loss`; works with a leading axis of tasks, too."""
    return Task(task.support, QueryImages(task.support.images, *task.query))
