"""Image classifiers: the paper's convolutional and fully connected networks (section 5.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn

from maml_jax import checks, types
from maml_jax.kernels import convolutions, products
from maml_jax.networks import normalization
from maml_jax.types import Array, Params, PyTree

POOLINGS = ("stride", "max")
HEADS: dict[str, Callable[..., Array]] = {
    "normal": nn.initializers.normal(1.0),  # the original code's for Omniglot
    "xavier": nn.initializers.xavier_uniform(),  # the original code's for MiniImagenet
    "truncated_normal": nn.initializers.truncated_normal(0.01),  # its fully connected network's
    "zeros": nn.initializers.zeros_init(),
}


class ImageApply(Protocol):
    """The signature of `ImageNetwork.apply`."""

    def __call__(
        self,
        params: Params,
        images: Array,
        *,
        num_statistics: int | None = None,
        features: bool = False,
    ) -> Array:
        """Returns logits [n, N] of images [n, H, W, C].

        Args:
            params: of the network.
            images: float [n, H, W, C].
            num_statistics: computes the statistics of batch normalisation from the first
                `num_statistics` images alone; None for all images.
            features: whether to return the inputs of the head [n, features] instead of logits.
        """
        ...


class ImageNetwork(NamedTuple):
    """An image classifier as three pure functions.

    Attributes:
        init: `init(key) -> params`.
        apply: `apply(params, images, num_statistics=None, features=False)`, see `ImageApply`.
        mask: `mask(params)` marks the leaves that the inner loop adapts; pass it as `mask=` to the
            core.

    Example:
        >>> import jax
        >>> from maml_jax.networks import fully_connected
        >>> network = fully_connected((4, 4, 1), num_outputs=2, hidden_sizes=(3,))
        >>> params = jax.eval_shape(network.init, jax.random.key(0))  # shapes without compiling
        >>> network.mask(params)["Norm_0"]  # the outer loop alone trains offsets
        {'offset': False}
    """

    init: Callable[[Array], Params]
    apply: ImageApply
    mask: Callable[[Params], PyTree]


class _Convolutional(nn.Module):
    num_outputs: int
    num_filters: int
    num_layers: int
    pooling: str
    norm: str
    lowering: str | None
    head: str
    dtype: Any
    num_statistics: int | None
    features: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        strides = 2 if self.pooling == "stride" else 1
        for i in range(self.num_layers):
            x = nn.Conv(
                self.num_filters,
                (3, 3),
                strides,
                padding="SAME",
                use_bias=_has_effect(self),
                dtype=self.dtype,
                kernel_init=nn.initializers.xavier_uniform(),
                conv_general_dilated=convolutions.convolution(self.lowering),
                name=f"Conv_{i}",
            )(x)
            x = nn.relu(normalization.normalization(self.norm, f"_{i}", self.num_statistics)(x))
            if self.pooling == "max":
                x = max_pool(x)
        x = jnp.mean(x, (1, 2)) if self.pooling == "stride" else x.reshape(x.shape[0], -1)
        return _head(self, x)


class _FullyConnected(nn.Module):
    num_outputs: int
    hidden_sizes: Sequence[int]
    norm: str
    head: str
    dtype: Any
    num_statistics: int | None
    features: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.reshape(x.shape[0], -1)
        for i, size in enumerate(self.hidden_sizes):
            x = nn.Dense(
                size,
                use_bias=_has_effect(self),
                dtype=self.dtype,
                kernel_init=HEADS["truncated_normal"],
                dot_general=products.dot_general,
                name=f"Dense_{i}",
            )(x)
            x = nn.relu(normalization.normalization(self.norm, f"_{i}", self.num_statistics)(x))
        return _head(self, x)


def _has_effect(module: Any) -> bool:
    """Returns whether to add the bias before a normalisation.

    The paper's networks have this bias, so `init` creates it. Batch normalisation subtracts it with
    the mean, and its gradient is 0. Skipping it saves up to an eighth of a meta-step on a CPU.
    """
    return module.is_initializing() or not normalization.removes_offsets(module.norm)


def _head(module: Any, x: Array) -> Array:
    """Returns features, or their logits by a linear layer, in float32 or wider."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    head = nn.Dense(
        module.num_outputs,
        kernel_init=HEADS[module.head],
        dot_general=products.dot_general,
        name="Head",
    )
    return x if module.features else head(x)


def max_pool(x: Array) -> Array:
    """Takes the maximum of each 2x2 block of [n, H, W, C]; drops an odd last row or column."""
    rows, columns = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    tops = jnp.maximum(x[:, 0:rows:2, :columns], x[:, 1:rows:2, :columns])
    return jnp.maximum(tops[:, :, 0::2], tops[:, :, 1::2])


def convolutional(
    image_shape: tuple[int, int, int],
    num_outputs: int,
    *,
    num_filters: int = 64,
    num_layers: int = 4,
    pooling: str = "stride",
    norm: str = "batch",
    adapt_norm: bool = False,
    head: str | None = None,
    lowering: str | None = None,
    dtype: Any = None,
) -> ImageNetwork:
    """Builds a convolutional classifier: layers of convolution and pooling, and a linear head.

    A layer is a 3x3 convolution, normalisation, ReLU and pooling. The defaults are the paper's
    network for Omniglot; `pooling="max", num_filters=32` is its network for MiniImagenet.
    Departure: batch normalisation cancels the convolutions' biases, so they are not added.

    Args:
        image_shape: H, W, C.
        num_outputs: N, classes of an episode.
        num_filters: of each layer.
        num_layers: number of convolutional layers.
        pooling: `"stride"`: convolutions of stride 2, and the mean over pixels as features;
            `"max"`: 2x2 max-pooling after each layer, and all remaining pixels as features.
        norm: one of `normalization.NORMS`.
        adapt_norm: whether the inner loop adapts offsets and scales of normalisation.
        head: initialiser of the head's weights, a name in `HEADS`. None for the original code's:
            `"normal"` with strides, `"xavier"` with max-pooling.
        lowering: of convolutions, one of `convolutions.LOWERINGS`; None for the platform's default.
        dtype: of activations, for example `jnp.bfloat16`. Parameters, updates, statistics and
            logits stay float32.

    Raises:
        ValueError: an unknown choice, a count below 1, or images too small for the poolings; (from
            `apply`) images of another shape.
        TypeError: a count that is not an integer; (from `apply`) images that are not floats.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from maml_jax.networks import convolutional
        >>> network = convolutional((28, 28, 1), num_outputs=5)
        >>> params = jax.eval_shape(network.init, jax.random.key(0))  # shapes without compiling
        >>> params["Conv_0"]["kernel"].shape, params["Head"]["kernel"].shape
        ((3, 3, 1, 64), (64, 5))
        >>> jax.eval_shape(network.apply, params, jnp.zeros((10, 28, 28, 1))).shape
        (10, 5)
    """
    checks.check_choice(pooling, POOLINGS, "pooling")
    head = {"stride": "normal", "max": "xavier"}[pooling] if head is None else head
    _check(image_shape, norm, head, num_outputs=num_outputs, num_filters=num_filters,
           num_layers=num_layers)  # fmt: skip
    if lowering is not None:
        checks.check_choice(lowering, convolutions.LOWERINGS, "lowering")
    if pooling == "max" and min(image_shape[:2]) < 2**num_layers:
        raise ValueError(
            f"images of {image_shape[0]}x{image_shape[1]} are too small for {num_layers} times 2x2 "
            f"max-pooling: expected {2**num_layers} or more pixels on each side."
        )

    def module(num_statistics: int | None = None, features: bool = False) -> nn.Module:
        sizes = num_outputs, num_filters, num_layers
        return _Convolutional(
            *sizes, pooling, norm, lowering, head, dtype, num_statistics, features
        )

    return _network(module, image_shape, adapt_norm)


def fully_connected(
    image_shape: tuple[int, int, int],
    num_outputs: int,
    hidden_sizes: Sequence[int] = (256, 128, 64, 64),
    *,
    norm: str = "batch",
    adapt_norm: bool = False,
    head: str = "truncated_normal",
    dtype: Any = None,
) -> ImageNetwork:
    """Builds the paper's classifier without convolutions: linear layers, normalisation and ReLU.

    `hidden_sizes` are the units of the layers. Other arguments and errors: see `convolutional`.

    Example:
        >>> import jax
        >>> from maml_jax.networks import fully_connected
        >>> network = fully_connected((28, 28, 1), num_outputs=5)
        >>> params = jax.eval_shape(network.init, jax.random.key(0))  # shapes without compiling
        >>> params["Dense_0"]["kernel"].shape, params["Head"]["kernel"].shape
        ((784, 256), (64, 5))
    """
    sizes = {f"hidden_sizes[{i}]": size for i, size in enumerate(hidden_sizes)}
    _check(image_shape, norm, head, num_outputs=num_outputs, **sizes)

    def module(num_statistics: int | None = None, features: bool = False) -> nn.Module:
        return _FullyConnected(
            num_outputs, tuple(hidden_sizes), norm, head, dtype, num_statistics, features
        )

    return _network(module, image_shape, adapt_norm)


def _check(image_shape: tuple[int, int, int], norm: str, head: str, **counts: int) -> None:
    if len(image_shape) != 3:
        raise ValueError(f"image_shape must be (H, W, C); received {image_shape}.")
    normalization.check_norm(norm)
    checks.check_choice(head, tuple(HEADS), "head")
    checks.check_counts(**{f"image_shape[{i}]": size for i, size in enumerate(image_shape)})
    checks.check_counts(**counts)


def _network(
    module: Callable[..., nn.Module], image_shape: tuple[int, int, int], adapt_norm: bool
) -> ImageNetwork:
    def init(key: Array) -> Params:
        return module().init(key, jnp.zeros((1, *image_shape)))["params"]

    def apply(
        params: Params, images: Array, *, num_statistics: int | None = None, features: bool = False
    ) -> Array:
        if jnp.ndim(images) != 4 or jnp.shape(images)[1:] != tuple(image_shape):
            raise ValueError(
                f"images must have shape [n, {', '.join(map(str, image_shape))}]; "
                f"received {jnp.shape(images)}."
            )
        if not types.is_float(images):
            raise TypeError(
                "images must be floating point, scaled as in training (episode_sampler scales to "
                f"0 to 1); received {jnp.result_type(images)}. Divide bytes by 255."
            )
        return module(num_statistics, features).apply({"params": params}, images)  # pyright: ignore

    def mask(params: Params) -> PyTree:
        if adapt_norm:
            return jax.tree.map(lambda _: True, params)
        return normalization.all_but_norm(params)

    return ImageNetwork(init, apply, mask)
