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
    # He et al. 2015: a variance of 2 / fan-in preserves the scale of activations under ReLU.
    "he_normal": nn.initializers.he_normal(),
    # The original code's: a standard deviation of 0.01, truncated at two standard deviations.
    "truncated_normal": nn.initializers.truncated_normal(stddev=0.01),
    # Glorot and Bengio 2010 ("Xavier"): the original code's for policies.
    "glorot_uniform": nn.initializers.glorot_uniform(),
}


class Network(NamedTuple):
    """A network as two pure functions.

    Attributes:
        init: `init(key) -> params`.
        apply: `apply(params, inputs) -> outputs`, for any number of leading axes.

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.networks import Network
        >>> line = Network(
        ...     init=lambda key: {"slope": jnp.zeros(())},
        ...     apply=lambda params, inputs: params["slope"] * inputs,
        ... )
        >>> line.apply({"slope": 2.0}, jnp.array([[1.0], [3.0]])).tolist()
        [[2.0], [6.0]]
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
    """Builds a fully connected network; the defaults are the paper's for sinusoids (section 5.1).

    Args:
        num_inputs: size of the last axis of inputs.
        num_outputs: size of the last axis of outputs.
        hidden_sizes: units of each hidden layer; empty for a linear model.
        activation: follows each hidden layer.
        initializer: of the weights, a name in `INITIALIZERS`. Biases start at 0.

    Raises:
        ValueError: a size below 1, or an unknown initializer; (from `apply`) inputs with another
            number of features.
        TypeError: a size that is not an integer.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from maml_jax.networks import mlp
        >>> network = mlp(1, 2, hidden_sizes=(4,))
        >>> params = network.init(jax.random.key(0))
        >>> jax.tree.map(jnp.shape, params["Dense_0"])
        {'bias': (4,), 'kernel': (1, 4)}
        >>> network.apply(params, jnp.ones((3, 1))).shape
        (3, 2)
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
    """Counts the numbers in a parameter pytree.

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.networks import num_parameters
        >>> num_parameters({"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)})
        16
    """
    return sum(int(getattr(leaf, "size", 1)) for leaf in jax.tree.leaves(params))
