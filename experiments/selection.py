"""The best model so far, by validation tasks: part of a run's state, so that a resume keeps it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

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


def begin(state: MetaState) -> Selection:
    """The selection before the first validation."""
    best = jax.tree.map(jnp.copy, state.params)
    return Selection(state, best, jnp.full(state.step.shape, -jnp.inf), jnp.zeros_like(state.step))


def choose(selection: Selection, score: Array | float, always: bool = False) -> Selection:
    """Takes the parameters as they are now where their score is higher than the best so far.

    Args:
        selection: with the state of training as it is now.
        score: of its parameters on validation tasks, one for each seed.
        always: take them whatever their score; for want of validation tasks.
    """
    score = jnp.broadcast_to(jnp.asarray(score, jnp.float32), selection.best_score.shape)
    better = jnp.full(score.shape, True) if always else score > selection.best_score

    def pick(new: Array, old: Array) -> Array:  # a new array: training donates the state
        return jnp.where(better.reshape(*better.shape, *[1] * (new.ndim - better.ndim)), new, old)

    return Selection(
        selection.train,
        jax.tree.map(pick, selection.params, selection.best_params),
        pick(score, selection.best_score),
        pick(selection.train.step, selection.best_step),
    )
