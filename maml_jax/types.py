"""Types that every module shares: tasks, problems, meta-learners and meta-updates.

Axis letters in all docstrings of the library:

====== ==========================================
letter axis
====== ==========================================
T      tasks of a meta-batch
S      inner gradient steps
N      ways: classes of an episode
K      shots: support examples of a task, or of each class
Q      query examples of a task, or of each class
E      episodes (rollouts) of a task
H      horizon: time steps of an episode
M      members of a run: seeds and swept values
====== ==========================================

Shapes in docstrings omit the task axis, because problems are written for one task.
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

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax import Task
        >>> inputs = jnp.arange(6.0)
        >>> task = Task(support=(inputs[:2], inputs[:2] ** 2), query=(inputs[2:], inputs[2:] ** 2))
        >>> task.query[0].shape
        (4,)
    """

    support: Batch
    query: Batch


class Problem(NamedTuple):
    """Defines what is learned: four pure functions, each written for one task.

    Attributes:
        init: `init(key) -> params`.
        sample: `sample(params, key, *data) -> Task` draws a task. Only reinforcement learning uses
            `params`. `data` holds arrays to draw from, such as a data set.
        inner_loss: `inner_loss(params, batch) -> (loss, metrics)` on the support batch, with a
            scalar loss.
        outer_loss: the loss on the query batch, in the same form.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from maml_jax import Problem, Task
        >>> def sample(params, key):
        ...     task_key, noise_key = jax.random.split(key)
        ...     noise = 0.1 * jax.random.normal(noise_key, (2,))
        ...     targets = jax.random.normal(task_key) + noise
        ...     return Task(support=targets[0], query=targets[1])
        >>> loss = lambda theta, target: ((theta - target) ** 2, {})
        >>> problem = Problem(lambda key: jnp.array(0.0), sample, loss, loss)
        >>> problem.sample(None, jax.random.key(0)).query.shape
        ()
    """

    init: Callable[[Array], Params]
    sample: Callable[..., Task]
    inner_loss: LossFn
    outer_loss: LossFn


class MetaLearner(NamedTuple):
    """Defines how one task is learned (MAML, Meta-SGD, ...): three pure functions.

    Attributes:
        init: `init(key) -> meta_params` returns initial parameters and other meta-learned values.
        adapt: `adapt(meta_params, support) -> adapted_params` adapts to a task, for deployment.
        loss: `loss(meta_params, task) -> (loss, metrics)` is the loss of the outer loop;
            `metrics["query"]` holds the metrics after adaptation.

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax import Problem, Task, algorithms
        >>> loss = lambda theta, target: ((theta - target) ** 2, {})
        >>> problem = Problem(lambda key: jnp.array(0.0), None, loss, loss)  # draws no tasks
        >>> learner = algorithms.maml(problem, inner_lr=0.25)
        >>> float(learner.adapt(jnp.array(0.0), jnp.array(1.0)))
        0.5
        >>> metrics = learner.evaluate(jnp.array(0.0), Task(jnp.array(1.0), jnp.array(2.0)))
        >>> float(metrics["loss"])
        2.25
    """

    init: Callable[[Array], Params]
    adapt: Callable[[Params, Batch], Params]
    loss: TaskLoss

    def evaluate(self, meta_params: Params, task: Task) -> Metrics:
        """Returns the query metrics of one task after adaptation, for `make_evaluate_fn`."""
        return self.loss(meta_params, task)[1]["query"]


class MetaUpdate(NamedTuple):
    """Defines how the meta-parameters move (gradient descent, TRPO, Reptile, ...).

    Attributes:
        init: `init(params) -> state`.
        update: `update(params, state, tasks) -> (params, state, metrics)` takes one meta-step on
            tasks with a leading axis of T. On a mesh each device calls it with its share of the
            tasks, and all devices must return the same result: reduce with `pooling.pool`. Make the
            metrics with `pooling.report`, so that they hold `"loss"` and the counts that
            `check_finite` reads.
        update_by_keys: optional, for updates that process tasks in chunks. `update_by_keys(draw,
            single_out)` returns an `update` that receives PRNG keys instead of tasks and draws each
            task by `draw(key)`, so that a large meta-batch never exists as a whole. `single_out` is
            False if `draw` communicates between devices and must not run on one device alone.

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax import MetaUpdate
        >>> from maml_jax.pooling import pool, report
        >>> def toward_mean_target(theta, state, targets):
        ...     losses = (targets - theta) ** 2
        ...     pooled = pool(losses, None, {}, sums=jnp.sum(targets))
        ...     return pooled.values, state, report(pooled, (), pooled.values)
        >>> update = MetaUpdate(init=lambda theta: (), update=toward_mean_target)
        >>> theta, _, metrics = update.update(jnp.array(0.0), (), jnp.array([1.0, 3.0]))
        >>> float(theta), float(metrics["loss"])
        (2.0, 5.0)
    """

    init: Callable[[Params], PyTree]
    update: Callable[[Params, PyTree, Any], tuple[Params, PyTree, Metrics]]
    update_by_keys: Callable[[Callable[[Array], Task], bool], Callable[..., Any]] | None = None


class NonFiniteError(FloatingPointError):
    """A loss, gradient, parameter or score is NaN or infinite; the message names the meta-step.

    Example:
        >>> from maml_jax import NonFiniteError
        >>> issubclass(NonFiniteError, FloatingPointError)
        True
    """


def has_dtype(leaf: Any) -> bool:
    """Returns whether a leaf is an array or a Python number."""
    return hasattr(leaf, "dtype") or isinstance(leaf, (bool, int, float, complex, np.generic))


def is_float(leaf: Any) -> bool:
    """Returns whether a leaf is a floating-point array or a Python float."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating) if has_dtype(leaf) else False


def is_half(x: Any) -> bool:
    """Returns whether an array has a floating-point type of less than 32 bits."""
    return is_float(x) and jnp.finfo(jnp.result_type(x)).bits < 32


def widen(x: Array) -> Array:
    """Converts half-precision arrays to float32, for sums over tasks; keeps other arrays."""
    return jnp.asarray(x, jnp.float32) if is_half(x) else jnp.asarray(x)


def all_finite(tree: PyTree) -> Array:
    """Returns whether all floating-point leaves are finite, a bool scalar."""
    checks = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree) if is_float(leaf)]
    return functools.reduce(jnp.logical_and, checks, jnp.array(True))
