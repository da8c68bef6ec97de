"""Checks of user input; their errors name the expected and the received value.

JAX knows shapes, dtypes and structures while it traces, so that these checks cost nothing in the
compiled program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maml_jax.types import Array, Batch, LossFn, Metrics, Params, PyTree, Task, has_dtype, is_float


def check_num_inner_steps(num_inner_steps: int) -> int:
    """Returns S if it is an integer of 0 or more.

    Raises:
        TypeError: S is not an integer, or is a traced value: it fixes the shape of the program.
        ValueError: S is negative.
    """
    _check_is_int("num_inner_steps", num_inner_steps)
    if num_inner_steps < 0:
        raise ValueError(
            f"num_inner_steps must be 0 or more inner steps; received {num_inner_steps}."
        )
    return int(num_inner_steps)


def check_counts(**counts: int) -> None:
    """Checks that counts are integers of 1 or more.

    Args:
        **counts: values by the names that errors report.

    Raises:
        TypeError: a count is not an integer.
        ValueError: a count is below 1.
    """
    for name, value in counts.items():
        _check_is_int(name, value)
        if value < 1:
            raise ValueError(f"{name} must be 1 or more; received {value}.")


def _check_is_int(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(
            f"{name} must be a Python int, because it fixes the shape of the program; "
            f"received {value!r} of type {type(value).__name__}."
        )


def check_has_float_leaf(params: Params, what: str = "params") -> None:
    """Raises a ValueError if `params` has no floating-point leaf."""
    leaves = jax.tree.leaves(params)
    if not any(is_float(leaf) for leaf in leaves):
        kinds = sorted({str(getattr(leaf, "dtype", type(leaf).__name__)) for leaf in leaves})
        raise ValueError(
            f"{what} has no floating-point leaf to adapt; it has {len(leaves)} leaves"
            + (f" of type {', '.join(kinds)}." if kinds else ".")
        )


def check_not_complex(params: Params, what: str = "params") -> None:
    """Raises a TypeError that names the complex leaves of `params`."""
    _refuse_leaves(
        params,
        lambda leaf: (
            not (has_dtype(leaf) and jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating))
        ),
        f"{what} must hold real arrays in all adapted leaves; complex: {{}}. Split them into real "
        "and imaginary leaves, or exclude them by mask=.",
    )


def _refuse_leaves(params: Params, fits: Callable[[Any], bool], message: str) -> None:
    paths = jax.tree_util.tree_leaves_with_path(params)
    bad = [jax.tree_util.keystr(path) or "the only leaf" for path, x in paths if not fits(x)]
    if bad:
        raise TypeError(message.format(", ".join(bad[:5])))


def check_all_float(params: Params, what: str = "params") -> None:
    """Raises a TypeError that names the leaves of `params` that are not floating point."""
    check_has_float_leaf(params, what)
    _refuse_leaves(
        params,
        is_float,
        f"{what} must hold floating-point arrays only, because the meta-optimizer updates every "
        "leaf; not floating point: {}. Keep such values out of params, for example with "
        "flax.nnx.split or equinox.partition.",
    )


def check_not_empty(batch: Batch, what: str) -> None:
    """Raises a ValueError if all arrays of a batch are empty: their mean would be NaN."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batch) if jnp.ndim(leaf)]
    if shapes and all(0 in shape for shape in shapes):
        raise ValueError(f"{what} must have examples; received arrays of shapes {shapes}.")


def check_fits(what: str, expected: PyTree, received: PyTree, advice: str) -> None:
    """Checks that a pytree has the expected structure and shapes.

    Args:
        what: name of the checked value, for the message.
        expected: a pytree of arrays or `jax.ShapeDtypeStruct`s.
        received: the pytree to check.
        advice: the remedy, for the end of the message.

    Raises:
        ValueError: structures or shapes differ; names the first such leaf.
    """
    structures = jax.tree.structure(expected), jax.tree.structure(received)
    if structures[0] != structures[1]:
        raise ValueError(
            f"{what} must have the structure {structures[0]}; received {structures[1]}. {advice}"
        )
    wanted = jax.tree_util.tree_leaves_with_path(expected)
    for (path, leaf), other in zip(wanted, jax.tree.leaves(received), strict=True):
        if jnp.shape(leaf) != jnp.shape(other):
            raise ValueError(
                f"{what}{jax.tree_util.keystr(path)} must have shape {jnp.shape(leaf)}; received "
                f"{jnp.shape(other)}. {advice}"
            )


def check_loss_output(output: Any, what: str) -> tuple[Array, Metrics]:
    """Returns the output of a loss function if it is `(loss, metrics)`.

    Args:
        output: a pair of a float scalar and a mapping.
        what: name of the loss function, for the message.

    Raises:
        TypeError: `output` is not a pair of a float array and a mapping.
        ValueError: the loss is not a scalar.
    """
    if not (isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], Mapping)):
        raise TypeError(
            f"{what} must return a pair (loss, metrics) with metrics a dict, which may be empty; "
            f"received {describe(output)}."
        )
    loss, metrics = output
    if not has_dtype(loss):
        raise TypeError(f"{what} must return an array as its loss; received {describe(loss)}.")
    if jnp.shape(loss) != ():
        raise ValueError(
            f"{what} must return a scalar loss for one task; received shape {jnp.shape(loss)}. "
            "Take the mean over examples; the library maps the loss over tasks."
        )
    if not is_float(loss):
        raise TypeError(f"{what} must return a float loss; received {jnp.result_type(loss)}.")
    return loss, _check_metrics(dict(metrics), has_dtype, "arrays or numbers", what)


def check_metrics(metrics: Metrics, what: str) -> Metrics:
    """Returns `metrics` if all of them are real, so that they have a mean over tasks.

    Raises:
        TypeError: a metric is not a real number or an array of real numbers.
    """
    return _check_metrics(metrics, _is_real, "real numbers", what)


def _check_metrics(
    metrics: Metrics, fits: Callable[[Any], bool], expected: str, what: str
) -> Metrics:
    for path, leaf in jax.tree_util.tree_leaves_with_path(metrics):
        if not fits(leaf):
            raise TypeError(
                f"{what} must return metrics that are {expected}; received {describe(leaf)} at "
                f"metrics{jax.tree_util.keystr(path)}."
            )
    return metrics


def _is_real(leaf: Any) -> bool:
    return has_dtype(leaf) and (
        jnp.result_type(leaf) == jnp.bool_
        or jnp.issubdtype(jnp.result_type(leaf), jnp.integer)
        or jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    )


def check_is_task(task: Any) -> None:
    """Raises a TypeError unless `task` has the attributes `support` and `query`."""
    if not hasattr(task, "support") or not hasattr(task, "query"):
        raise TypeError(
            f"a task must have the attributes support and query (maml_jax.Task); "
            f"received {describe(task)}."
        )


def check_same_structure(task: Task) -> None:
    """Raises a ValueError if the support and query batches differ in structure."""
    check_is_task(task)
    support, query = jax.tree.structure(task.support), jax.tree.structure(task.query)
    if support != query:
        raise ValueError(
            "support and query must have the same structure when one loss is used for both; "
            f"received support {support} and query {query}. Pass outer_loss= for another form."
        )


def checked_outer_loss(loss_fn: LossFn, outer_loss: LossFn | None, task: Task) -> LossFn:
    """Returns the outer loss with a checked output and `"loss"` among its metrics.

    Args:
        loss_fn: the inner loss.
        outer_loss: the outer loss; None selects the inner loss.
        task: support and query batches.

    Raises:
        ValueError: support and query share one loss but differ in structure, or the query is empty.
        TypeError: `task` has no support or no query.
    """
    if outer_loss is None or outer_loss is loss_fn:
        check_same_structure(task)
        outer_loss = loss_fn
    else:
        check_is_task(task)
    check_not_empty(task.query, "query")

    def checked(params: Params, query: Batch) -> tuple[Array, Metrics]:
        loss, metrics = check_loss_output(outer_loss(params, query), "outer_loss")
        return loss, {**metrics, "loss": loss}

    return checked


def check_optimizer(optimizer: Any) -> None:
    """Raises a TypeError unless `optimizer` is an optax transformation."""
    if not (callable(getattr(optimizer, "init", None)) and hasattr(optimizer, "update")):
        raise TypeError(
            "optimizer must be an optax transformation, for example optax.adam(1e-3); received "
            f"{optimizer!r}."
        )


def check_choice(value: Any, choices: tuple[Any, ...], what: str) -> None:
    """Raises a ValueError unless `value` is one of `choices`."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{what} must be one of {listed}; received {value!r}.")


def describe(value: Any) -> str:
    """Returns the type of a value, with its shape or the types of its elements, for messages."""
    if isinstance(value, tuple):
        return f"a tuple of {len(value)} ({', '.join(type(v).__name__ for v in value)})"
    return f"{type(value).__name__}" + (
        f" of shape {jnp.shape(value)}" if hasattr(value, "shape") else ""
    )
