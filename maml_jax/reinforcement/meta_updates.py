"""The outer step of meta-reinforcement learning: TRPO as in the paper, or gradient steps.

All share one interface, so that a meta-iteration takes any of them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from maml_jax import batching as tasks_lib
from maml_jax import checks, optimizers
from maml_jax.reinforcement.checks import check_number
from maml_jax.reinforcement.objectives import SurrogateFn, check_clip, surrogate_of
from maml_jax.reinforcement.problem import MODES, ReinforcementProblem
from maml_jax.types import Array, Metrics, Params, PyTree, Task

PRODUCTS = ("gauss_newton", "exact", "finite_differences")
DIFFERENCE = 1e-2  # length of a finite difference's step along the vector, in parameters


class MetaUpdate(NamedTuple):
    """How the meta-parameters follow from the tasks of one meta-iteration.

    Attributes:
        init: `init(params) -> state`.
        update: `update(params, state, tasks, num_devices) -> (params, state, metrics)` for a
            device's share of the tasks, leading axis T; every device gets the same result.
            Metrics are scalars but for "losses", each task's surrogate before the step [T], and, if
            tasks are differentiated one by one, "nonfinite", whether the gradient of a task is not
            finite, bool [T]. "gradient_norm", if there, is of all tasks together.
    """

    init: Callable[[Params], PyTree]
    update: Callable[[Params, PyTree, Task, int], tuple[Params, PyTree, Metrics]]


def trpo(
    problem: ReinforcementProblem,
    *,
    max_kl: float = 0.01,
    products: str = "gauss_newton",
    product_episodes: int | None = None,
    conjugate_steps: int = 10,
    damping: float = 1e-5,
    shrink: float = 0.8,
    tries: int = 15,
    batching: tasks_lib.Batching = None,
) -> MetaUpdate:
    """Trust-region policy optimisation of the meta-objective (Schulman et al. 2015; the paper's).

    The direction solves `A x = g` by conjugate gradients, g the gradient of the surrogate and A the
    second derivative of the mean KL divergence at post-adaptation states, both through the
    adaptation. The step is as long as the quadratic model says that `max_kl` allows, then shrunk
    until the surrogate is better and the divergence within bounds; if that never happens the
    parameters stay.

    ====================== ===================================================================
    products               A v
    ====================== ===================================================================
    `"gauss_newton"`       J'F J v, with J the derivative of the adapted policy's distributions
                           and F their Fisher information. At the policy that acted the
                           divergence has no gradient, so this is exact, without third derivatives
    `"exact"`              forward over reverse of the divergence
    `"finite_differences"` central difference of the divergence's gradient (as the paper)
    ====================== ===================================================================

    Args:
        problem: whose adaptation is differentiated.
        max_kl: bound of the mean KL divergence, nats, above 0.
        products: how A is multiplied with a vector, see above.
        product_episodes: episodes of each task that A is estimated from, at most those that there
            are; default all.
        conjugate_steps: iterations of conjugate gradients.
        damping: multiple of the identity that is added to A, 0 or more.
        shrink: factor from one try of the line search to the next, between 0 and 1.
        tries: of the line search.
        batching: how a device's tasks are batched, see `maml_jax.batching`.

    Raises:
        ValueError: an unknown kind of product, a count below 1, or a number out of its range.
        TypeError: `problem` is not from `reinforcement_problem`.
    """
    _check_problem(problem)
    checks.check_choice(products, PRODUCTS, "products")
    checks.check_counts(conjugate_steps=conjugate_steps, tries=tries)
    if product_episodes is not None:
        checks.check_counts(product_episodes=product_episodes)
    check_number("max_kl", max_kl, "above 0 and finite", lambda x: 0 < x < math.inf)
    check_number("damping", damping, "of 0 or more and finite", lambda x: 0 <= x < math.inf)
    check_number("shrink", shrink, "between 0 and 1", lambda x: 0 < x < 1)
    tasks_lib.resolve_batching(batching, 1)

    def update(
        params: Params, state: PyTree, tasks: Task, num_devices: int = 1
    ) -> tuple[Params, PyTree, Metrics]:
        flat, unravel = ravel_pytree(params)

        def outputs(flat: Array, tasks: Task) -> Any:
            adapted = problem.adapted_distribution
            return tasks_lib.map_tasks(lambda t: adapted(unravel(flat), t), tasks, batching)

        def judge(distribution: Any) -> tuple[Array, Array]:
            """Surrogate and divergence of each task [T]."""
            losses, metrics = jax.vmap(surrogate_of)(distribution, tasks.query)
            return losses, metrics["kl"]

        # One linearisation of the adapted policy serves the gradient and all products.
        distribution, push = jax.linearize(lambda p: outputs(p, tasks), flat)
        pull = jax.linear_transpose(push, flat)
        losses, divergences = judge(distribution)
        slope = jax.grad(lambda d: jnp.mean(judge(d)[0]))(distribution)
        gradient = tasks_lib.mean_over_devices(pull(slope)[0], num_devices)

        some = _first_episodes(tasks, product_episodes)
        if products == "gauss_newton":
            if product_episodes is not None:
                distribution, push = jax.linearize(lambda p: outputs(p, some), flat)
                pull = jax.linear_transpose(push, flat)
            multiply = _gauss_newton(distribution, some, push, pull)
        else:
            multiply = _of_divergence(lambda p: outputs(p, some), some, flat, products)

        def product(vector: Array) -> Array:
            return tasks_lib.mean_over_devices(multiply(vector), num_devices) + damping * vector

        direction, residual = conjugate_gradients(product, gradient, conjugate_steps)
        curvature = jnp.vdot(direction, product(direction))
        scale = jnp.sqrt(2.0 * max_kl / jnp.maximum(curvature, 1e-8))
        before = tasks_lib.mean_over_devices(jnp.mean(losses), num_devices)

        def score(candidate: Array) -> tuple[Array, Array]:
            return tasks_lib.mean_over_tasks(judge(outputs(candidate, tasks)), num_devices)

        found = line_search(score, flat, scale * direction, before, max_kl, shrink, tries)
        metrics = {
            "losses": losses,
            "surrogate_before": before,
            "surrogate_after": found.loss,
            "kl_before": tasks_lib.mean_over_devices(jnp.mean(divergences), num_devices),
            "kl": found.kl,
            "accepted": found.accepted.astype(flat.dtype),
            "backtracks": found.backtracks.astype(flat.dtype),
            "gradient_norm": jnp.linalg.norm(gradient),
            "step_norm": jnp.linalg.norm(found.params - flat),
            "conjugate_residual": residual,
        }
        return unravel(found.params), state, metrics

    def precise(*arguments: Any) -> tuple[Params, PyTree, Metrics]:
        # Conjugate gradients and the line search live on small differences, which an accelerator's
        # reduced precision would drown.
        with jax.default_matmul_precision("highest"):
            return update(*arguments)

    return MetaUpdate(lambda params: (), precise)


def _check_problem(problem: Any) -> None:
    if not isinstance(problem, ReinforcementProblem):
        raise TypeError(
            "problem must be what reinforcement_problem returns; received "
            f"{type(problem).__name__}."
        )
    checks.check_choice(problem.mode, MODES, "problem.mode")


def _first_episodes(tasks: Task, count: int | None) -> Task:
    """The first episodes of each task, in support and query."""
    if count is None:
        return tasks

    def keep(samples: Any) -> Any:
        episode_axis = samples.alive.ndim - 1
        metrics = samples.metrics
        kept = jax.tree.map(
            lambda x: (
                jax.lax.slice_in_dim(x, 0, min(count, x.shape[episode_axis]), 1, episode_axis)
                if x.ndim > episode_axis
                else x
            ),
            samples._replace(metrics={}),
        )
        return kept._replace(metrics=metrics)

    return Task(keep(tasks.support), keep(tasks.query))


def _mean_divergence(distribution: Any, tasks: Task) -> Array:
    """Mean over tasks of KL(old || distribution); old is the distribution where it is taken."""

    def one(new: Any, samples: Any) -> Array:
        return surrogate_of(new, samples)[1]["kl"]

    return jnp.mean(jax.vmap(one)(distribution, tasks.query))


def _gauss_newton(
    distribution: Any, tasks: Task, push: Callable[[Array], Any], pull: Callable[[Any], Any]
) -> Callable[[Array], Array]:
    recorded = tasks._replace(query=tasks.query._replace(distribution=distribution))
    slope = jax.grad(lambda d: _mean_divergence(d, recorded))

    def multiply(vector: Array) -> Array:
        return pull(jax.jvp(slope, (distribution,), (push(vector),))[1])[0]

    return multiply


def _of_divergence(
    outputs: Callable[[Array], Any], tasks: Task, flat: Array, products: str
) -> Callable[[Array], Array]:
    recorded = tasks._replace(query=tasks.query._replace(distribution=outputs(flat)))
    slope = jax.grad(lambda p: _mean_divergence(outputs(p), recorded))
    if products == "exact":
        return lambda vector: jax.jvp(slope, (flat,), (vector,))[1]

    def multiply(vector: Array) -> Array:
        step = DIFFERENCE / (jnp.linalg.norm(vector) + 1e-8)
        return (slope(flat + step * vector) - slope(flat - step * vector)) / (2.0 * step)

    return multiply


def conjugate_gradients(
    product: Callable[[Array], Array], target: Array, num_steps: int
) -> tuple[Array, Array]:
    """Approximate solution of `A x = target`, A positive definite, from x = 0.

    Args:
        product: `v -> A v`.
        target: [P].
        num_steps: iterations; each takes one product.

    Returns:
        x [P], and the norm of the residual relative to that of the target.
    """

    def body(_: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        x, residual, direction, square = carry
        image = product(direction)
        length = square / jnp.maximum(jnp.vdot(direction, image), 1e-30)
        x = x + length * direction
        residual = residual - length * image
        new_square = jnp.vdot(residual, residual)
        direction = residual + new_square / jnp.maximum(square, 1e-30) * direction
        return x, residual, direction, new_square

    square = jnp.vdot(target, target)
    start = (jnp.zeros_like(target), target, target, square)
    x, _, _, left = jax.lax.fori_loop(0, num_steps, body, start)
    return x, jnp.sqrt(left / jnp.maximum(square, 1e-30))


class LineSearch(NamedTuple):
    """What a line search found.

    Attributes:
        params: the accepted ones, or those that it began with.
        loss: the surrogate there.
        kl: the divergence there, nats.
        accepted: whether a step was taken.
        backtracks: how often the step was shrunk.
    """

    params: Array
    loss: Array
    kl: Array
    accepted: Array
    backtracks: Array


def line_search(
    score: Callable[[Array], tuple[Array, Array]],
    params: Array,
    full_step: Array,
    loss_before: Array,
    max_kl: float,
    shrink: float,
    tries: int,
) -> LineSearch:
    """Shrinks a step until the loss is lower and the divergence within bounds.

    Args:
        score: `params -> (loss, divergence)`.
        params: where it begins [P].
        full_step: subtracted from the parameters at the first try [P].
        loss_before: the loss at `params`.
        max_kl: bound of the divergence, nats.
        shrink: factor from one try to the next.
        tries: at most; if none is accepted the parameters are those that it began with.
    """

    def unsettled(carry: LineSearch) -> Array:
        return ~carry.accepted & (carry.backtracks < tries)

    def body(carry: LineSearch) -> LineSearch:
        length = shrink ** carry.backtracks.astype(params.dtype)
        candidate = params - length * full_step
        loss, kl = score(candidate)
        fine = (loss < loss_before) & (kl <= max_kl)  # False for what is not finite
        return LineSearch(
            jnp.where(fine, candidate, params),
            jnp.where(fine, loss, loss_before),
            jnp.where(fine, kl, 0.0),
            fine,
            carry.backtracks + jnp.where(fine, 0, 1),
        )

    start = LineSearch(
        params, loss_before, jnp.zeros_like(loss_before), jnp.zeros((), bool), jnp.int32(0)
    )
    return jax.lax.while_loop(unsettled, body, start)


def gradient_steps(
    problem: ReinforcementProblem,
    optimizer: optax.GradientTransformation,
    *,
    num_epochs: int = 1,
    clip: float | None = None,
    loss: SurrogateFn | None = None,
    batching: tasks_lib.Batching = None,
) -> MetaUpdate:
    """Steps of an optimizer on the surrogate.

    With one epoch and no clip this is the plain policy gradient (REINFORCE); with several and a
    clip, and the inner objective "lvc", it is ProMP without its penalty on the inner steps
    (Rothfuss et al. 2019).

    Args:
        problem: whose adaptation is differentiated.
        optimizer: any optax transformation.
        num_epochs: steps on the same tasks.
        clip: epsilon of the clipped likelihood ratio; None for none.
        loss: `loss(distribution, samples) -> (loss, metrics)` with "kl" among the metrics, in place
            of the surrogate; it has its own clip.
        batching: how a device's tasks are batched, see `maml_jax.batching`.

    Raises:
        ValueError: `num_epochs` below 1, a clip that is not above 0, or `clip` beside `loss`; in
            the first iteration, a loss that is not a scalar, or without "kl".
        TypeError: `problem` is not from `reinforcement_problem`, `optimizer` no optax
            transformation; in the first iteration, a loss that does not return a pair.
    """
    _check_problem(problem)
    checks.check_counts(num_epochs=num_epochs)
    if not (callable(getattr(optimizer, "init", None)) and hasattr(optimizer, "update")):
        raise TypeError(
            f"optimizer must be an optax transformation, optax.adam(1e-3) say; received "
            f"{optimizer!r}."
        )
    if loss is not None and clip is not None:
        raise ValueError(
            f"loss takes the place of the clipped surrogate, so that clip={clip} would do nothing; "
            "leave one of them out."
        )
    check_clip(clip)
    tasks_lib.resolve_batching(batching, 1)
    judge = functools.partial(surrogate_of, clip=clip) if loss is None else loss

    def task_loss(params: Params, task: Task) -> tuple[Array, Metrics]:
        output = judge(problem.adapted_distribution(params, task), task.query)
        value, metrics = checks.check_loss_output(output, "loss")
        if "kl" not in metrics:
            raise ValueError(f"loss must have 'kl' among its metrics; received {sorted(metrics)}.")
        return value, metrics

    def update(
        params: Params, state: PyTree, tasks: Task, num_devices: int = 1
    ) -> tuple[Params, PyTree, Metrics]:
        num_tasks = tasks_lib.axis_size(tasks)

        def epoch(carry: tuple[Params, PyTree], _: None) -> tuple[Any, Any]:
            params, state = carry
            found = tasks_lib.sum_gradient(task_loss, params, tasks, batching)
            grads = jax.tree.map(lambda g: g / num_tasks, found.gradient)
            grads = tasks_lib.mean_over_devices(grads, num_devices)
            grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
            loss = tasks_lib.mean_over_tasks(found.losses, num_devices)
            updates, state = optimizers.update(optimizer, grads, state, params, loss, "optimizer")
            norm = jnp.linalg.norm(ravel_pytree(grads)[0])
            record = (found.losses, found.nonfinite, found.metrics["kl"], norm)
            return (optax.apply_updates(params, updates), state), record

        (new, state), (losses, nonfinite, divergences, norms) = jax.lax.scan(
            epoch, (params, state), None, length=num_epochs
        )

        def after(task: Task) -> tuple[Array, Array]:
            loss, metrics = task_loss(new, task)
            return loss, metrics["kl"]

        ends = tasks_lib.map_tasks(after, tasks, batching)
        loss_after, kl = tasks_lib.mean_over_tasks(ends, num_devices)
        metrics = {
            "losses": losses[0],
            "nonfinite": jnp.any(nonfinite, axis=0),
            "surrogate_before": tasks_lib.mean_over_devices(jnp.mean(losses[0]), num_devices),
            "surrogate_after": loss_after,
            "kl_before": tasks_lib.mean_over_devices(jnp.mean(divergences[0]), num_devices),
            "kl": kl,
            "gradient_norm": norms[0],
        }
        return new, state, metrics

    return MetaUpdate(optimizer.init, update)
