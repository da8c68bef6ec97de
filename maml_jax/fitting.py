"""Runs meta-training with validation, early stopping and selection of the best parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maml_jax import checks, loop_checks
from maml_jax.finiteness import check_finite
from maml_jax.mesh import bring_home
from maml_jax.training import MetaState, TrainFn
from maml_jax.types import Array, NonFiniteError, Params


class Selection(NamedTuple):
    """A training state and the parameters with the best validation score, from `fit`.

    All fields have the leading axis M of the states, if there is one.

    Attributes:
        state: the last training state.
        best_params: copies of the parameters with the best score.
        best_score: their score, higher is better; minus infinity before the first validation, NaN
            without a score.
        best_step: the number of meta-steps that led to them.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from maml_jax import Selection, gradient_update, init
        >>> update = gradient_update(lambda theta, task: (theta**2, {}), optax.sgd(0.1))
        >>> state = init(jnp.array(1.0), update, key=0)
        >>> selection = Selection(state, state.params, best_score=0.9, best_step=state.step)
        >>> float(selection.best_params), selection.best_score
        (1.0, 0.9)
    """

    state: MetaState
    best_params: Params
    best_score: Array
    best_step: Array


def begin(state: MetaState) -> Selection:
    """Returns the selection before the first validation, with a score of minus infinity."""
    best = jax.tree.map(lambda p: jnp.array(p, copy=True), state.params)
    score = jnp.full(jnp.shape(state.step), -jnp.inf, jnp.float32)
    return Selection(state, best, score, jnp.zeros_like(state.step))


def choose(selection: Selection, score: Any | None) -> Selection:
    """Replaces the best parameters by the current ones where their score is higher.

    Args:
        selection: holds the current training state.
        score: validation score of the current parameters, a number or [M]; None replaces the best
            parameters unconditionally.

    Returns:
        The selection with new best parameters, score and step.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from maml_jax import gradient_update, init
        >>> from maml_jax.fitting import begin, choose
        >>> update = gradient_update(lambda theta, task: (theta**2, {}), optax.sgd(0.1))
        >>> selection = begin(init(jnp.array(1.0), update, key=0))
        >>> [float(choose(choose(selection, 0.5), score).best_score) for score in (0.25, 0.75)]
        [0.5, 0.75]
    """
    before = np.asarray(selection.best_score)
    if score is None:
        better, score = np.full(before.shape, True), np.full(before.shape, np.nan, np.float32)
    else:
        score = np.broadcast_to(np.asarray(score, np.float32), before.shape)
        better = score > before

    def pick(new: Any, old: Any) -> Array:
        """Selects on the host: the two may lie on different devices, and `new` may be donated."""
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
    """Meta-trains one member, validates after each dispatch, and keeps the best parameters.

    Several members train in a loop over `over_members` (docs/members.md).

    Args:
        train: the compiled meta-steps, from `make_train_fn`.
        state: from `init`, or the `state` of an earlier selection. `fit` donates it: do not use it
            afterwards.
        *data: further arguments of `train`.
        num_meta_steps: meta-steps to take, a multiple of `train.num_meta_steps`.
        score: `score(params)` returns a validation score, higher is better. Default: `fit` selects
            the last parameters.
        patience: number of successive dispatches without a better score that stops training; None
            disables early stopping.
        callback: `callback(step, metrics)`, called after each dispatch with the number of
            meta-steps so far and the dispatch's mean metrics as NumPy numbers, with `"score"` if
            `score` is set.

    Returns:
        The last state, and the best parameters with their score and step.

    Raises:
        TypeError: `train` is not from `make_train_fn`, or `state` is not a `MetaState`.
        ValueError: `num_meta_steps` is below 1 or no multiple of `train.num_meta_steps`, `patience`
            is set without `score`, or `state` holds several members.
        NonFiniteError: a loss, gradient or parameter is not finite, or a score is NaN; names the
            meta-step.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from maml_jax import fit, gradient_update, init, make_train_fn
        >>> sample = lambda params, key: 2.0 + 0.1 * jax.random.normal(key)  # a task: its optimum
        >>> loss = lambda theta, target: ((theta - target) ** 2, {})
        >>> update = gradient_update(loss, optax.sgd(0.25))
        >>> train = make_train_fn(sample, update, num_tasks=2, num_meta_steps=10)
        >>> state = init(jnp.array(0.0), update, key=0)
        >>> selection = fit(train, state, num_meta_steps=20, score=lambda theta: -abs(theta - 2.0))
        >>> round(float(selection.best_params))
        2
    """
    if not isinstance(train, TrainFn):
        raise TypeError(
            "train must come from make_train_fn, because fit takes one member; received "
            f"{type(train).__name__}. Call the function of over_members in a loop instead."
        )
    loop_checks.check_state(state)
    checks.check_counts(num_meta_steps=num_meta_steps)
    if num_meta_steps % train.num_meta_steps:
        raise ValueError(
            f"num_meta_steps must be a multiple of the {train.num_meta_steps} meta-steps of one "
            f"call of train; received {num_meta_steps}."
        )
    if patience is not None:
        checks.check_counts(patience=patience)
        if score is None:
            raise ValueError(f"patience={patience} needs score=, which compares parameters.")
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
