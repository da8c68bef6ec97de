"""The nouns that every module shares: tasks, problems, meta-learners and meta-updates.

Axis letters, in every docstring of the library:

====== ==========================================
letter axis
====== ==========================================
T      tasks of a meta-batch
S      inner gradient steps
N      ways: classes of an episode
K      shots: support examples (of a class)
Q      query examples (of a class)
E      episodes (rollouts) of a task
H      horizon: time steps of an episode
M      members of a run: seeds and swept values
====== ==========================================

Shapes in docstrings leave the task axis out: problems are written for one task.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
PyTree = Any
Params = PyTree
Batch = PyTree
Metrics = dict[str, Any]
LossFn = Callable[[Params, Batch], tuple[Array, Mapping[str, Any]]]
TaskLoss = Callable[[Params, "Task"], tuple[Array, Metrics]]


class Task(NamedTuple):
    """One task: a batch to adapt on and a batch to evaluate the adapted parameters on.

    Attributes:
        support: the batch of the inner loop (paper: D).
        query: the batch of the outer loss (paper: D').
    """

    support: Batch
    query: Batch


class Problem(NamedTuple):
    """What is to be learned: four pure functions, each written for one task.

    Attributes:
        init: `init(key) -> params`.
        sample: `sample(params, key, *data) -> Task`. Only reinforcement learning uses `params`;
            `data` are arrays that tasks are drawn from, if there are any.
        inner_loss: `inner_loss(params, batch) -> (loss, metrics)`, loss a scalar.
        outer_loss: the same form, on the query batch.
    """

    init: Callable[[Array], Params]
    sample: Callable[..., Task]
    inner_loss: LossFn
    outer_loss: LossFn


class MetaLearner(NamedTuple):
    """How a problem is learned: MAML, Meta-SGD, ...; three pure functions for one task.

    Attributes:
        init: `init(key) -> meta_params`: initial parameters, and whatever else is meta-learned.
        adapt: `adapt(meta_params, support) -> adapted_params`, what a user deploys.
        loss: `loss(meta_params, task) -> (loss, metrics)`, what the outer loop differentiates;
            `metrics["query"]` holds the metrics after adaptation.
    """

    init: Callable[[Array], Params]
    adapt: Callable[[Params, Batch], Params]
    loss: TaskLoss

    def evaluate(self, meta_params: Params, task: Task) -> Metrics:
        """The query metrics of one task after adaptation, for `make_evaluate_fn`."""
        return self.loss(meta_params, task)[1]["query"]


class MetaUpdate(NamedTuple):
    """How meta-parameters move: an optimizer on the meta-gradient, TRPO, Reptile, ...

    Attributes:
        init: `init(params) -> state`.
        update: `update(params, state, tasks) -> (params, state, metrics)` for the tasks of one
            meta-step, leading axis T. On a mesh each device calls it with its share of the tasks
            and has to return the same result: reduce with `pooling.pool`. Metrics hold `"loss"`;
            `pooling.report` adds what `check_finite` reads.
        update_by_keys: for updates that visit their tasks chunk by chunk:
            `update_by_keys(draw, single_out)` is `update` of PRNG keys in the place of tasks, where
            `draw(key)` draws one task. Large meta-batches then never exist as a whole.
            `single_out` is False where `draw` talks to other devices, so that no task may be drawn
            again on one device alone.
    """

    init: Callable[[Params], PyTree]
    update: Callable[[Params, PyTree, Any], tuple[Params, PyTree, Metrics]]
    update_by_keys: Callable[[Callable[[Array], Task], bool], Callable[..., Any]] | None = None


class NonFiniteError(FloatingPointError):
    """A loss became NaN or infinite; the message says at which step and in which task."""


def has_dtype(leaf: Any) -> bool:
    """Whether a leaf is an array or a Python number."""
    return hasattr(leaf, "dtype") or isinstance(leaf, (bool, int, float, complex, np.generic))


def is_float(leaf: Any) -> bool:
    """Whether a leaf can be differentiated: a floating-point array or a Python float."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating) if has_dtype(leaf) else False


def is_half(x: Any) -> bool:
    """Whether an array is of a floating-point type of less than 32 bits."""
    return is_float(x) and jnp.finfo(jnp.result_type(x)).bits < 32


def widen(x: Array) -> Array:
    """A half-precision array as float32, in which sums over tasks are exact enough; else as is."""
    return jnp.asarray(x, jnp.float32) if is_half(x) else jnp.asarray(x)


def all_finite(tree: PyTree) -> Array:
    """Whether every number of every floating-point leaf is finite, a bool scalar."""
    checks = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree) if is_float(leaf)]
    return functools.reduce(jnp.logical_and, checks, jnp.array(True))
