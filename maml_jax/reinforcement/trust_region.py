"""The parts of a trust-region step: curvature products, conjugate gradients, the line search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from maml_jax.reinforcement.objectives import Samples, divergence
from maml_jax.types import Array, Task

PRODUCTS = ("gauss_newton", "exact", "finite_differences")
DIFFERENCE = 1e-2  # length of a finite difference's step along the vector, in parameters

Product = Callable[[Array], Array]


def gauss_newton(distribution: Any, tasks: Task, push: Product, pull: Product) -> Product:
    """`v -> J'F J v`, F the Fisher information of each task's distributions.

    Args:
        distribution: of the adapted policies at the queries' states, leaves [T, H, E, ...].
        tasks: where it was taken.
        push: `v -> J v`, J the derivative of `distribution` in the flat parameters.
        pull: `u -> J'u`.
    """
    recorded = tasks._replace(query=tasks.query._replace(distribution=distribution))
    slope = jax.grad(lambda d: _mean_divergence(d, recorded))

    def multiply(vector: Array) -> Array:
        return pull(jax.jvp(slope, (distribution,), (push(vector),))[1])

    return multiply


def second_derivative(
    distributions: Callable[[Array], Any], tasks: Task, params: Array, products: str
) -> Product:
    """`v -> A v`, A the second derivative of the mean divergence from where the parameters are.

    Args:
        distributions: of the flat parameters, leaves [T, H, E, ...].
        tasks: whose queries' states are counted.
        params: flat [P].
        products: "exact", or "finite_differences" of the divergence's gradient.
    """
    recorded = tasks._replace(query=tasks.query._replace(distribution=distributions(params)))
    slope = jax.grad(lambda p: _mean_divergence(distributions(p), recorded))
    if products == "exact":
        return lambda vector: jax.jvp(slope, (params,), (vector,))[1]

    def multiply(vector: Array) -> Array:
        step = DIFFERENCE / (jnp.linalg.norm(vector) + 1e-8)
        return (slope(params + step * vector) - slope(params - step * vector)) / (2.0 * step)

    return multiply


def _mean_divergence(distribution: Any, tasks: Task) -> Array:
    return jnp.mean(jax.vmap(divergence)(distribution, tasks.query))


def first_episodes(tasks: Task, count: int | None) -> Task:
    """The first episodes of each task, in support and query; all of them for None."""
    if count is None:
        return tasks

    def keep(samples: Samples) -> Samples:
        axis = samples.alive.ndim - 1

        def cut(x: Array) -> Array:
            if x.ndim <= axis:
                return x
            return jax.lax.slice_in_dim(x, 0, min(count, x.shape[axis]), 1, axis)

        kept = jax.tree.map(cut, samples._replace(metrics={}))
        return kept._replace(metrics=samples.metrics)

    return Task(keep(tasks.support), keep(tasks.query))


def conjugate_gradients(product: Product, target: Array, num_steps: int) -> tuple[Array, Array]:
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
    """Where a line search ends.

    Attributes:
        params: the accepted ones, or those that it began with.
        loss: there.
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
