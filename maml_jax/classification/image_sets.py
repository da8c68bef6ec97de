"""Sets of images by class: their layout, their checks, and their spread over devices."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import PartitionSpec

from maml_jax import checks
from maml_jax.mesh import TASK_AXIS
from maml_jax.types import Array

ROTATIONS = ("none", "augment", "classes")


class ImageSet(NamedTuple):
    """The images of the classes of one split, input of `episode_sampler`.

    Every class must have at least K + Q examples, the number that an episode uses. The sampler
    raises an error where `counts` is concrete, as in the first call of a train function. Where
    `counts` is traced, the images of a class with too few examples become NaN.
    `datasets.check_episodes` runs the check before compilation.

    Attributes:
        images: uint8 [classes, examples, H, W, C]; padded for classes with fewer examples.
        counts: int32 [classes], number of examples of each class.

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.classification import ImageSet
        >>> images = jnp.zeros((3, 20, 8, 8, 1), jnp.uint8)
        >>> image_set = ImageSet(images, counts=jnp.array([20, 20, 12]))
        >>> int(image_set.counts.min())
        12
    """

    images: Array
    counts: Array


_SPLIT: Any = PartitionSpec(TASK_AXIS)
_WHOLE: Any = PartitionSpec()
CLASS_SPECS = ImageSet(_SPLIT, _WHOLE)  # partition of the result of `split_classes` on a mesh


def split_classes(image_set: ImageSet, num_devices: int) -> ImageSet:
    """Pads a set so that its classes spread evenly over devices, where one cannot hold the set.

    Pads images with empty classes to a multiple of the number of devices. Leaves `counts` as it is:
    its length is the number of real classes. Pass the result to a train function made with
    `data_specs=(CLASS_SPECS,)` and a sampler with `class_axis="tasks"`.

    Args:
        image_set: a whole set, on the host or a device.
        num_devices: number of devices of the mesh.

    Example:
        >>> import numpy as np
        >>> from maml_jax.classification import ImageSet, split_classes
        >>> image_set = ImageSet(np.zeros((3, 8, 4, 4, 1), np.uint8), np.full(3, 8))
        >>> spread = split_classes(image_set, num_devices=2)
        >>> spread.images.shape, spread.counts.shape
        ((4, 8, 4, 4, 1), (3,))
    """
    checks.check_counts(num_devices=num_devices)
    images = np.asarray(image_set.images)
    missing = -len(images) % num_devices
    padded: Any = np.pad(images, ((0, missing), *((0, 0) for _ in images.shape[1:])))
    return image_set._replace(images=padded)


def check_image_set(
    image_set: ImageSet, num_ways: int, per_class: int, rotations: str, spread: bool = False
) -> None:
    """Raises an error unless the set is large enough for episodes.

    Args:
        image_set: a whole set, or one device's part of a spread set.
        num_ways: N.
        per_class: number of examples that an episode uses of each class.
        rotations: as in `episode_sampler`.
        spread: whether the images are one device's part.
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
            f"classes of the set have at most {shape[1]}."
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
                f"{shape[1]} by the shape of images."
            )
    if rotations != "none" and shape[2] != shape[3]:
        raise ValueError(f"only square images can be rotated; received {shape[2]}x{shape[3]}.")


def scaled(images: Array) -> Array:
    """Scales bytes to float32 from 0 to 1.

    Raises:
        TypeError: the images are not uint8; their range is unknown.
    """
    dtype = jnp.result_type(images)
    if dtype != jnp.uint8:
        raise TypeError(
            f"images of an image set must be uint8, from 0 to 255; received {dtype}. Convert "
            "images from 0 to 1 by np.round(255 * images).astype(np.uint8)."
        )
    return images.astype(jnp.float32) / 255


def turn(images: Array, quarters: Array) -> Array:
    """Rotates images [..., H, W, C] counter-clockwise by `quarters` quarter turns."""
    by_one = jnp.where(quarters % 2 == 1, jnp.rot90(images, axes=(-3, -2)), images)
    return jnp.where(quarters >= 2, by_one[..., ::-1, ::-1, :], by_one)
