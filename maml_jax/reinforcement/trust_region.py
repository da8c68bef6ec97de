"""Parts of a trust-region step: curvature products, conjugate gradients, and a line search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from maml_jax.reinforcement.objectives import Samples, divergence
from maml_jax.types import Array, Task

PRODUCTS = ("gauss_newton", "exact", "finite_differences")
DIFFERENCE = 1e-2  # norm of a finite difference's step, in units of the parameters

Product = Callable[[Array], Array]


def gauss_newton(distribution: Any, tasks: Task, push: Product, pull: Product) -> Product:
    """Makes the product `v -> J'F J v`, F the Fisher information of the distributions.

    Args:
        distribution: distributions of the adapted policies at the queries' states, leaves
            [T, H, E, ...].
        tasks: tasks with these queries.
        push: `v -> J v`, J the derivative of `distribution` in the flat parameters.
        pull: `u -> J'u`.
    """
    recorded = tasks._replace(query=tasks.query._replace(distribution=distribution))
    gradient = jax.grad(lambda d: _mean_divergence(d, recorded))

    def multiply(vector: Array) -> Array:
        return pull(jax.jvp(gradient, (distribution,), (push(vector),))[1])

    return multiply


def second_derivative(
    distributions: Callable[[Array], Any], tasks: Task, params: Array, products: str
) -> Product:
    """Makes the product `v -> A v`, A the second derivative at `params` of the mean divergence.

    Args:
        distributions: `distributions(params)`, leaves [T, H, E, ...].
        tasks: tasks whose queries hold the states.
        params: flat parameters [P].
        products: "exact", or "finite_differences" of the divergence's gradient.
    """
    recorded = tasks._replace(query=tasks.query._replace(distribution=distributions(params)))
    gradient = jax.grad(lambda p: _mean_divergence(distributions(p), recorded))
    if products == "exact":
        return lambda vector: jax.jvp(gradient, (params,), (vector,))[1]

    def multiply(vector: Array) -> Array:
        step = DIFFERENCE / (jnp.linalg.norm(vector) + 1e-8)
        return (gradient(params + step * vector) - gradient(params - step * vector)) / (2.0 * step)

    return multiply


def _mean_divergence(distribution: Any, tasks: Task) -> Array:
    return jnp.mean(jax.vmap(divergence)(distribution, tasks.query))


def first_episodes(tasks: Task, count: int | None) -> Task:
    """Keeps the first `count` episodes of each task in support and query; all for None."""
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
    """Solves `A x = target` approximately from x = 0, A positive definite.

    Args:
        product: `v -> A v`.
        target: right-hand side [P].
        num_steps: iterations, each of one product.

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
    """The result of a line search.

    Attributes:
        params: accepted parameters; the initial ones if no step was accepted.
        loss: loss at `params`.
        kl: divergence at `params`, nats.
        accepted: whether a step was accepted.
        backtracks: number of rejected tries.
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
    """Shrinks a step until the loss decreases and the divergence is within bounds.

    Args:
        score: `score(params) -> (loss, divergence)`.
        params: initial parameters [P].
        full_step: step that the first try subtracts [P].
        loss_before: loss at `params`.
        max_kl: bound on the divergence, nats.
        shrink: factor from one try to the next.
        tries: most tries.

    Returns:
        The first try within bounds; the initial parameters if there is none.
    """

    def unsettled(carry: LineSearch) -> Array:
        return ~carry.accepted & (carry.backtracks < tries)

    def body(carry: LineSearch) -> LineSearch:
        length = shrink ** carry.backtracks.astype(params.dtype)
        candidate = params - length * full_step
        loss, kl = score(candidate)
        accepted = (loss < loss_before) & (kl <= max_kl)  # False for NaN
        return LineSearch(
            jnp.where(accepted, candidate, params),
            jnp.where(accepted, loss, loss_before),
            jnp.where(accepted, kl, 0.0),
            accepted,
            carry.backtracks + jnp.where(accepted, 0, 1),
        )

    start = LineSearch(
        params, loss_before, jnp.zeros_like(loss_before), jnp.zeros((), bool), jnp.int32(0)
    )
    return jax.lax.while_loop(unsettled, body, start)
