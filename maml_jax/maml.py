"""Model-agnostic meta-learning: Algorithm 1 of the paper, for one task, and nothing else.

Finn, Abbeel, Levine 2017, arXiv 1703.03400v3. In the paper's words, line by line:

    for all tasks:                                        # vmap or scan, by training.py
        theta' = theta - alpha grad L_task(theta; D)      # inner_update, S times: adapt
    theta <- theta - beta grad sum L_task(theta'; D')     # meta_loss; grad and step: training.py

Every function here is pure, written for one task, and composes with `jax.grad`, `vmap`, `jit` and
sharding. Parameters and batches are pytrees that the core never looks into.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from maml_jax import meta_gradient, optimizers, types
from maml_jax.types import Array, Batch, LossFn, Metrics, Params, PyTree, Task


class PerStep(NamedTuple):
    """Inner learning rates that differ from step to step.

    Attributes:
        rates: a number or pytree prefix of the parameters, each leaf with a leading axis of S.
    """

    rates: PyTree


InnerRate = float | Array | PerStep | PyTree
Mask = PyTree | Callable[[Params], PyTree] | None


def inner_update(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    inner_lr: InnerRate,
    *,
    inner_optimizer: optax.GradientTransformation | None = None,
    mask: Mask = None,
    mode: str = "reverse",
) -> tuple[Params, Metrics]:
    """One gradient step on one task (paper equation 1): `params + inner_lr * update`.

    The update is minus the gradient, or what `inner_optimizer` makes of the gradient. An optimizer
    with a learning rate of its own, `optax.adam(0.01)` say, goes with `inner_lr=1.0`; to learn the
    rate, give the optimizer rate 1 and let `inner_lr` carry it.

    Args:
        loss_fn: `loss_fn(params, batch) -> (scalar loss, metrics)` for one task.
        params: any pytree; its floating-point leaves are adapted, integers and keys pass through.
        batch: the task's support batch, any pytree.
        inner_lr: step size alpha: a number, or a pytree prefix of `params` whose leaves broadcast
            against the leaves below them (Meta-SGD). Differentiable.
        inner_optimizer: any optax transformation, started afresh; default `optax.sgd(1.0)`. What it
            returns is added, so it has to point downhill, as optax's optimizers do:
            `optax.clip_by_global_norm(1.0)` alone ascends, and
            `optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))` descends. It receives the
            support loss as `value=` and the gradient as `grad=`, for those that need them.
        mask: a pytree prefix of `params` of bools, or a function from `params` to one: which
            parameters are adapted. The others stay, and still get their meta-gradient.
        mode: how the step is differentiated, one of `meta_gradient.MODES`.

    Returns:
        The adapted parameters, in the form of `params`; and the metrics of `loss_fn` with `"loss"`
        added, both taken before the step.

    Raises:
        ValueError: no float leaf, a loss that is not a scalar, an `inner_lr` or `mask` that does
            not fit `params`, an unknown mode, an array without elements in `batch`.
        TypeError: `loss_fn` does not return a pair of a loss and a dict; a complex parameter is to
            be adapted; `inner_optimizer` needs more than `value` and `grad`.
    """
    if _is_per_step(inner_lr):
        raise ValueError(
            "inner_update takes one step, so inner_lr must be a number or a pytree prefix of "
            f"params; received per-step rates {_shapes(inner_lr)}. Use adapt for several steps."
        )
    types.check_not_empty(batch, "batch")
    loop = _InnerLoop(loss_fn, params, inner_optimizer, mask, mode)
    (adapted, _), metrics = loop.step(loop.start(), batch, inner_lr)
    return loop.merge(adapted), metrics


def adapt(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    inner_lr: InnerRate,
    num_steps: int = 1,
    *,
    inner_optimizer: optax.GradientTransformation | None = None,
    mask: Mask = None,
    mode: str = "reverse",
    batch_per_step: bool = False,
    monitor: Callable[[Params], PyTree] | None = None,
) -> tuple[Params, Any]:
    """S gradient steps on one task: `inner_update` repeated, the optimizer's state carried along.

    Args:
        loss_fn: as in `inner_update`.
        params: as in `inner_update`.
        batch: the task's support batch, the same in every step unless `batch_per_step` says else.
        inner_lr: as in `inner_update`, or a rate for each step: an array of shape [S], or
            `PerStep(tree)` with a leading axis of S on every leaf. A bare array with one axis is
            always taken as rates for steps; for a rate for each entry of parameters that are
            themselves a bare vector, put both into a dict.
        num_steps: S, 0 or more. A Python int.
        inner_optimizer: as in `inner_update`.
        mask: as in `inner_update`.
        mode: as in `inner_update`; `"remat"` recomputes each step in the backward pass.
        batch_per_step: whether every leaf of `batch` has a leading axis of S, a batch for each
            step: new samples or minibatches.
        monitor: a function of the parameters to be evaluated before the first and after each step.

    Returns:
        The adapted parameters; and the metrics of each step, stacked on a leading axis of S, taken
        before the step. With a `monitor` the second is the pair `(metrics, monitored)`, the
        latter with a leading axis of S + 1.

    Raises:
        ValueError: as `inner_update`; `num_steps < 0`; rates or batches for another number of
            steps.
        TypeError: as `inner_update`; `num_steps` is not an int.
    """
    num_steps = types.check_num_steps(num_steps)
    if num_steps:
        types.check_not_empty(batch, "batch")
    loop = _InnerLoop(loss_fn, params, inner_optimizer, mask, mode)
    rates, constant = _split_rates(inner_lr, num_steps)
    batches = None
    if batch_per_step:
        _check_leading_axis(batch, num_steps, "batch, with batch_per_step,")
        batches = batch

    def body(carry, own):
        rate, own_batch = own
        seen = None if monitor is None else monitor(loop.merge(carry[0]))
        support = own_batch if batch_per_step else batch
        carry, metrics = loop.step(carry, support, constant if rate is None else rate)
        return carry, (metrics, seen)

    if mode == "remat":
        body = jax.checkpoint(body, prevent_cse=False)
    if num_steps == 1:
        # Without a loop, vmap over tasks leaves the first step's parameters unbatched, and its
        # matrix products are those of one large batch: a meta-step of S=1 is a third faster.
        first = jax.tree.map(lambda x: x[0], (rates, batches))
        (adapted, _), outputs = body(loop.start(), first)
        metrics, seen = jax.tree.map(lambda x: jnp.asarray(x)[None], outputs)
    else:
        (adapted, _), (metrics, seen) = jax.lax.scan(
            body, loop.start(), (rates, batches), length=num_steps
        )
    adapted_params = loop.merge(adapted)
    if monitor is None:
        return adapted_params, metrics
    last = monitor(adapted_params)
    monitored = jax.tree.map(lambda s, x: jnp.concatenate([s, jnp.asarray(x)[None]]), seen, last)
    return adapted_params, (metrics, monitored)


def meta_loss(
    loss_fn: LossFn,
    params: Params,
    task: Task,
    inner_lr: InnerRate,
    num_steps: int = 1,
    *,
    outer_loss: LossFn | None = None,
    inner_optimizer: optax.GradientTransformation | None = None,
    mask: Mask = None,
    mode: str = "reverse",
    batch_per_step: bool = False,
) -> tuple[Array, Metrics]:
    """The loss on a task's query batch after adapting on its support batch (paper equation 2).

    Its gradient in `params` is the task's term of the meta-gradient (Algorithm 1, line 8).

    Args:
        loss_fn: the inner loss, as in `inner_update`.
        params: the meta-parameters theta.
        task: support and query batch.
        inner_lr: as in `adapt`.
        num_steps: S, as in `adapt`. With 0 this is plain multi-task learning on the query batch.
        outer_loss: the loss on the query batch, in the form of `loss_fn`; default `loss_fn`.
        inner_optimizer: as in `inner_update`.
        mask: as in `inner_update`.
        mode: how the inner loop is differentiated, one of `meta_gradient.MODES`.
        batch_per_step: as in `adapt`: whether the support holds a batch for each step.

    Returns:
        The query loss, a scalar; and `{"support": ..., "query": ...}`: the metrics of each inner
        step [S], and those on the query batch, both with `"loss"`.

    Raises:
        ValueError: as `adapt`; support and query of different structure when one loss serves both.
        TypeError: as `adapt`; a task without support and query.
    """
    if outer_loss is None or outer_loss is loss_fn:
        types.check_same_structure(task)
        outer_loss = loss_fn
    else:
        types.check_is_task(task)
    types.check_not_empty(task.query, "query")
    adapted_params, support_metrics = adapt(
        loss_fn,
        params,
        task.support,
        inner_lr,
        num_steps,
        inner_optimizer=inner_optimizer,
        mask=mask,
        mode=mode,
        batch_per_step=batch_per_step,
    )
    loss, metrics = types.check_loss_output(outer_loss(adapted_params, task.query), "outer_loss")
    return loss, {"support": support_metrics, "query": {**metrics, "loss": loss}}


class _InnerLoop:
    """What the steps of one adaptation share: the loss, the optimizer, and who is adapted."""

    def __init__(self, loss_fn, params, inner_optimizer, mask, mode):
        types.check_choice(mode, meta_gradient.MODES, "mode")
        types.check_has_float_leaf(params)
        self._params = params
        self._mask = _full_mask(mask, params)
        self._optimizer = inner_optimizer
        self._mode = mode

        def loss_of_adapted(adapted, batch):
            return types.check_loss_output(loss_fn(self.merge(adapted), batch), "loss_fn")

        self._gradient = meta_gradient.gradient(loss_of_adapted, mode)

    def start(self):
        adapted = jax.tree.map(
            lambda keep, p: jnp.asarray(p) if keep else None, self._mask, self._params
        )
        state = None if self._optimizer is None else self._optimizer.init(adapted)
        return adapted, state

    def merge(self, adapted: Params) -> Params:
        return jax.tree.map(lambda keep, p, a: a if keep else p, self._mask, self._params, adapted)

    def step(self, carry, batch, inner_lr):
        adapted, state = carry
        grads, (loss, metrics) = self._gradient(adapted, batch)
        rates = _broadcast_rates(inner_lr, self._params)
        rates = jax.tree.map(lambda keep, r: r if keep else None, self._mask, rates)
        apply = self._apply
        if self._mode == "mixed" and self._optimizer is not None:
            # Of an optimizer's step, too, only what goes in is kept for the backward pass.
            apply = jax.checkpoint(apply, prevent_cse=False)
        return apply(adapted, grads, loss, state, rates), {**metrics, "loss": loss}

    def _apply(self, adapted, grads, loss, state, rates):
        if self._optimizer is None:
            updates = jax.tree.map(jnp.negative, grads)
        else:
            if self._mode == "first_order":  # the update is taken as independent of theta
                loss = jax.lax.stop_gradient(loss)
            updates, state = optimizers.update(
                self._optimizer, grads, state, adapted, loss, "inner_optimizer"
            )
        stepped = jax.tree.map(
            lambda p, u, rate: (p + rate * u).astype(p.dtype), adapted, updates, rates
        )
        return stepped, state


def _full_mask(mask: Mask, params: Params) -> PyTree:
    """The mask as a pytree of Python bools with the structure of `params`."""
    if mask is None:
        types.check_not_complex(params)
        return jax.tree.map(types.is_float, params)
    # A module that is itself a pytree (Equinox) is a mask, although it can be called.
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
    types.check_not_complex(jax.tree.map(lambda keep, p: p if keep else None, full, params))
    full = jax.tree.map(lambda keep, p: keep and types.is_float(p), full, params)
    if not any(jax.tree.leaves(full)):
        raise ValueError("mask selects no floating-point leaf of params, so nothing would adapt.")
    return full


def _is_bare(inner_lr: InnerRate) -> bool:
    return jax.tree_util.treedef_is_leaf(jax.tree.structure(inner_lr))


def _is_per_step(inner_lr: InnerRate) -> bool:
    return isinstance(inner_lr, PerStep) or (_is_bare(inner_lr) and jnp.ndim(inner_lr) == 1)


def _split_rates(inner_lr: InnerRate, num_steps: int) -> tuple[PyTree, PyTree]:
    """`(rates with a leading axis of S, None)`, or `(None, the same rates for every step)`."""
    if not _is_per_step(inner_lr):
        return None, inner_lr
    rates = inner_lr.rates if isinstance(inner_lr, PerStep) else inner_lr
    _check_leading_axis(rates, num_steps, "per-step inner_lr")
    return jax.tree.map(jnp.asarray, rates), None


def _check_leading_axis(tree: PyTree, num_steps: int, what: str) -> None:
    for leaf in jax.tree.leaves(tree):
        if jnp.ndim(leaf) < 1 or jnp.shape(leaf)[0] != num_steps:
            raise ValueError(
                f"{what} must have a leading axis of num_steps={num_steps} on every "
                f"leaf; received shape {jnp.shape(leaf)}."
            )


def _broadcast_rates(inner_lr: InnerRate, params: Params) -> PyTree:
    """A rate for each leaf of `params`."""
    try:
        rates = jax.tree.broadcast(inner_lr, params)
    except ValueError as error:
        raise ValueError(
            "inner_lr must be a number, a pytree prefix of params, or per-step rates; received "
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
                f"inner_lr must broadcast against the parameter it is for: at "
                f"{jax.tree_util.keystr(path) or 'the only leaf'} expected shape () or {target}, "
                f"received {shape}."
            )
    return rates


def _shapes(tree: PyTree) -> Any:
    return jax.tree.map(jnp.shape, tree)
