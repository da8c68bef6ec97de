"""Advantage estimation: turns the recorded episodes of one task into samples for the losses."""

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
    """Settings of the advantage estimation.

    Rewards beyond a time limit count as 0, as in the original code: the linear baseline is fitted
    to returns that end at the limit, and cannot predict later ones.

    Attributes:
        discount: gamma, from 0 to 1.
        gae_lambda: lambda of generalised advantage estimation, from 0 to 1; 1 for whole returns.
        use_baseline: whether to subtract the linear feature baseline.
        normalize: whether to scale the advantages of each task to mean 0 and standard deviation 1.
        advantages: the estimator, with the arguments of `advantages.generalized_advantages`.

    Example:
        >>> from maml_jax.reinforcement import Estimation
        >>> Estimation(discount=0.95).gae_lambda
        1.0
    """

    discount: float = 0.99
    gae_lambda: float = 1.0
    use_baseline: bool = True
    normalize: bool = True
    advantages: Callable[..., Array] = advantages_lib.generalized_advantages


def check_estimation(estimation: Estimation) -> None:
    """Raises a TypeError for another type, or a ValueError for the first field out of range."""
    if not isinstance(estimation, Estimation):
        raise TypeError(f"estimation must be an Estimation; received {estimation!r}.")
    for name in ("discount", "gae_lambda"):
        check_number(name, getattr(estimation, name), "from 0 to 1", lambda x: 0 <= x <= 1)


def to_samples(trajectories: Trajectories, estimation: Estimation = Estimation()) -> Samples:  # noqa: B008
    """Fits the baseline to the episodes of one task and estimates their advantages.

    With a baseline or normalisation, all advantages are 0 where returns differ by rounding errors
    only (`advantages.has_signal`): scaled rounding errors would set a random direction.
    `advantages.credited` sets the rewards of episodes that blew up.

    Args:
        trajectories: E recorded episodes of one task.
        estimation: settings of the advantages.

    Returns:
        Samples of the same episodes.

    Raises:
        ValueError: a discount or lambda outside 0 to 1, episodes of several tasks, or advantages
            of another shape from the estimator.
        TypeError: `estimation` is not an `Estimation`.

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.networks import Gaussian
        >>> from maml_jax.reinforcement import Estimation, Trajectories, to_samples
        >>> zeros, alive = jnp.zeros((2, 2, 1)), jnp.array([[True, True], [True, False]])
        >>> rewards = jnp.array([[-1.0, -2.0], [-1.0, 0.0]])  # [H, E]
        >>> nonfinite = jnp.zeros(2, bool)
        >>> t = Trajectories(zeros, zeros, rewards, alive, Gaussian(zeros, zeros), nonfinite)
        >>> samples = to_samples(t, Estimation(1.0, use_baseline=False, normalize=False))
        >>> samples.advantages.tolist()
        [[-2.0, -2.0], [-1.0, 0.0]]
        >>> float(samples.metrics["return"])
        -2.0
    """
    t = trajectories
    check_estimation(estimation)
    if t.rewards.ndim != 2:
        raise ValueError(
            "to_samples takes the episodes of one task, rewards of shape (H, E); received "
            f"{t.rewards.shape}. Use jax.vmap for several tasks."
        )
    rewards = advantages_lib.credited(t.rewards, t.alive, t.nonfinite, estimation.discount)
    returns = advantages_lib.discounted_returns(rewards, estimation.discount)
    explained, values = jnp.zeros(()), jnp.zeros_like(rewards)
    if estimation.use_baseline:
        baseline = advantages_lib.fit_baseline(t.observations, returns, t.alive)
        explained = baseline.explained_variance
        values = advantages_lib.predict(baseline, t.observations)
    advantages = estimation.advantages(
        rewards, values, t.alive, estimation.discount, estimation.gae_lambda
    )
    if jnp.shape(advantages) != rewards.shape:
        raise ValueError(
            f"Estimation.advantages must return the shape of the rewards, {rewards.shape}; "
            f"received {jnp.shape(advantages)}."
        )
    if estimation.normalize:
        advantages = advantages_lib.normalized(advantages, t.alive)
    if estimation.normalize or estimation.use_baseline:
        signal = advantages_lib.has_signal(rewards, t.alive, estimation.discount)
        advantages = jnp.where(signal, advantages, 0.0)
    metrics = {
        "return": jnp.mean(t.returns),
        "explained_variance": explained,
        "alive": jnp.mean(t.alive.astype(t.rewards.dtype)),
        "nonfinite": jnp.mean(t.nonfinite.astype(t.rewards.dtype)),
    }
    return Samples(t.observations, t.actions, advantages, t.alive, t.distribution, metrics)
