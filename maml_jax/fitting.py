"""Meta-training from beginning to end: dispatches, validation, the best parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maml_jax import checks
from maml_jax.mesh import bring_home
from maml_jax.training import MetaState, TrainFn, check_finite
from maml_jax.types import Array, NonFiniteError, Params


class Selection(NamedTuple):
    """A training state with the parameters that scored best on validation tasks.

    Attributes:
        state: of training, with any leading axes of members.
        best_params: copies of the chosen parameters.
        best_score: their score, higher is better; minus infinity before the first validation, NaN
            without a score. One for each member.
        best_step: the meta-step that they were reached at.
    """

    state: MetaState
    best_params: Params
    best_score: Array
    best_step: Array


def begin(state: MetaState) -> Selection:
    """The selection before the first validation."""
    best = jax.tree.map(lambda p: jnp.array(p, copy=True), state.params)
    score = jnp.full(jnp.shape(state.step), -jnp.inf, jnp.float32)
    return Selection(state, best, score, jnp.zeros_like(state.step))


def choose(selection: Selection, score: Any | None) -> Selection:
    """Takes the current parameters where they score higher than the best so far.

    Args:
        selection: with the current state of training.
        score: of its parameters on validation tasks, one for each member; None, for want of
            validation tasks, takes them in any case.
    """
    before = np.asarray(selection.best_score)
    if score is None:
        better, score = np.full(before.shape, True), np.full(before.shape, np.nan, np.float32)
    else:
        score = np.broadcast_to(np.asarray(score, np.float32), before.shape)
        better = score > before

    def pick(new: Any, old: Any) -> Array:
        """On the host: training donates its state, which lies on other devices than the best."""
        chosen = np.reshape(better, before.shape + (1,) * (np.ndim(old) - before.ndim))
        return jnp.asarray(np.where(chosen, np.asarray(new), np.asarray(old)))

    current = bring_home(selection.state)
    return Selection(
        selection.state,
        jax.tree.map(pick, current.params, selection.best_params),
        pick(score, selection.best_score),
        pick(current.step, selection.best_step),
    )


def fit(
    train: TrainFn,
    state: MetaState,
    *data: Any,
    num_meta_steps: int,
    score: Callable[[Params], Any] | None = None,
    patience: int | None = None,
    callback: Callable[[int, dict[str, Any]], None] | None = None,
) -> Selection:
    """Meta-trains, validates after each dispatch, and keeps the best parameters.

        losses = {}
        log = lambda step, metrics: losses.update({step: metrics["loss"]})
        selection = fit(train, init(params, update, key=0), num_meta_steps=10_000, callback=log)

    Args:
        train: from `make_train_fn`; what it donates stays inside.
        state: from `init`, or the `state` of an earlier selection; it can be used no longer.
        *data: what `train` takes beside the state.
        num_meta_steps: meta-steps to take, a multiple of the meta-steps of one call of `train`.
        score: `score(params)` on validation tasks, a number, higher is better; None takes the last
            parameters.
        patience: dispatches without a better score after which training stops; None for never.
        callback: `callback(step, metrics)` after each dispatch, for a logger: the meta-steps taken,
            and the dispatch's metrics averaged, as NumPy numbers, with `"score"` if there is one.

    Returns:
        The last state, and the best parameters with their score and step.

    Raises:
        ValueError: counts that do not fit, or patience without a score.
        NonFiniteError: a loss, gradient or parameter is not finite, or a score is NaN; says where.
    """
    checks.check_counts(num_meta_steps=num_meta_steps)
    if num_meta_steps % train.num_meta_steps:
        raise ValueError(
            f"num_meta_steps must be a multiple of the {train.num_meta_steps} meta-steps of one "
            f"call of train; received {num_meta_steps}."
        )
    if patience is not None:
        checks.check_counts(patience=patience)
        if score is None:
            raise ValueError(f"patience={patience} needs score=, which says what is better.")
    selection, at, since = begin(state), int(state.step), 0
    for _ in range(num_meta_steps // train.num_meta_steps):
        state, metrics = train(selection.state, *data)
        metrics = jax.device_get(bring_home(metrics))
        check_finite(metrics, at)
        at, since = at + train.num_meta_steps, since + 1
        selection = selection._replace(state=state)
        means = jax.tree.map(lambda x: x.mean(axis=0), metrics)
        reached = None if score is None else np.float32(score(bring_home(state.params)))
        if reached is not None and np.isnan(reached):
            raise NonFiniteError(
                f"the score of the parameters at meta-step {at} is NaN; score= must return a "
                "number, higher is better."
            )
        if reached is None or reached > float(selection.best_score):
            selection, since = choose(selection, reached), 0
        if callback is not None:
            callback(at, means if reached is None else {**means, "score": float(reached)})
        if patience is not None and since >= patience:
            break
    return selection
