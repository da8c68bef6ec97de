"""Policy-gradient losses on recorded episodes of one task: `loss(params, samples)`.

All have the same gradient at the policy that acted. They differ in their second derivatives, which
enter the meta-gradient, and in how far the policy may move from the one that acted.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from maml_jax import checks
from maml_jax.networks import Policy
from maml_jax.reinforcement.advantages import masked_mean
from maml_jax.reinforcement.checks import check_number
from maml_jax.types import Array, LossFn, Metrics, Params

INNER_OBJECTIVES = ("likelihood", "lvc", "dice")


class Samples(NamedTuple):
    """E recorded episodes of one task with their advantages, time axis first.

    Attributes:
        observations: observations before each step [H, E, O].
        actions: actions [H, E, A], or [H, E] if discrete.
        advantages: advantages [H, E]; 0 after an episode's end.
        alive: mask of the steps taken, bool [H, E].
        distribution: distribution that the actions were drawn from, leaves [H, E, ...].
        metrics: scalars of the collection: "return" (mean undiscounted return of an episode, with
            the penalties of `Trajectories.returns`), "explained_variance" of the baseline, "alive"
            (share of steps taken), "nonfinite" (share of episodes that blew up). In a problem's
            samples also "gradient_norm", of the inner objective at the parameters that acted.

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.networks import Categorical
        >>> from maml_jax.reinforcement import Samples
        >>> samples = Samples(
        ...     observations=jnp.zeros((1, 2, 1)),
        ...     actions=jnp.array([[0, 1]]),
        ...     advantages=jnp.array([[1.0, -1.0]]),
        ...     alive=jnp.ones((1, 2), bool),
        ...     distribution=Categorical(jnp.zeros((1, 2, 3))),
        ...     metrics={},
        ... )
        >>> samples.distribution.log_prob(samples.actions).shape
        (1, 2)
    """

    observations: Array
    actions: Array
    advantages: Array
    alive: Array
    distribution: Any
    metrics: Metrics


def inner_objective(policy: Policy, form: str = "likelihood") -> LossFn:
    """Makes the loss of the inner step: its gradient estimates minus that of the expected return.

    ============== ========================================== ===================================
    form           loss, mean over steps                      second derivative
    ============== ========================================== ===================================
    `"likelihood"` `-log pi(a) A`                             biased (the paper and its code)
    `"lvc"`        `-pi(a) / stop(pi(a)) A`                   low variance; exact for a time step
    `"dice"`       loaded DiCE: weights of all past actions   unbiased, of higher variance
    ============== ========================================== ===================================

    LVC: Rothfuss et al. 2019, ProMP, section 5. DiCE: Foerster et al. 2018, with the advantages of
    Farquhar et al. 2019 ("Loaded DiCE"), but without a discount in the causal weights.

    Args:
        policy: the policy whose parameters the loss takes.
        form: a name in `INNER_OBJECTIVES`, see the table.

    Returns:
        `loss(params, samples) -> (scalar, {})`.

    Raises:
        ValueError: an unknown form.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from maml_jax.networks import Categorical, memoryless_policy
        >>> from maml_jax.reinforcement import Samples, inner_objective
        >>> policy = memoryless_policy(
        ...     lambda key: jnp.zeros(2),
        ...     lambda logits, x: Categorical(jnp.broadcast_to(logits, (*x.shape[:-1], 2))),
        ... )
        >>> acted = Categorical(jnp.zeros((1, 2, 2)))
        >>> actions, advantages = jnp.array([[0, 1]]), jnp.array([[1.0, -1.0]])
        >>> alive = jnp.ones((1, 2), bool)
        >>> samples = Samples(jnp.zeros((1, 2, 1)), actions, advantages, alive, acted, {})
        >>> gradient, _ = jax.grad(inner_objective(policy), has_aux=True)(jnp.zeros(2), samples)
        >>> gradient.tolist()
        [-0.5, 0.5]
    """
    checks.check_choice(form, INNER_OBJECTIVES, "the inner objective")

    def loss(params: Params, samples: Samples) -> tuple[Array, Metrics]:
        log_probs = policy.unroll(params, samples.observations).log_prob(samples.actions)
        log_probs = jnp.where(samples.alive, log_probs, 0.0)
        if form == "likelihood":
            weights = log_probs
        elif form == "lvc":
            weights = _magic_box(log_probs)
        else:
            so_far = jnp.cumsum(log_probs, axis=0)
            weights = _magic_box(so_far) - _magic_box(so_far - log_probs)
        return -masked_mean(weights * samples.advantages, samples.alive), {}

    return loss


def _magic_box(log_probs: Array) -> Array:
    """Returns 1 with the derivatives of the likelihood ratio."""
    return jnp.exp(log_probs - jax.lax.stop_gradient(log_probs))


def surrogate(policy: Policy, clip: float | None = None) -> LossFn:
    """Makes the loss of the outer step: minus the likelihood-ratio surrogate of the return.

    Args:
        policy: the policy whose parameters the loss takes.
        clip: epsilon of PPO's clipped ratio (Schulman et al. 2017, equation 7); None for no clip.

    Returns:
        `loss(params, samples) -> (scalar, metrics)`. Metrics: "kl", the mean KL(old || new) at the
        recorded states in nats; "ratio", the mean likelihood ratio.

    Raises:
        ValueError: a clip that is not above 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.networks import Categorical, memoryless_policy
        >>> from maml_jax.reinforcement import Samples, surrogate
        >>> policy = memoryless_policy(
        ...     lambda key: jnp.zeros(2),
        ...     lambda logits, x: Categorical(jnp.broadcast_to(logits, (*x.shape[:-1], 2))),
        ... )
        >>> acted = Categorical(jnp.zeros((1, 2, 2)))
        >>> actions, advantages = jnp.array([[0, 1]]), jnp.array([[1.0, 0.0]])
        >>> alive = jnp.ones((1, 2), bool)
        >>> samples = Samples(jnp.zeros((1, 2, 1)), actions, advantages, alive, acted, {})
        >>> loss, metrics = surrogate(policy, clip=0.2)(jnp.zeros(2), samples)
        >>> round(float(loss), 3), round(float(metrics["ratio"]), 3)
        (-0.5, 1.0)
    """
    if clip is not None:
        check_number("clip", clip, "above 0 and finite, or None", lambda x: 0 < x < math.inf)

    def loss(params: Params, samples: Samples) -> tuple[Array, Metrics]:
        distribution = policy.unroll(params, samples.observations)
        old = samples.distribution.log_prob(samples.actions)
        difference = distribution.log_prob(samples.actions) - old
        ratio = jnp.exp(jnp.where(samples.alive, difference, 0.0))
        weighted = ratio * samples.advantages
        if clip is not None:
            bounded = jnp.clip(ratio, 1.0 - clip, 1.0 + clip) * samples.advantages
            weighted = jnp.minimum(weighted, bounded)
        metrics = {
            "kl": divergence(distribution, samples),
            "ratio": masked_mean(ratio, samples.alive),
        }
        return -masked_mean(weighted, samples.alive), metrics

    return loss


def divergence(distribution: Any, samples: Samples) -> Array:
    """Returns the mean KL(old || new) at the recorded states, nats.

    Args:
        distribution: the new distribution, leaves [H, E, ...].
        samples: recorded episodes; their distribution is the old one.
    """
    return masked_mean(samples.distribution.kl(distribution), samples.alive)
