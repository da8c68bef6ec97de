"""Fully connected networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from maml_jax import checks
from maml_jax.kernels import products
from maml_jax.types import Array, Params

INITIALIZERS: dict[str, Callable[..., Array]] = {
    # He et al. 2015: variance 2 / fan-in, which keeps the scale of ReLU layers.
    "he_normal": nn.initializers.he_normal(),
    # What the original code uses: a deviation of 0.01 before it cuts at two deviations.
    "truncated_normal": nn.initializers.truncated_normal(stddev=0.01),
    # Glorot and Bengio 2010 ("Xavier"): the original code's policies.
    "glorot_uniform": nn.initializers.glorot_uniform(),
}


class Network(NamedTuple):
    """A network without hidden state.

    Attributes:
        init: `init(key) -> params`.
        apply: `apply(params, inputs) -> outputs`, for any number of leading axes.
    """

    init: Callable[[Array], Params]
    apply: Callable[[Params, Array], Array]


class _MLP(nn.Module):
    sizes: Sequence[int]
    activation: Callable[[Array], Array]
    kernel_init: Callable[..., Array]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for size in self.sizes[:-1]:
            x = self.activation(self.dense(size)(x))
        return self.dense(self.sizes[-1])(x)

    def dense(self, size: int) -> nn.Dense:
        return nn.Dense(size, kernel_init=self.kernel_init, dot_general=products.dot_general)


def mlp(
    num_inputs: int,
    num_outputs: int,
    hidden_sizes: Sequence[int] = (40, 40),
    *,
    activation: Callable[[Array], Array] = nn.relu,
    initializer: str = "he_normal",
) -> Network:
    """A fully connected network; by default that of the paper's sinusoid (section 5.1).

    Args:
        num_inputs: features of an input, its last axis.
        num_outputs: features of an output.
        hidden_sizes: units of each hidden layer; may be empty, for a linear model.
        activation: after each hidden layer.
        initializer: of the weights, a name in `INITIALIZERS`; biases start at 0.

    Raises:
        ValueError: a size below 1, or an unknown initializer.
        TypeError: a size that is no integer.
    """
    sizes = (num_inputs, *hidden_sizes, num_outputs)
    for size in sizes:
        checks.check_counts(**{"layer sizes": size})
    checks.check_choice(initializer, tuple(INITIALIZERS), "initializer")
    module = _MLP(tuple(sizes[1:]), activation, INITIALIZERS[initializer])

    def init(key: Array) -> Params:
        return module.init(key, jnp.zeros((1, num_inputs)))["params"]

    def apply(params: Params, inputs: Array) -> Array:
        if jnp.shape(inputs)[-1:] != (num_inputs,):
            raise ValueError(
                f"inputs must have {num_inputs} features on their last axis; "
                f"received shape {jnp.shape(inputs)}."
            )
        return module.apply({"params": params}, inputs)  # pyright: ignore[reportReturnType]

    return Network(init, apply)


def num_parameters(params: Params) -> int:
    """How many numbers a parameter pytree holds."""
    return sum(int(getattr(leaf, "size", 1)) for leaf in jax.tree.leaves(params))
