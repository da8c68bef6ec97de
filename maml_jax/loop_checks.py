"""Checks of the states and the meta-updates of the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from maml_jax import checks
from maml_jax.types import Metrics, Params, PyTree

COUNTS = ("nonfinite_tasks", "first_nonfinite_task", "nonfinite_update")
STATE_FIELDS = ("params", "update_state", "step", "key")


def check_state(state: Any, *, stacked: bool = False) -> None:
    """Checks that `state` is a `MetaState` of one member, or the stacked states of M members.

    Args:
        state: arrays, tracers or `jax.ShapeDtypeStruct`s.
        stacked: whether the state must have a leading axis of M.

    Raises:
        TypeError: `state` is not a `MetaState`.
        ValueError: the state has a leading axis of M where one member is expected, or lacks it.
    """
    expected = "a stacked MetaState with a leading axis of M" if stacked else "a MetaState"
    if not all(hasattr(state, name) for name in STATE_FIELDS):
        raise TypeError(
            f"state must be {expected}, from maml_jax.init(params, update, key); received "
            f"{checks.describe(state)}."
        )
    shape = jnp.shape(state.step)
    if not stacked and shape:
        raise ValueError(
            f"state must be a MetaState of one member; received the stacked states of {shape[0]} "
            "members. Train them by over_members(train)(states), in a loop instead of fit."
        )
    if stacked and len(shape) != 1:
        raise ValueError(
            f"states must be {expected}, for example from jax.vmap(lambda key: init(params, "
            f"update, key))(keys); received a state whose step has shape {shape}."
        )


def check_update_output(
    output: Any, params: Params, state: PyTree
) -> tuple[Params, PyTree, Metrics]:
    """Returns the output of a meta-update if it is `(params, state, metrics)`.

    Args:
        output: of `MetaUpdate.update`.
        params: the parameters that the update received.
        state: the state that the update received.

    Raises:
        TypeError: `output` is not such a triple, the metrics lack a count of non-finite values, or
            a leaf of parameters or state has another dtype than before.
        ValueError: parameters or state have another structure or other shapes than before.
    """
    if not (isinstance(output, tuple) and len(output) == 3 and isinstance(output[2], Mapping)):
        raise TypeError(
            "MetaUpdate.update must return a triple (params, state, metrics) with metrics a dict; "
            f"received {checks.describe(output)}."
        )
    missing = [name for name in COUNTS if name not in output[2]]
    if missing:
        raise TypeError(
            f"MetaUpdate.update must return metrics with {', '.join(COUNTS)}; received "
            f"{sorted(output[2])}. Make them with maml_jax.pooling.report."
        )
    for name, before, after in (("params", params, output[0]), ("state", state, output[1])):
        what = f"{name} returned by MetaUpdate.update"
        checks.check_fits(what, before, after, f"An update must keep the form of its {name}.")
        paths = jax.tree_util.tree_leaves_with_path(before)
        for (path, old), new in zip(paths, jax.tree.leaves(after), strict=True):
            if not getattr(old, "weak_type", False) and _dtype(old) != _dtype(new):
                raise TypeError(
                    f"{what} must keep dtype {_dtype(old)} at {name}{jax.tree_util.keystr(path)}; "
                    f"received {_dtype(new)}."
                )
    return output


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
