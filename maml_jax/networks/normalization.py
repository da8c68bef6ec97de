"""Normalisation of features, as few-shot learning uses it: without running statistics."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from maml_jax import checks
from maml_jax.types import Array, Params, PyTree

NORMS = ("batch", "batch_scale", "layer", "group", "none")
EPSILON = 1e-3  # as the original code
MODULE_NAME = "Norm"  # names the parameters of normalisation


class BatchNorm(nn.Module):
    """Batch normalisation with the statistics of the current set, always.

    As in the original code there is an offset and no scale. Statistics are taken in float32.

    Attributes:
        use_scale: whether to have a scale, too, which most other implementations have.
        num_statistics: the statistics are those of the first so many inputs; None for all of them.
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
    """The module of a kind of normalisation, to be called inside a Flax module.

    Args:
        norm: `"batch"` (offset only, as the original), `"batch_scale"`, `"layer"`, `"group"` (the
            most groups up to 8 that divide the features), or `"none"`.
        name: of the layer; parameters are found under `Norm` + name.
        num_statistics: as in `BatchNorm`; other kinds treat every input by itself.
    """
    name = MODULE_NAME + name
    if norm == "none":
        return lambda x: x
    if removes_offsets(norm):
        return BatchNorm(norm == "batch_scale", num_statistics, name=name)
    if norm == "layer":
        # Over all features of an input, as the original's option; flax's default is the last axis.
        return lambda x: nn.LayerNorm(
            epsilon=EPSILON, reduction_axes=tuple(range(1, x.ndim)), name=name
        )(x)

    def group(x: Array) -> Array:
        groups = max(g for g in range(1, 9) if x.shape[-1] % g == 0)
        return nn.GroupNorm(num_groups=groups, epsilon=EPSILON, name=name)(x)

    return group


def removes_offsets(norm: str) -> bool:
    """Whether what is added to a feature of all inputs alike has no effect on what comes out."""
    return norm in ("batch", "batch_scale")


def check_norm(norm: str) -> None:
    """Raises a ValueError unless `norm` is one of `NORMS`."""
    checks.check_choice(norm, NORMS, "norm")


def all_but_norm(params: Params) -> PyTree:
    """A mask for the inner loop that leaves offsets and scales of normalisation out.

    In the original code these are trained by the outer loop alone.
    """

    def adapts(path, _):
        return not any(str(getattr(key, "key", "")).startswith(MODULE_NAME) for key in path)

    return jax.tree_util.tree_map_with_path(adapts, params)
