"""Alternates episodes and inner steps, for sampling a task and for evaluating a policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from maml_jax import inner_loop
from maml_jax.inner_loop import InnerRate, Mask
from maml_jax.maml import inner_update
from maml_jax.reinforcement.objectives import Samples
from maml_jax.types import Array, LossFn, Params, PyTree


def collect_and_adapt(
    collect: Callable[[Params, Array], tuple[Samples, Any]],
    inner_loss: LossFn,
    params: Params,
    keys: Array,
    inner_lr: InnerRate,
    *,
    mask: Mask = None,
    mode: str = "reverse",
) -> PyTree:
    """Collects episodes and takes an inner step on them, S times; then collects once more.

    Args:
        collect: `collect(params, key) -> (samples, output)`.
        inner_loss: loss of the inner steps.
        params: theta.
        keys: PRNG keys of the collections [S + 1].
        inner_lr: alpha, as in `maml_jax.adapt`.
        mask: adapted parameters, as in `maml_jax.adapt`.
        mode: derivative of an inner step.

    Returns:
        The outputs of all collections, leaves [S + 1, ...].

    Raises:
        ValueError: rates that do not fit the parameters or the number of steps.
    """
    part = inner_loop.partition(params, mask)
    per_step, _ = inner_loop.schedule(part, inner_lr, (), keys.shape[0] - 1, False)

    # The loop includes the last collection, so that the environment compiles once: physics
    # dominates compile time. The inner step of the last turn is not used.
    def turn(params: Params, inputs: tuple[Array, Any]) -> tuple[Params, Any]:
        key, step_rates = inputs
        samples, output = collect(params, key)
        rate = step_rates.get("rate", inner_lr)
        return inner_update(inner_loss, params, samples, rate, mask=mask, mode=mode)[0], output

    return jax.lax.scan(turn, params, (keys, _one_more(per_step)))[1]


def _one_more(rates: PyTree) -> PyTree:
    """Appends a rate of 0 to rates with a leading axis of S."""
    return jax.tree.map(
        lambda r: jnp.concatenate([r, jnp.zeros((1, *r.shape[1:]), r.dtype)]), rates
    )
