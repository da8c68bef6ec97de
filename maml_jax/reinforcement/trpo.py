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
    """Optimises the meta-objective by trust-region steps (TRPO, Schulman et al. 2015).

    The direction solves `A x = g` by conjugate gradients: g is the gradient of the problem's outer
    loss, and A the second derivative of the mean KL divergence at post-adaptation states, both
    through the adaptation. The quadratic model of the divergence sets the length of the step to
    `max_kl`. A line search shrinks it until the loss decreases and the divergence is within bounds;
    without such a step the parameters stay.

    ====================== ===================================================================
    products               A v
    ====================== ===================================================================
    `"gauss_newton"`       J'F J v, with J the derivative of the adapted policy's distributions
                           and F their Fisher information. Exact without third derivatives,
                           because the divergence has no gradient at the policy that acted
    `"exact"`              forward over reverse of the divergence
    `"finite_differences"` central difference of the divergence's gradient (the paper)
    ====================== ===================================================================

    Args:
        problem: a problem from `reinforcement_problem`.
        max_kl: bound on the mean KL divergence, nats, above 0.
        products: method of the products A v, see the table.
        product_episodes: most episodes of each task in A; default all.
        conjugate_steps: iterations of conjugate gradients.
        damping: multiple of the identity added to A, 0 or more.
        shrink: factor from one try of the line search to the next, between 0 and 1.
        tries: most tries of the line search.
        batching: batching of a device's tasks, see `maml_jax.batching`.
        mask: meta-parameters that move, as in `maml_jax.gradient_update`. The others stay bit for
            bit, and the linear system has the moving ones alone as unknowns.

    Returns:
        A meta-update without state. Its metrics: "loss", minus the mean return after adaptation;
        "before" and "after", means over tasks of `Samples.metrics`; "surrogate_before" and
        "surrogate_after", the outer loss; "kl_before" and "kl", nats; "accepted" and "backtracks"
        of the line search; "gradient_norm", "step_norm" and "conjugate_residual"; and the inputs of
        `maml_jax.check_finite`.

    Raises:
        ValueError: an unknown method of products, a count below 1, or a number out of range; in a
            step, parameters of another policy.
        TypeError: `problem` is not from `reinforcement_problem`, or a count is not an
            integer.

    Example:
        >>> import jax
        >>> from maml_jax import init, make_train_fn
        >>> from maml_jax.networks import gaussian_policy
        >>> from maml_jax.reinforcement import navigation, reinforcement_problem, trpo
        >>> env, policy = navigation(horizon=2), gaussian_policy(2, 2, hidden_sizes=(2,))
        >>> problem = reinforcement_problem(env, policy, num_episodes=2)
        >>> update = trpo(problem, max_kl=0.01)
        >>> train = make_train_fn(problem.sample, update, num_tasks=2, num_meta_steps=1)
        >>> state = init(problem.init(jax.random.key(0)), update, key=0)
        >>> state, metrics = train(state)
        >>> bool(metrics["kl"][0] <= 0.01)
        True
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

        # The gradient and all products share one linearisation of the adaptation.
        at = _linearize(policies, start, tasks)
        losses, kl_before, adapted_gradient = policies.gradient(at.adapted, tasks)
        gradient = mesh.mean_over_devices(at.pull(adapted_gradient))
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
        # The reduced precision of accelerators would hide the small differences that conjugate
        # gradients and the line search depend on.
        with jax.default_matmul_precision("highest"):
            return step(params, state, tasks)

    return MetaUpdate(lambda params: (), update)


class _Policies(NamedTuple):
    """Adapted policies of a device's tasks, as functions of the flat moving parameters [P].

    Attributes:
        problem: the problem.
        restore: `restore(flat) -> params`.
        batching: batching of the tasks.
    """

    problem: ReinforcementProblem
    restore: Callable[[Array], Params]
    batching: Batching

    def adapt(self, flat: Array, tasks: Task) -> Params:
        """Returns the adapted parameters, leaves [T, ...]."""
        params, adapt = self.restore(flat), self.problem.learner.adapt
        return map_tasks(lambda task: adapt(params, task.support), tasks, self.batching)

    def unroll(self, adapted: Params, tasks: Task) -> Any:
        """Returns the distributions at the queries' states, leaves [T, H, E, ...]."""
        return map_tasks(lambda pair: self._unroll(*pair), (adapted, tasks), self.batching)

    def outcomes_of(self, flat: Array, tasks: Task) -> tuple[Array, Array]:
        """Returns outer losses and divergences after adaptation, each [T]."""
        params, adapt = self.restore(flat), self.problem.learner.adapt
        return map_tasks(
            lambda task: self._outcome(adapt(params, task.support), task), tasks, self.batching
        )

    def gradient(self, adapted: Params, tasks: Task) -> tuple[Array, Array, Params]:
        """Returns outer losses and divergences [T], and the mean loss's gradient in `adapted`."""

        def mean_loss(adapted: Params) -> tuple[Array, tuple[Array, Array]]:
            outcomes = map_tasks(lambda pair: self._outcome(*pair), (adapted, tasks), self.batching)
            return jnp.mean(outcomes[0]), outcomes

        gradient, (losses, divergences) = jax.grad(mean_loss, has_aux=True)(adapted)
        return losses, divergences, gradient

    def _unroll(self, adapted: Params, task: Task) -> Any:
        return self.problem.policy.unroll(adapted, task.query.observations)

    def _outcome(self, adapted: Params, task: Task) -> tuple[Array, Array]:
        output = self.problem.outer_loss(adapted, task.query)
        loss, _ = checks.check_loss_output(output, "outer_loss")
        return loss, divergence(self._unroll(adapted, task), task.query)


class _Linear(NamedTuple):
    """The adaptation, linearised at the present parameters.

    Attributes:
        adapted: adapted parameters, leaves [T, ...].
        push: maps a change of the flat parameters to one of the adapted parameters.
        pull: transpose of `push`.
    """

    adapted: Params
    push: Callable[[Array], Params]
    pull: Callable[[Params], Array]


def _linearize(policies: _Policies, start: Array, tasks: Task) -> _Linear:
    adapted, push = jax.linearize(lambda flat: policies.adapt(flat, tasks), start)
    transposed = jax.linear_transpose(push, start)
    return _Linear(adapted, push, lambda gradient: transposed(gradient)[0])


def _multiply(
    policies: _Policies,
    start: Array,
    tasks: Task,
    at: _Linear,
    products: str,
    product_episodes: int | None,
) -> Product:
    """Makes the product `v -> A v` over this device's tasks and their first episodes."""
    shortened = trust_region.first_episodes(tasks, product_episodes)
    if products != "gauss_newton":
        distributions = lambda flat: policies.unroll(policies.adapt(flat, shortened), shortened)  # noqa: E731
        return trust_region.second_derivative(distributions, shortened, start, products)
    if product_episodes is not None:
        at = _linearize(policies, start, shortened)
    distribution, push = jax.linearize(lambda a: policies.unroll(a, shortened), at.adapted)
    pull = jax.linear_transpose(push, at.adapted)
    return trust_region.gauss_newton(
        distribution, shortened, lambda v: push(at.push(v)), lambda u: at.pull(pull(u)[0])
    )
