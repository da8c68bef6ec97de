"""Parts of the inner loop of `maml.adapt`: masks, learning rates, and the loop itself.

This module raises the errors for masks and learning rates that do not fit the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
import optax

from maml_jax import checks, types
from maml_jax.types import Array, Batch, Params, PyTree


class PerStep(NamedTuple):
    """Inner learning rates that differ between steps.

    Attributes:
        rates: an array [S], or a pytree prefix of the parameters whose leaves have a leading axis
            of S.

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax import PerStep, adapt
        >>> loss_fn = lambda theta, target: ((theta - target) ** 2, {})
        >>> rates = PerStep(jnp.array([0.25, 0.5]))
        >>> theta, _ = adapt(loss_fn, jnp.array(0.0), jnp.array(1.0), rates, num_inner_steps=2)
        >>> float(theta)
        1.0
    """

    rates: PyTree


InnerRate = float | Array | PerStep | PyTree
Mask = PyTree | Callable[[Params], PyTree] | None


class Inner(TypedDict, total=False):
    """Keyword arguments of `maml.adapt`, which `meta_loss` and the meta-learners pass on.

    Attributes:
        mask: selects the leaves to adapt: a pytree prefix of the parameters with Python bools, or
            a function from the parameters to one. Other leaves stay fixed in the inner loop and
            still receive a meta-gradient.
        mode: how the inner steps are differentiated, one of `meta_gradient.MODES`.
        inner_optimizer: an optax transformation, initialised for each task. `adapt` adds alpha
            times its update, which therefore must descend: `optax.clip_by_global_norm(1.0)` alone
            ascends, `optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))` descends. Use
            `inner_lr=1.0` with optimizers that have a learning rate, such as `optax.adam(0.01)`.
            They receive the support loss as `value=` and its gradient as `grad=`. Default: gradient
            descent.
        batch_per_step: whether the support holds a separate batch for each step, as a leading axis
            of S on every leaf.
    """

    mask: Mask
    mode: str
    inner_optimizer: optax.GradientTransformation | None
    batch_per_step: bool


class Options(NamedTuple):
    """`Inner` with its defaults."""

    mask: Mask = None
    mode: str = "reverse"
    inner_optimizer: optax.GradientTransformation | None = None
    batch_per_step: bool = False


def options(**inner: Unpack[Inner]) -> Options:
    """Returns the options of an inner loop, with defaults.

    Raises:
        TypeError: an option is unknown.
    """
    unknown = sorted(set(inner) - set(Options._fields))
    if unknown:
        raise TypeError(
            f"the inner loop takes {', '.join(Options._fields)}; received {', '.join(unknown)}."
        )
    return Options(**inner)


class Partition(NamedTuple):
    """Parameters split by a mask.

    Attributes:
        params: all parameters.
        mask: a Python bool for each leaf of `params`.
        selected: the selected leaves as arrays, with None in place of the others.
    """

    params: Params
    mask: PyTree
    selected: PyTree

    def combine(self, selected: PyTree) -> Params:
        """Returns all parameters, with `selected` in place of the selected leaves."""
        return jax.tree.map(lambda keep, p, s: s if keep else p, self.mask, self.params, selected)

    def loss(self, loss_fn: Callable[..., Any]) -> Callable[..., Any]:
        """Returns `loss_fn(params, batch)` as a function of the selected leaves."""
        return lambda selected, batch: loss_fn(self.combine(selected), batch)

    def rates(self, inner_lr: InnerRate) -> PyTree:
        """Returns a learning rate for each selected leaf.

        Raises:
            ValueError: `inner_lr` does not fit the parameters, or is a `PerStep`.
        """
        rates = _broadcast_rates(inner_lr, self.params)
        return jax.tree.map(lambda keep, rate: rate if keep else None, self.mask, rates)


def partition(params: Params, mask: Mask = None) -> Partition:
    """Splits parameters by a mask; the default mask selects all floating-point leaves.

    Args:
        params: any pytree.
        mask: a pytree prefix of `params` with Python bools, or a function from `params` to one.
            It never selects leaves that are not floating point.

    Raises:
        ValueError: the mask does not fit `params`, or selects no floating-point leaf.
        TypeError: the mask selects a complex leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.inner_loop import partition
        >>> params = {"body": jnp.ones(3), "head": jnp.ones(2)}
        >>> part = partition(params, mask={"body": False, "head": True})
        >>> part.selected["body"] is None, part.selected["head"].shape
        (True, (2,))
    """
    checks.check_has_float_leaf(params)
    full = _full_mask(mask, params)
    selected = jax.tree.map(lambda keep, p: jnp.asarray(p) if keep else None, full, params)
    return Partition(params, full, selected)


def schedule(
    part: Partition, inner_lr: InnerRate, support: Batch, num_inner_steps: int, batch_per_step: bool
) -> tuple[PyTree, Callable[[PyTree], tuple[PyTree, Batch]]]:
    """Returns the learning rates and the batch of each inner step.

    Returns:
        A pytree of the values that differ between steps, with a leading axis of S; and a function
        from one entry of it to the rates of the selected leaves and the batch.

    Raises:
        ValueError, TypeError: the number of steps, the rates or the support have a wrong form.
    """
    num_inner_steps = checks.check_num_inner_steps(num_inner_steps)
    per_step: dict[str, Any] = {}
    if isinstance(inner_lr, PerStep):
        _check_leading_axis(inner_lr.rates, num_inner_steps, "PerStep(rates): rates")
        per_step["rate"] = jax.tree.map(jnp.asarray, inner_lr.rates)
    else:
        part.rates(inner_lr)  # checks the rates even for S = 0
    if batch_per_step:
        _check_leading_axis(support, num_inner_steps, "the support, with batch_per_step,")
        per_step["batch"] = support

    def of_step(this_step: dict[str, Any]) -> tuple[PyTree, Batch]:
        batch = this_step.get("batch", support)
        if num_inner_steps == 0:  # JAX traces the step but never takes it
            batch = jax.tree.map(_with_elements, batch)
        return part.rates(this_step.get("rate", inner_lr)), batch

    return per_step, of_step


def repeat(
    step: Callable[[Any, Any], tuple[Any, Any]],
    start: Any,
    per_step: PyTree,
    num_inner_steps: int,
    *,
    recompute: bool,
) -> tuple[Any, Any]:
    """Runs `jax.lax.scan(step, start, per_step)`; `recompute` rematerialises each step."""
    if recompute:
        step = jax.checkpoint(step, prevent_cse=False)
    if num_inner_steps == 1:
        # Without a loop, vmap over tasks leaves the first step's parameters unbatched, so that its
        # matrix products run as one large batch: a meta-step with S=1 takes a third less time.
        end, outputs = step(start, jax.tree.map(lambda x: x[0], per_step))
        return end, jax.tree.map(lambda x: jnp.asarray(x)[None], outputs)
    return jax.lax.scan(step, start, per_step, length=num_inner_steps)


def append(stacked: PyTree, last: PyTree) -> PyTree:
    """Appends one more entry to the leading axis of every leaf."""
    return jax.tree.map(lambda s, x: jnp.concatenate([s, jnp.asarray(x)[None]]), stacked, last)


def _with_elements(x: Any) -> Any:
    """Returns the array, or zeros with axes of length 1 in place of length 0."""
    shape = jnp.shape(x)
    return jnp.zeros([max(n, 1) for n in shape], jnp.result_type(x)) if 0 in shape else x


def _full_mask(mask: Mask, params: Params) -> PyTree:
    """Returns the mask as a pytree of Python bools with the structure of `params`."""
    if mask is None:
        checks.check_not_complex(params)
        return jax.tree.map(types.is_float, params)
    # A callable pytree, such as an Equinox module, is a mask and not a function.
    prefix = mask(params) if callable(mask) and _is_bare(mask) else mask
    try:
        full = jax.tree.broadcast(prefix, params)
    except ValueError as error:
        raise ValueError(
            "mask must be a pytree prefix of params with a bool for each part; "
            f"received {jax.tree.structure(prefix)} for params {jax.tree.structure(params)}."
        ) from error
    for leaf in jax.tree.leaves(full):
        if not isinstance(leaf, bool):
            raise ValueError(f"mask must hold Python bools only; received {leaf!r}.")
    checks.check_not_complex(jax.tree.map(lambda keep, p: p if keep else None, full, params))
    full = jax.tree.map(lambda keep, p: keep and types.is_float(p), full, params)
    if not any(jax.tree.leaves(full)):
        raise ValueError("mask selects no floating-point leaf of params, so nothing would adapt.")
    return full


def _is_bare(tree: PyTree) -> bool:
    return jax.tree_util.treedef_is_leaf(jax.tree.structure(tree))


def _check_leading_axis(tree: PyTree, num_inner_steps: int, what: str) -> None:
    for leaf in jax.tree.leaves(tree):
        if jnp.ndim(leaf) < 1 or jnp.shape(leaf)[0] != num_inner_steps:
            raise ValueError(
                f"{what} must have a leading axis of num_inner_steps={num_inner_steps} on every "
                f"leaf; received shape {jnp.shape(leaf)}."
            )


def _broadcast_rates(inner_lr: InnerRate, params: Params) -> PyTree:
    """Returns a rate for each leaf of `params`."""
    if isinstance(inner_lr, PerStep):
        raise ValueError(
            "one step takes one rate: a number or a pytree prefix of params; received PerStep with "
            f"rates of shapes {jax.tree.map(jnp.shape, inner_lr.rates)}. Use adapt for more steps."
        )
    if _is_bare(inner_lr) and jnp.ndim(inner_lr) and not _is_bare(params):
        raise ValueError(
            "inner_lr must be a number, a pytree prefix of params, or PerStep(rates); received an "
            f"array of shape {jnp.shape(inner_lr)}. For per-step rates, pass "
            "maml_jax.PerStep(array)."
        )
    try:
        rates = jax.tree.broadcast(inner_lr, params)
    except ValueError as error:
        raise ValueError(
            "inner_lr must be a number, a pytree prefix of params, or PerStep(rates); received "
            f"structure {jax.tree.structure(inner_lr)} for params {jax.tree.structure(params)}."
        ) from error
    for (path, leaf), rate in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(rates), strict=True
    ):
        shape, target = jnp.shape(rate), jnp.shape(leaf)
        aligned = target[len(target) - len(shape) :]
        fits = len(shape) <= len(target) and all(
            n in (1, m) for n, m in zip(shape, aligned, strict=False)
        )
        if not fits:
            raise ValueError(
                f"inner_lr must broadcast against its parameter: at "
                f"{jax.tree_util.keystr(path) or 'the only leaf'} expected shape () or {target}, "
                f"received {shape}. For per-step rates, pass maml_jax.PerStep(rates)."
            )
    return rates
