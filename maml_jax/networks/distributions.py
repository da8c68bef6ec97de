"""Distributions of actions, as pytrees of their parameters.

What a policy puts out. Leading axes are batch axes; the last axis is that of the action, over which
log-probabilities, divergences and entropies are summed.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp

from maml_jax.types import Array


class Distribution(Protocol):
    """What the policy-gradient estimators need of a distribution, which is a pytree of arrays."""

    def sample(self, key: Array) -> Array:
        """An action for each entry of the batch, [..., A] or [...]."""
        ...

    def log_prob(self, actions: Array) -> Array:
        """Log-probability (or density) of actions, nats, [...]."""
        ...

    def kl(self, other: Self) -> Array:
        """Divergence KL(self || other), nats, [...]."""
        ...

    def entropy(self) -> Array:
        """Entropy, nats, [...]."""
        ...


class Gaussian(NamedTuple):
    """Independent normal distributions, one for each element of the action.

    Attributes:
        mean: [..., A].
        log_std: logarithm of the standard deviation, of a shape that broadcasts against `mean`.
    """

    mean: Array
    log_std: Array

    def sample(self, key: Array) -> Array:
        """An action [..., A] for each entry of the batch."""
        noise = jax.random.normal(key, jnp.shape(self.mean), jnp.result_type(self.mean))
        return self.mean + jnp.exp(self.log_std) * noise

    def log_prob(self, actions: Array) -> Array:
        """Log-density of actions [..., A], nats, summed over the action's elements: [...]."""
        scaled = (actions - self.mean) * jnp.exp(-self.log_std)
        each = -0.5 * scaled**2 - self.log_std - 0.5 * jnp.log(2.0 * jnp.pi)
        return jnp.sum(each, axis=-1)

    def kl(self, other: Gaussian) -> Array:
        """KL(self || other), nats, summed over the action's elements: [...]."""
        ratio = jnp.exp(2.0 * (self.log_std - other.log_std))
        distance = ((self.mean - other.mean) * jnp.exp(-other.log_std)) ** 2
        return jnp.sum(other.log_std - self.log_std + 0.5 * (ratio + distance - 1.0), axis=-1)

    def entropy(self) -> Array:
        """Differential entropy, nats: [...]."""
        each = self.log_std + 0.5 * jnp.log(2.0 * jnp.pi * jnp.e)
        return jnp.sum(jnp.broadcast_to(each, jnp.shape(self.mean)), axis=-1)


class Categorical(NamedTuple):
    """One of A actions; an action is a whole number.

    Attributes:
        logits: unnormalised log-probabilities [..., A].
    """

    logits: Array

    def sample(self, key: Array) -> Array:
        """An action for each entry of the batch: int32 [...]."""
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def log_prob(self, actions: Array) -> Array:
        """Log-probability of actions [...], nats: [...]."""
        table = jax.nn.log_softmax(self.logits)
        return jnp.take_along_axis(table, actions[..., None], axis=-1)[..., 0]

    def kl(self, other: Categorical) -> Array:
        """KL(self || other), nats: [...]."""
        mine, theirs = jax.nn.log_softmax(self.logits), jax.nn.log_softmax(other.logits)
        return jnp.sum(jnp.exp(mine) * (mine - theirs), axis=-1)

    def entropy(self) -> Array:
        """Entropy, nats: [...]."""
        table = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(table) * table, axis=-1)
