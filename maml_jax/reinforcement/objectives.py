"""Policy-gradient losses on recorded episodes of one task, all with the same first gradient.

They differ in their second derivatives, which the meta-gradient goes through, and in how far the
policy may move from the one that acted. Each is `loss(params, samples) -> (scalar, metrics)`.
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
    """What learning needs of E recorded episodes of one task, time first.

    Attributes:
        observations: [H, E, O].
        actions: [H, E, A], or [H, E] if discrete.
        advantages: [H, E]; 0 for steps that were not taken.
        alive: steps that were taken, bool [H, E].
        distribution: that the actions were drawn from, leaves [H, E, ...].
        metrics: of the collection, scalars: "return" (mean undiscounted return of an episode),
            "explained_variance" of the baseline, "alive" (share of steps taken), "nonfinite"
            (share of episodes that blew up: the environment returned a number that is not finite);
            in a problem's samples also "gradient_norm" (of the inner objective at the parameters
            that acted). What an episode that blew up counts as: `advantages.credited`.
    """

    observations: Array
    actions: Array
    advantages: Array
    alive: Array
    distribution: Any
    metrics: Metrics


def inner_objective(policy: Policy, form: str = "likelihood") -> LossFn:
    """The loss of the inner step, whose gradient is minus that of the expected return.

    ============== ========================================== ====================================
    form           loss, mean over steps                      second derivative
    ============== ========================================== ====================================
    `"likelihood"` `-log pi(a) A`                             biased: what the paper and its code do
    `"lvc"`        `-pi(a) / stop(pi(a)) A`                   low variance; exact for one time step
    `"dice"`       loaded DiCE: earlier actions count too     unbiased, of higher variance
    ============== ========================================== ====================================

    LVC: Rothfuss et al. 2019, ProMP, section 5. DiCE: Foerster et al. 2018, in the form with
    advantages of Farquhar et al. 2019 ("Loaded DiCE"), discount in the causal weights left out.

    Raises:
        ValueError: an unknown form.
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
    """1, with the derivatives of a likelihood ratio."""
    return jnp.exp(log_probs - jax.lax.stop_gradient(log_probs))


def surrogate(policy: Policy, clip: float | None = None) -> LossFn:
    """Minus the likelihood-ratio surrogate of the return, for the outer step.

    Args:
        policy: whose parameters the loss is a function of.
        clip: epsilon of PPO's clipped ratio (Schulman et al. 2017, equation 7); None for none.

    Returns:
        A loss whose metrics are `"kl"`, the mean KL(old || new) in nats at the recorded states, and
        `"ratio"`, the mean likelihood ratio.

    Raises:
        ValueError: a clip that is not above 0.
    """
    if clip is not None:
        check_number("clip", clip, "above 0 and finite, or None", lambda x: 0 < x < math.inf)

    def loss(params: Params, samples: Samples) -> tuple[Array, Metrics]:
        distribution = policy.unroll(params, samples.observations)
        old = samples.distribution.log_prob(samples.actions)
        difference = distribution.log_prob(samples.actions) - old
        ratio = jnp.exp(jnp.where(samples.alive, difference, 0.0))
        gained = ratio * samples.advantages
        if clip is not None:
            bounded = jnp.clip(ratio, 1.0 - clip, 1.0 + clip) * samples.advantages
            gained = jnp.minimum(gained, bounded)
        metrics = {
            "kl": divergence(distribution, samples),
            "ratio": masked_mean(ratio, samples.alive),
        }
        return -masked_mean(gained, samples.alive), metrics

    return loss


def divergence(distribution: Any, samples: Samples) -> Array:
    """Mean KL(old || new) at the recorded states, nats; new: `distribution`, leaves [H, E, ...]."""
    return masked_mean(samples.distribution.kl(distribution), samples.alive)
