"""TRPO as the outer step of meta-reinforcement learning (Algorithm 3, line 10)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from maml_jax import checks, inner_loop, mesh, pooling
from maml_jax.batching import Batching, map_tasks, resolve_batching
from maml_jax.inner_loop import Mask
from maml_jax.reinforcement import trust_region
from maml_jax.reinforcement.checks import check_number
from maml_jax.reinforcement.objectives import divergence
from maml_jax.reinforcement.problem import ReinforcementProblem
from maml_jax.reinforcement.trust_region import Product
from maml_jax.reinforcement.updates import (
    as_returns,
    check_params,
    check_problem,
    metrics_of_episodes,
)
from maml_jax.types import Array, MetaUpdate, Metrics, Params, PyTree, Task


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
    batching: Batching = None,
    mask: Mask = None,
) -> MetaUpdate:
    """Trust-region policy optimisation of the meta-objective (Schulman et al. 2015; the paper's).

    The direction solves `A x = g` by conjugate gradients, g the gradient of the problem's outer
    loss and A the second derivative of the mean KL divergence at post-adaptation states, both
    through the adaptation. The step is as long as the quadratic model says that `max_kl` allows,
    then shrunk until the loss is lower and the divergence within bounds; if that never happens the
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
        mask: which meta-parameters move, as in `maml_jax.gradient_update`. Others stay bit for bit,
            and the system is solved in the subspace of those that move.

    Returns:
        A meta-update without state. Its metrics: "loss", minus the mean return after adaptation;
        "before" and "after", means over tasks of `Samples.metrics`; "surrogate_before" and
        "surrogate_after", the outer loss; "kl_before" and "kl"; "accepted" and "backtracks" of the
        line search; "gradient_norm", "step_norm", "conjugate_residual"; and what
        `maml_jax.check_finite` reads.

    Raises:
        ValueError: an unknown kind of product, a count below 1, or a number out of its range; in a
            step, parameters of another policy.
        TypeError: `problem` is not from `reinforcement_problem`.
    """
    check_problem(problem)
    checks.check_choice(products, trust_region.PRODUCTS, "products")
    checks.check_counts(conjugate_steps=conjugate_steps, tries=tries)
    if product_episodes is not None:
        checks.check_counts(product_episodes=product_episodes)
    check_number("max_kl", max_kl, "above 0 and finite", lambda x: 0 < x < math.inf)
    check_number("damping", damping, "of 0 or more and finite", lambda x: 0 <= x < math.inf)
    check_number("shrink", shrink, "between 0 and 1", lambda x: 0 < x < 1)
    resolve_batching(batching, 1)

    def step(params: Params, state: PyTree, tasks: Task) -> tuple[Params, PyTree, Metrics]:
        check_params(problem, params)
        part = inner_loop.partition(params, mask)
        start, unravel = ravel_pytree(part.selected)
        policies = _Policies(problem, lambda flat: part.combine(unravel(flat)), batching)

        # One linearisation of the adaptation serves the gradient and all products.
        at = _linearize(policies, start, tasks)
        losses, kl_before, slope = policies.slope(at.adapted, tasks)
        gradient = mesh.mean_over_devices(at.pull(slope))
        multiply = _multiply(policies, start, tasks, at, products, product_episodes)

        def product(vector: Array) -> Array:
            return mesh.mean_over_devices(multiply(vector)) + damping * vector

        direction, residual = trust_region.conjugate_gradients(product, gradient, conjugate_steps)
        curvature = jnp.vdot(direction, product(direction))
        scale = jnp.sqrt(2.0 * max_kl / jnp.maximum(curvature, 1e-8))
        pooled = pooling.pool(losses, None, {"kl_before": kl_before, **metrics_of_episodes(tasks)})
        end = trust_region.line_search(
            lambda flat: pooling.mean_over_tasks(policies.outcomes_of(flat, tasks)),
            start,
            scale * direction,
            pooled.loss,
            max_kl,
            shrink,
            tries,
        )
        new = part.combine(unravel(end.params))
        metrics = {
            "surrogate_after": end.loss,
            "kl": end.kl,
            "accepted": end.accepted.astype(start.dtype),
            "backtracks": end.backtracks.astype(start.dtype),
            "gradient_norm": jnp.linalg.norm(gradient),
            "step_norm": jnp.linalg.norm(end.params - start),
            "conjugate_residual": residual,
        }
        return new, state, as_returns({**pooling.report(pooled, gradient, new), **metrics})

    def update(params: Params, state: PyTree, tasks: Task) -> tuple[Params, PyTree, Metrics]:
        # Conjugate gradients and the line search live on small differences, which an accelerator's
        # reduced precision would drown.
        with jax.default_matmul_precision("highest"):
            return step(params, state, tasks)

    return MetaUpdate(lambda params: (), update)


class _Policies(NamedTuple):
    """A device's adapted policies, as functions of the flat parameters that move [P].

    Attributes:
        problem: whose policies they are.
        restore: `restore(flat) -> params`.
        batching: how tasks are batched.
    """

    problem: ReinforcementProblem
    restore: Callable[[Array], Params]
    batching: Batching

    def adapt(self, flat: Array, tasks: Task) -> Params:
        """Adapted parameters, leaves [T, ...]."""
        params, adapt = self.restore(flat), self.problem.learner.adapt
        return map_tasks(lambda task: adapt(params, task.support), tasks, self.batching)

    def unroll(self, adapted: Params, tasks: Task) -> Any:
        """Distributions at the queries' states, leaves [T, H, E, ...]."""
        return map_tasks(lambda pair: self._unroll(*pair), (adapted, tasks), self.batching)

    def outcomes_of(self, flat: Array, tasks: Task) -> tuple[Array, Array]:
        """Outer losses and divergences after adaptation, each [T]."""
        params, adapt = self.restore(flat), self.problem.learner.adapt
        return map_tasks(
            lambda task: self._outcome(adapt(params, task.support), task), tasks, self.batching
        )

    def slope(self, adapted: Params, tasks: Task) -> tuple[Array, Array, Params]:
        """Outer losses and divergences [T], and the gradient of the mean loss in `adapted`."""

        def mean_loss(adapted: Params) -> tuple[Array, tuple[Array, Array]]:
            outcomes = map_tasks(lambda pair: self._outcome(*pair), (adapted, tasks), self.batching)
            return jnp.mean(outcomes[0]), outcomes

        slope, (losses, divergences) = jax.grad(mean_loss, has_aux=True)(adapted)
        return losses, divergences, slope

    def _unroll(self, adapted: Params, task: Task) -> Any:
        return self.problem.policy.unroll(adapted, task.query.observations)

    def _outcome(self, adapted: Params, task: Task) -> tuple[Array, Array]:
        output = self.problem.outer_loss(adapted, task.query)
        loss, _ = checks.check_loss_output(output, "outer_loss")
        return loss, divergence(self._unroll(adapted, task), task.query)


class _Linear(NamedTuple):
    """The adaptation near the present parameters.

    Attributes:
        adapted: parameters, leaves [T, ...].
        push: from a change of the flat parameters to that of the adapted ones.
        pull: its transpose.
    """

    adapted: Params
    push: Callable[[Array], Params]
    pull: Callable[[Params], Array]


def _linearize(policies: _Policies, start: Array, tasks: Task) -> _Linear:
    adapted, push = jax.linearize(lambda flat: policies.adapt(flat, tasks), start)
    transposed = jax.linear_transpose(push, start)
    return _Linear(adapted, push, lambda slope: transposed(slope)[0])


def _multiply(
    policies: _Policies,
    start: Array,
    tasks: Task,
    at: _Linear,
    products: str,
    product_episodes: int | None,
) -> Product:
    """`v -> A v`, of this device's tasks and, of each, some episodes."""
    some = trust_region.first_episodes(tasks, product_episodes)
    if products != "gauss_newton":
        distributions = lambda flat: policies.unroll(policies.adapt(flat, some), some)  # noqa: E731
        return trust_region.second_derivative(distributions, some, start, products)
    if product_episodes is not None:
        at = _linearize(policies, start, some)
    distribution, push = jax.linearize(lambda a: policies.unroll(a, some), at.adapted)
    pull = jax.linear_transpose(push, at.adapted)
    return trust_region.gauss_newton(
        distribution, some, lambda v: push(at.push(v)), lambda u: at.pull(pull(u)[0])
    )
