"""Baselines for sinusoid regression: joint pretraining, and averages of single-task networks."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from maml_jax import checks
from maml_jax.networks import Network
from maml_jax.regression.losses import Examples, mean_squared_error
from maml_jax.regression.sinusoid import Sinusoid, examples, sample_inputs
from maml_jax.types import Array, LossFn, Metrics, Params, Task, TaskLoss

REGULARIZERS = ("none", "l2", "to_mean")


def multi_task_loss(loss_fn: LossFn) -> TaskLoss:
    """Makes the pretraining loss: the loss on all points of a task, without adaptation.

    With `informed` inputs it trains the oracle. Support and query points have equal weight, so a
    baseline uses as much data a meta-step as MAML.

    Args:
        loss_fn: `loss_fn(params, batch) -> (loss, metrics)`.
    """

    def task_loss(params: Params, task: Task) -> tuple[Array, Metrics]:
        every = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), task.support, task.query)
        loss, metrics = loss_fn(params, every)
        return loss, dict(metrics)

    return task_loss


def tune_inner_lr(curve: Callable[[Array], Array], candidates: Array) -> tuple[Array, Array]:
    """Selects the step size for fine-tuning a baseline on validation tasks.

    Args:
        curve: `curve(inner_lr) -> loss [S + 1]` after 0 to S steps, averaged over validation tasks.
        candidates: step sizes, one axis.

    Returns:
        The candidate with the smallest loss averaged over steps 1 to S, and this average for each
        candidate. A loss that is not finite counts as infinite.
    """
    scores = jax.lax.map(lambda rate: jnp.mean(curve(rate)[1:]), candidates)
    scores = jnp.where(jnp.isfinite(scores), scores, jnp.inf)
    return candidates[jnp.argmin(scores)], scores


def init_many(network: Network, key: Array, num_networks: int) -> Params:
    """Draws the parameters of M networks, each from a separate key; leaves [M, ...]."""
    checks.check_counts(num_networks=num_networks)
    return jax.vmap(network.init)(jax.random.split(key, num_networks))


def sample_single_task_batches(num_points: int) -> Callable[..., Task]:
    """Makes a sampler that trains M networks together, each on new points of one sinusoid.

    Args:
        num_points: in the batch of each network.

    Returns:
        `sample(params, key, sinusoids) -> Task` for `training.make_train_fn` with `num_tasks=1`.
        The query batch has leaves [M, num_points, 1]; the support is empty.
    """

    def sample(params: Params, key: Array, sinusoids: Sinusoid) -> Task:
        del params
        keys = jax.random.split(key, sinusoids.amplitude.shape[0])
        points = jax.vmap(lambda s, k: examples(s, sample_inputs(k, num_points)))(sinusoids, keys)
        return Task((), points)

    return sample


def single_task_loss(network: Network, regularizer: str, coefficient: float) -> TaskLoss:
    """Makes the summed loss of M networks, network m with parameters m on task m.

    Departure: the paper (appendix C) trains the networks in sequence and regularises towards the
    mean of the earlier ones. Here all train together and regularise towards their current mean.

    Args:
        network: the architecture of all M networks.
        regularizer: "none", "l2" (squared norm) or "to_mean" (squared distance to the mean).
        coefficient: weight of the penalty.

    Returns:
        `task_loss(params [M, ...], task) -> (sum over networks, {"mse": mean error})`.

    Raises:
        ValueError: `regularizer` is none of `REGULARIZERS`.
    """
    if regularizer not in REGULARIZERS:
        raise ValueError(f"regularizer must be one of {REGULARIZERS}; received {regularizer!r}.")
    loss_fn = mean_squared_error(network.apply)

    def penalty(params: Params) -> Array:
        if regularizer == "none":
            return jnp.zeros(())
        if regularizer == "to_mean":
            params = jax.tree.map(
                lambda p: p - jax.lax.stop_gradient(jnp.mean(p, axis=0, keepdims=True)), params
            )
        return coefficient * optax.tree.norm(params, squared=True)

    def task_loss(params: Params, task: Task) -> tuple[Array, Metrics]:
        points: Examples = task.query
        errors, _ = jax.vmap(loss_fn)(params, points)
        return jnp.sum(errors) + penalty(params), {"mse": jnp.mean(errors)}

    return task_loss


def average_networks(params: Params) -> Params:
    """Averages the parameters of M networks over their leading axis."""
    return jax.tree.map(lambda p: jnp.mean(p, axis=0), params)
