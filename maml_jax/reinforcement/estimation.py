"""From recorded episodes to samples: how the advantages of one task's episodes are estimated."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from maml_jax.reinforcement import advantages as advantages_lib
from maml_jax.reinforcement.checks import check_number
from maml_jax.reinforcement.objectives import Samples
from maml_jax.reinforcement.rollout import Trajectories
from maml_jax.types import Array


class Estimation(NamedTuple):
    """How advantages are estimated from recorded episodes.

    What a time limit cuts off counts as 0, as in the original code: the linear baseline, fitted to
    returns that end there, knows no value of it.

    Attributes:
        discount: gamma, from 0 to 1.
        gae_lambda: of generalised advantage estimation, from 0 to 1; 1 for the whole return.
        use_baseline: whether to subtract the linear feature baseline.
        normalize: whether advantages of a task get mean 0 and deviation 1.
        advantages: the estimator, with the arguments of `advantages.generalized_advantages`.
    """

    discount: float = 0.99
    gae_lambda: float = 1.0
    use_baseline: bool = True
    normalize: bool = True
    advantages: Callable[..., Array] = advantages_lib.generalized_advantages


def check_estimation(estimation: Estimation) -> None:
    """Raises a ValueError or TypeError that names the first field that is out of range."""
    if not isinstance(estimation, Estimation):
        raise TypeError(f"estimation must be an Estimation; received {estimation!r}.")
    for name in ("discount", "gae_lambda"):
        check_number(name, getattr(estimation, name), "from 0 to 1", lambda x: 0 <= x <= 1)


def to_samples(trajectories: Trajectories, estimation: Estimation = Estimation()) -> Samples:  # noqa: B008
    """Fits the baseline to the episodes of one task, and estimates their advantages by it.

    Advantages are 0 where the episodes say nothing about actions (`advantages.has_signal`): what a
    baseline or a normalisation would make of their rounding is no direction to go. Plain returns,
    without either, stay as they are. Episodes that blew up count as `advantages.credited` says.

    Raises:
        ValueError: a discount or lambda outside 0 to 1, episodes of several tasks, or an estimator
            whose advantages have another shape.
        TypeError: `estimation` is no `Estimation`.
    """
    t, how = trajectories, estimation
    check_estimation(how)
    if t.rewards.ndim != 2:
        raise ValueError(
            "to_samples takes the episodes of one task, rewards of shape (H, E); received "
            f"{t.rewards.shape}. Put it under jax.vmap for several tasks."
        )
    rewards = advantages_lib.credited(t.rewards, t.alive, t.nonfinite, how.discount)
    returns = advantages_lib.discounted_returns(rewards, how.discount)
    explained, values = jnp.zeros(()), jnp.zeros_like(rewards)
    if how.use_baseline:
        baseline = advantages_lib.fit_baseline(t.observations, returns, t.alive)
        explained = baseline.explained_variance
        values = advantages_lib.predict(baseline, t.observations)
    advantages = how.advantages(rewards, values, t.alive, how.discount, how.gae_lambda)
    if jnp.shape(advantages) != rewards.shape:
        raise ValueError(
            f"Estimation.advantages must return the shape of the rewards, {rewards.shape}; "
            f"received {jnp.shape(advantages)}."
        )
    if how.normalize:
        advantages = advantages_lib.normalized(advantages, t.alive)
    if how.normalize or how.use_baseline:
        signal = advantages_lib.has_signal(rewards, t.alive, how.discount)
        advantages = jnp.where(signal, advantages, 0.0)
    metrics = {
        "return": jnp.mean(t.returns),
        "explained_variance": explained,
        "alive": jnp.mean(t.alive.astype(t.rewards.dtype)),
        "nonfinite": jnp.mean(t.nonfinite.astype(t.rewards.dtype)),
    }
    return Samples(t.observations, t.actions, advantages, t.alive, t.distribution, metrics)
