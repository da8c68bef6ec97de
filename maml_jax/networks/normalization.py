"""Feature normalisation for few-shot learning, without running statistics."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from maml_jax import checks
from maml_jax.types import Array, Params, PyTree

NORMS = ("batch", "batch_scale", "layer", "group", "none")
EPSILON = 1e-3  # the original code's value
MODULE_NAME = "Norm"  # prefix by which `all_but_norm` recognises the parameters


class BatchNorm(nn.Module):
    """Batch normalisation that always uses the statistics of the current batch.

    Like the original code it has an offset and, by default, no scale. Statistics are float32 or
    wider.

    Attributes:
        use_scale: whether to add the scale that most other implementations have.
        num_statistics: computes the statistics from the first `num_statistics` inputs alone; None
            for all inputs.
    """

    use_scale: bool = False
    num_statistics: int | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalises inputs [n, ..., C] over all axes but the last."""
        features = x.shape[-1]
        offset = self.param("offset", nn.initializers.zeros_init(), (features,))
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        examples = wide if self.num_statistics is None else wide[: self.num_statistics]
        axes = tuple(range(x.ndim - 1))
        mean = jnp.mean(examples, axes)
        factor = jax.lax.rsqrt(jnp.mean(jnp.square(examples - mean), axes) + EPSILON)
        if self.use_scale:
            factor = factor * self.param("scale", nn.initializers.ones_init(), (features,))
        return ((wide - mean) * factor + offset).astype(x.dtype)


def normalization(
    norm: str, name: str, num_statistics: int | None = None
) -> Callable[[Array], Array]:
    """Makes a normalisation layer; call this inside a Flax module.

    Args:
        norm: one of `NORMS`:

            ============= ==========================================================
            value         normalises
            ============= ==========================================================
            `batch`       over the batch, with an offset only, as the original code
            `batch_scale` over the batch, with offset and scale
            `layer`       over all features of an input
            `group`       over groups of features; the most groups, up to 8, that
                          divide the number of features
            `none`        nothing
            ============= ==========================================================

        name: suffix of the layer's name; the parameters' name is `"Norm"` + name.
        num_statistics: as in `BatchNorm`. The other kinds ignore it: they normalise each input
            separately.
    """
    name = MODULE_NAME + name
    if norm == "none":
        return lambda x: x
    if removes_offsets(norm):
        return BatchNorm(norm == "batch_scale", num_statistics, name=name)
    if norm == "layer":
        # All features of an input, as in the original code; Flax's default is the last axis alone.
        return lambda x: nn.LayerNorm(
            epsilon=EPSILON, reduction_axes=tuple(range(1, x.ndim)), name=name
        )(x)

    def group(x: Array) -> Array:
        groups = max(g for g in range(1, 9) if x.shape[-1] % g == 0)
        return nn.GroupNorm(num_groups=groups, epsilon=EPSILON, name=name)(x)

    return group


def removes_offsets(norm: str) -> bool:
    """Returns whether a normalisation cancels constants that are added to a feature before it."""
    return norm in ("batch", "batch_scale")


def check_norm(norm: str) -> None:
    """Raises a ValueError unless `norm` is one of `NORMS`."""
    checks.check_choice(norm, NORMS, "norm")


def all_but_norm(params: Params) -> PyTree:
    """Returns a mask that excludes offsets and scales of normalisation from the inner loop.

    The original code trains them in the outer loop alone.
    """

    def adapts(path, _):
        return not any(str(getattr(key, "key", "")).startswith(MODULE_NAME) for key in path)

    return jax.tree_util.tree_map_with_path(adapts, params)
