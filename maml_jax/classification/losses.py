"""Cross-entropy on labelled images, and protocols for the classification of query images."""

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
        images: float [n, H, W, C].
        labels: int32 [n], from 0 to N - 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.classification import LabelledImages
        >>> batch = LabelledImages(jnp.zeros((2, 8, 8, 1)), jnp.array([0, 1]))
        >>> batch.images.shape, batch.labels.shape
        ((2, 8, 8, 1), (2,))
    """

    images: Array
    labels: Array


class QueryImages(NamedTuple):
    """Query images with the support images of their episode, input of `query_loss`.

    Attributes:
        support_images: float [N * K, H, W, C].
        images: float [n, H, W, C].
        labels: int32 [n], from 0 to N - 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.classification import QueryImages
        >>> support, query = jnp.zeros((2, 8, 8, 1)), jnp.zeros((6, 8, 8, 1))
        >>> batch = QueryImages(support, query, labels=jnp.array([0, 0, 0, 1, 1, 1]))
        >>> batch.support_images.shape
        (2, 8, 8, 1)
    """

    support_images: Array
    images: Array
    labels: Array


def cross_entropy(apply: ImageApply) -> LossFn:
    """Makes the cross-entropy loss, a mean over the batch in nats.

    Source: paper section 3.1, equation 3. Departures: a mean over examples replaces the paper's
    sum. The original code averages over shots and sums over classes, so its loss is N times this
    one and its step size alpha corresponds to N * alpha here.

    Args:
        apply: `apply(params, images) -> logits [n, N]`.

    Returns:
        `loss_fn(params, batch: LabelledImages) -> (loss in nats, {"accuracy": fraction})`.

    Raises:
        ValueError, TypeError: (from the loss) as in `loss_and_accuracy`.

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.classification import LabelledImages, cross_entropy
        >>> loss_fn = cross_entropy(lambda params, images: images.reshape(-1, 4) @ params)
        >>> batch = LabelledImages(jnp.ones((2, 2, 2, 1)), jnp.array([0, 1]))
        >>> loss, metrics = loss_fn(jnp.zeros((4, 2)), batch)  # equal logits: log(2) nats
        >>> round(float(loss), 3), float(metrics["accuracy"])
        (0.693, 0.5)
    """

    def loss_fn(params: Params, batch: LabelledImages) -> tuple[Array, dict[str, Any]]:
        return loss_and_accuracy(apply(params, batch.images), batch.labels)

    return loss_fn


def loss_and_accuracy(logits: Array, labels: Array) -> tuple[Array, dict[str, Array]]:
    """Returns the mean cross-entropy of logits [n, N] in nats, and the accuracy.

    Raises:
        ValueError: the shapes of logits and labels do not match, or a label is not from 0 to N - 1.
            Traced labels cannot raise: the loss, its gradient and the accuracy become NaN.
        TypeError: labels are not integers.
    """
    if jnp.ndim(logits) != 2 or jnp.shape(labels) != jnp.shape(logits)[:1]:
        raise ValueError(
            "logits must be [n, N] with labels [n]; received "
            f"{jnp.shape(logits)} and {jnp.shape(labels)}."
        )
    # A product with one-hot labels replaces a gather: its derivatives of all orders are products.
    picked = one_hot(labels, logits.shape[-1], logits.dtype)
    nats = -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * picked, axis=-1))
    right = jnp.argmax(logits, -1) == labels
    return nats, {"accuracy": jnp.mean(jnp.where(jnp.isnan(picked[:, 0]), jnp.nan, right))}


def one_hot(labels: Array, num_ways: int, dtype: Any = jnp.float32) -> Array:
    """Encodes labels [...] as one-hot rows [..., N].

    Raises:
        ValueError: a label is not from 0 to N - 1. Traced labels cannot raise: the row becomes NaN.
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
    """Makes the cross-entropy loss on query images under an evaluation protocol.

    Under batch normalisation a prediction depends on the other images of the batch, so the
    protocols give different accuracies:

    ==================== ==========================================================================
    protocol             source of the batch statistics
    ==================== ==========================================================================
    `transductive`       all query images of the episode, as in the paper and the original code;
                         predictions exploit that the query is balanced between classes
    `support_statistics` the support images
    `one_query`          the support images and the one query image to classify, separately for each
                         query image (Nichol et al. 2018, arXiv 1803.02999)
    ==================== ==========================================================================

    Args:
        apply: of an image network.
        protocol: one of `PROTOCOLS`.

    Returns:
        `loss_fn(params, batch: QueryImages) -> (loss in nats, {"accuracy": fraction})`.

    Raises:
        ValueError: the protocol is none of `PROTOCOLS`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from maml_jax.classification import QueryImages, query_loss
        >>> from maml_jax.networks import fully_connected
        >>> network = fully_connected((4, 4, 1), num_outputs=2, hidden_sizes=(3,))
        >>> params = jax.tree.map(  # zeros: equal logits, log(2) nats
        ...     lambda p: jnp.zeros(p.shape), jax.eval_shape(network.init, jax.random.key(0))
        ... )
        >>> batch = QueryImages(jnp.ones((2, 4, 4, 1)), jnp.ones((2, 4, 4, 1)), jnp.array([0, 1]))
        >>> loss, metrics = query_loss(network.apply, "support_statistics")(params, batch)
        >>> round(float(loss), 3)
        0.693
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
    """Returns logits [n, N] or features of query images under a protocol, see `query_loss`."""
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
    """Adds the support images to the query of a task, or of tasks [T], for `query_loss`.

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax import Task
        >>> from maml_jax.classification import LabelledImages, with_support_images
        >>> support = LabelledImages(jnp.zeros((2, 8, 8, 1)), jnp.array([0, 1]))
        >>> query = LabelledImages(jnp.zeros((6, 8, 8, 1)), jnp.array([0, 0, 0, 1, 1, 1]))
        >>> task = with_support_images(Task(support, query))
        >>> task.query.support_images.shape, task.query.images.shape
        ((2, 8, 8, 1), (6, 8, 8, 1))
    """
    return Task(task.support, QueryImages(task.support.images, *task.query))
