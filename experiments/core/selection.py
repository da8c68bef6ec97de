"""The best model so far, by validation tasks: part of a run's state, so that a resume keeps it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.core.runner import Stage
from maml_jax import MetaState
from maml_jax.types import Array, Params


class Selection(NamedTuple):
    """A training state with the parameters that did best on validation tasks so far.

    Attributes:
        train: the state of training, with any leading axes of seeds.
        best_params: the chosen parameters.
        best_score: theirs, on validation tasks, higher is better; minus infinity before the first
            validation. One for each seed.
        best_step: when they were reached.
    """

    train: MetaState
    best_params: Params
    best_score: Array
    best_step: Array

    @property
    def params(self) -> Params:
        """The parameters that are being trained."""
        return self.train.params


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidatedStage(Stage):
    """A stage that trains and then validates, and has these as parts: a sweep takes them singly.

    Attributes:
        data: `data(mesh)`, what is trained on, as it lies on that mesh, and validation tasks, or
            None for want of them.
        score: `score(params, tasks)` on validation tasks, higher is better.
        validate_every: meta-steps between validations.
    """

    data: Callable[[Mesh], tuple[Any, Any]]
    score: Callable[[Params, Any], Any]
    validate_every: int


def begin(state: MetaState) -> Selection:
    """The selection before the first validation."""
    best = jax.tree.map(jnp.copy, state.params)
    return Selection(
        state, best, jnp.full(state.step.shape, -jnp.inf, jnp.float32), jnp.zeros_like(state.step)
    )


def choose(selection: Selection, score: Any, always: bool = False) -> Selection:
    """Takes the parameters as they are now where their score is higher than the best so far.

    Args:
        selection: with the state of training as it is now.
        score: of its parameters on validation tasks, one for each seed.
        always: take them whatever their score; for want of validation tasks.
    """
    before = np.asarray(selection.best_score)
    score = np.broadcast_to(np.asarray(score, np.float32), before.shape)
    better = np.full(before.shape, True) if always else score > before

    def pick(new: Any, old: Array) -> Array:
        """On the host: training donates its state, which lies on other devices than the best."""
        chosen = np.reshape(better, before.shape + (1,) * (old.ndim - before.ndim))
        return jnp.asarray(np.where(chosen, np.asarray(new), np.asarray(old)))

    return Selection(
        selection.train,
        jax.tree.map(pick, selection.params, selection.best_params),
        pick(score, selection.best_score),
        pick(selection.train.step, selection.best_step),
    )


def validate(
    selection: Selection,
    metrics: Mapping[str, Any],
    score: Callable[[], Any] | None,
    *,
    count: int,
    every: int,
    num_steps: int,
) -> tuple[Selection, Mapping[str, Any]]:
    """Chooses the parameters after a dispatch, if a validation is due.

    Args:
        selection: with the state of training as it is now.
        metrics: of the dispatch.
        score: gives the score of the parameters as they are now, one for each seed; None for want
            of validation tasks: the last parameters are then taken.
        count: meta-steps of the dispatch.
        every: meta-steps between validations; there is one at the end, too.
        num_steps: meta-steps in all.

    Returns:
        The selection; and the metrics, with the accuracies of a validation that took place.
    """
    at = int(np.max(np.asarray(selection.train.step)))
    if not (at // every > (at - count) // every or at == num_steps):
        return selection, metrics
    if score is None:
        return choose(selection, -1.0, always=True), metrics
    accuracy = np.asarray(score())
    selection = choose(selection, accuracy)
    found = {"accuracy": accuracy, "best_accuracy": np.asarray(selection.best_score)}
    shown = {name: np.repeat(x[..., None], count, axis=-1) for name, x in found.items()}
    return selection, {**metrics, "validation": shown}
