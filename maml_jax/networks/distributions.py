"""Action distributions, the outputs of policies, as pytrees of their parameters.

Leading axes are batch axes. The last axis of size A belongs to the action: log-probabilities,
divergences and entropies sum over it.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp

from maml_jax.types import Array


class Distribution(Protocol):
    """The interface that policy-gradient estimators use; implementations are pytrees of arrays."""

    def sample(self, key: Array) -> Array:
        """Draws an action for each entry of the batch: [..., A] or [...]."""
        ...

    def log_prob(self, actions: Array) -> Array:
        """Returns the log-probability or log-density of actions, nats: [...]."""
        ...

    def kl(self, other: Self) -> Array:
        """Returns the divergence KL(self || other), nats: [...]."""
        ...

    def entropy(self) -> Array:
        """Returns the entropy, nats: [...]."""
        ...


class Gaussian(NamedTuple):
    """A normal distribution with diagonal covariance over actions [A].

    Attributes:
        mean: [..., A].
        log_std: logarithm of the standard deviation; its shape broadcasts to that of `mean`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from maml_jax.networks import Gaussian
        >>> gaussian = Gaussian(mean=jnp.zeros((4, 2)), log_std=jnp.zeros(2))
        >>> gaussian.sample(jax.random.key(0)).shape
        (4, 2)
        >>> gaussian.kl(gaussian).tolist()
        [0.0, 0.0, 0.0, 0.0]
        >>> round(float(gaussian.entropy()[0]), 3)  # log(2 pi e), half of it for each element
        2.838
    """

    mean: Array
    log_std: Array

    def sample(self, key: Array) -> Array:
        """Draws an action [..., A] for each entry of the batch."""
        noise = jax.random.normal(key, jnp.shape(self.mean), jnp.result_type(self.mean))
        return self.mean + jnp.exp(self.log_std) * noise

    def log_prob(self, actions: Array) -> Array:
        """Returns the log-density of actions [..., A], nats, summed over A: [...]."""
        scaled = (actions - self.mean) * jnp.exp(-self.log_std)
        each = -0.5 * scaled**2 - self.log_std - 0.5 * jnp.log(2.0 * jnp.pi)
        return jnp.sum(each, axis=-1)

    def kl(self, other: Gaussian) -> Array:
        """Returns KL(self || other), nats, summed over A: [...]."""
        ratio = jnp.exp(2.0 * (self.log_std - other.log_std))
        distance = ((self.mean - other.mean) * jnp.exp(-other.log_std)) ** 2
        return jnp.sum(other.log_std - self.log_std + 0.5 * (ratio + distance - 1.0), axis=-1)

    def entropy(self) -> Array:
        """Returns the differential entropy, nats, summed over A: [...]."""
        each = self.log_std + 0.5 * jnp.log(2.0 * jnp.pi * jnp.e)
        return jnp.sum(jnp.broadcast_to(each, jnp.shape(self.mean)), axis=-1)


class Categorical(NamedTuple):
    """A distribution over A discrete actions, the integers from 0 to A - 1.

    Attributes:
        logits: unnormalised log-probabilities [..., A].

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.networks import Categorical
        >>> uniform = Categorical(logits=jnp.zeros((2, 4)))
        >>> jnp.exp(uniform.log_prob(jnp.array([0, 3]))).round(3).tolist()
        [0.25, 0.25]
        >>> round(float(uniform.entropy()[0]), 3)  # log(4)
        1.386
    """

    logits: Array

    def sample(self, key: Array) -> Array:
        """Draws an action for each entry of the batch: int32 [...]."""
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def log_prob(self, actions: Array) -> Array:
        """Returns the log-probability of actions [...], nats: [...]."""
        table = jax.nn.log_softmax(self.logits)
        return jnp.take_along_axis(table, actions[..., None], axis=-1)[..., 0]

    def kl(self, other: Categorical) -> Array:
        """Returns KL(self || other), nats: [...]."""
        mine, theirs = jax.nn.log_softmax(self.logits), jax.nn.log_softmax(other.logits)
        return jnp.sum(jnp.exp(mine) * (mine - theirs), axis=-1)

    def entropy(self) -> Array:
        """Returns the entropy, nats: [...]."""
        table = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(table) * table, axis=-1)
