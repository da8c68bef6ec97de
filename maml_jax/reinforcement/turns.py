"""Episodes and inner steps in turn: what sampling a task and evaluating a policy share."""

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
    """Collects episodes, takes an inner step on them, and so on; ends with a collection.

    Args:
        collect: `collect(params, key) -> (samples, output)`.
        inner_loss: of the inner steps.
        params: theta.
        keys: of each collection [S + 1].
        inner_lr: alpha, as in `maml_jax.adapt`.
        mask: which parameters are adapted.
        mode: how an inner step is differentiated.

    Returns:
        The outputs of all collections, leaves [S + 1, ...].

    Raises:
        ValueError: rates that do not fit the parameters, or are for another number of steps.
    """
    part = inner_loop.partition(params, mask)
    per_step, _ = inner_loop.schedule(part, inner_lr, (), keys.shape[0] - 1, False)

    # One loop, the last collection included, so that the environment is compiled once: physics
    # takes most of the time that compiling takes. What the last turn adapts is not used.
    def turn(params: Params, inputs: tuple[Array, Any]) -> tuple[Params, Any]:
        key, of_step = inputs
        samples, output = collect(params, key)
        rate = of_step.get("rate", inner_lr)
        return inner_update(inner_loss, params, samples, rate, mask=mask, mode=mode)[0], output

    return jax.lax.scan(turn, params, (keys, _one_more(per_step)))[1]


def _one_more(rates: PyTree) -> PyTree:
    """Rates with a leading axis of S, and 0 for one more step."""
    return jax.tree.map(
        lambda r: jnp.concatenate([r, jnp.zeros((1, *r.shape[1:]), r.dtype)]), rates
    )
