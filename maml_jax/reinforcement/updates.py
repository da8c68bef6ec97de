"""The outer step of meta-reinforcement learning: TRPO as in the paper, or gradient steps.

Both are `MetaUpdate`s for `maml_jax.make_train_fn`, and both minimise the outer loss that the
problem names.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from maml_jax import checks, inner_loop, mesh, pooling
from maml_jax.batching import Batching, map_tasks, resolve_batching
from maml_jax.inner_loop import Mask
from maml_jax.reinforcement import trust_region
from maml_jax.reinforcement.checks import check_number
from maml_jax.reinforcement.objectives import divergence
from maml_jax.reinforcement.problem import MODES, ReinforcementProblem
from maml_jax.types import Array, MetaUpdate, Metrics, Params, PyTree, Task
from maml_jax.updates import gradient_update


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
    _check_problem(problem)
    checks.check_choice(products, trust_region.PRODUCTS, "products")
    checks.check_counts(conjugate_steps=conjugate_steps, tries=tries)
    if product_episodes is not None:
        checks.check_counts(product_episodes=product_episodes)
    check_number("max_kl", max_kl, "above 0 and finite", lambda x: 0 < x < math.inf)
    check_number("damping", damping, "of 0 or more and finite", lambda x: 0 <= x < math.inf)
    check_number("shrink", shrink, "between 0 and 1", lambda x: 0 < x < 1)
    resolve_batching(batching, 1)
    learner, policy = problem.learner, problem.policy

    def outcome(adapted: Params, task: Task) -> tuple[Array, Array]:
        """Outer loss and divergence of an adapted policy."""
        loss, _ = checks.check_loss_output(problem.outer_loss(adapted, task.query), "outer_loss")
        return loss, divergence(policy.unroll(adapted, task.query.observations), task.query)

    def step(params: Params, state: PyTree, tasks: Task) -> tuple[Params, PyTree, Metrics]:
        _check_params(problem, params)
        part = inner_loop.partition(params, mask)
        start, unravel = ravel_pytree(part.selected)

        def adapt(flat: Array, tasks: Task) -> Params:
            theta = part.combine(unravel(flat))
            return map_tasks(lambda t: learner.adapt(theta, t.support), tasks, batching)

        def unroll(adapted: Params, tasks: Task) -> Any:
            one = lambda pair: policy.unroll(pair[0], pair[1].query.observations)  # noqa: E731
            return map_tasks(one, (adapted, tasks), batching)

        def outer(adapted: Params) -> tuple[Array, tuple[Array, Array]]:
            losses, kl = map_tasks(lambda pair: outcome(*pair), (adapted, tasks), batching)
            return jnp.mean(losses), (losses, kl)

        def score(flat: Array) -> tuple[Array, Array]:
            theta = part.combine(unravel(flat))
            one = lambda t: outcome(learner.adapt(theta, t.support), t)  # noqa: E731
            return mesh.mean_over_tasks(map_tasks(one, tasks, batching))

        # One linearisation of the adaptation serves the gradient and all products.
        adapted, push = jax.linearize(lambda flat: adapt(flat, tasks), start)
        pull = jax.linear_transpose(push, start)
        slope, (losses, kl_before) = jax.grad(outer, has_aux=True)(adapted)
        gradient = mesh.mean_over_devices(pull(slope)[0])

        some = trust_region.first_episodes(tasks, product_episodes)
        if products == "gauss_newton":
            if product_episodes is not None:
                adapted, push = jax.linearize(lambda flat: adapt(flat, some), start)
                pull = jax.linear_transpose(push, start)
            distribution, push_on = jax.linearize(lambda a: unroll(a, some), adapted)
            pull_back = jax.linear_transpose(push_on, adapted)
            multiply = trust_region.gauss_newton(
                distribution, some, lambda v: push_on(push(v)), lambda u: pull(pull_back(u)[0])[0]
            )
        else:
            multiply = trust_region.second_derivative(
                lambda flat: unroll(adapt(flat, some), some), some, start, products
            )

        def product(vector: Array) -> Array:
            return mesh.mean_over_devices(multiply(vector)) + damping * vector

        direction, residual = trust_region.conjugate_gradients(product, gradient, conjugate_steps)
        curvature = jnp.vdot(direction, product(direction))
        scale = jnp.sqrt(2.0 * max_kl / jnp.maximum(curvature, 1e-8))
        pooled = pooling.pool(losses, None, {"kl_before": kl_before, **_of_episodes(tasks)})
        end = trust_region.line_search(
            score, start, scale * direction, pooled.loss, max_kl, shrink, tries
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
        return new, state, _as_returns({**pooling.report(pooled, gradient, new), **metrics})

    def update(params: Params, state: PyTree, tasks: Task) -> tuple[Params, PyTree, Metrics]:
        # Conjugate gradients and the line search live on small differences, which an accelerator's
        # reduced precision would drown.
        with jax.default_matmul_precision("highest"):
            return step(params, state, tasks)

    return MetaUpdate(lambda params: (), update)


def surrogate_update(
    problem: ReinforcementProblem,
    optimizer: optax.GradientTransformation,
    *,
    num_epochs: int = 1,
    batching: Batching = None,
    mask: Mask = None,
) -> MetaUpdate:
    """Steps of an optimizer on the problem's outer loss.

    With one epoch on the plain surrogate this is the policy gradient (REINFORCE). With several on
    the clipped one (`outer_loss=surrogate(policy, clip=0.3)`) and the inner objective "lvc" it is
    ProMP without its penalty on the inner steps (Rothfuss et al. 2019).

    Args:
        problem: whose adaptation is differentiated.
        optimizer: any optax transformation.
        num_epochs: steps on the same tasks.
        batching: how a device's tasks are batched, see `maml_jax.batching`.
        mask: which meta-parameters move, as in `maml_jax.gradient_update`.

    Returns:
        A meta-update. Its metrics: "loss", minus the mean return after adaptation; "before" and
        "after", means over tasks of `Samples.metrics`; "surrogate_before" and "surrogate_after",
        the outer loss; "gradient_norm" of the first epoch; "kl_before" and "kl", if the outer
        loss has "kl" among its metrics; and what `maml_jax.check_finite` reads.

    Raises:
        ValueError: `num_epochs` below 1, an unknown batching; in a step, parameters of another
            policy.
        TypeError: `problem` is not from `reinforcement_problem`, `optimizer` no optax
            transformation.
    """
    _check_problem(problem)
    checks.check_counts(num_epochs=num_epochs)
    learner = problem.learner

    def surrogate(params: Params, task: Task) -> tuple[Array, Metrics]:
        loss, metrics = learner.loss(params, task)
        query = metrics["query"]
        return loss, {name: query[name] for name in ("kl",) if name in query}

    def loss(params: Params, task: Task) -> tuple[Array, Metrics]:
        value, metrics = surrogate(params, task)
        before = {f"{name}_before": x for name, x in metrics.items()}
        return value, {**before, **_of_episodes(task, axis=0)}

    one_step = gradient_update(loss, _with_norm(optimizer), batching=batching, mask=mask)

    def update(params: Params, state: PyTree, tasks: Task) -> tuple[Params, PyTree, Metrics]:
        _check_params(problem, params)

        def epoch(carry: tuple[Params, PyTree], _: None) -> tuple[Any, Any]:
            params, state, metrics = one_step.update(*carry, tasks)
            return (params, state), {**metrics, "gradient_norm": state[1]}

        carry, epochs = jax.lax.scan(epoch, (params, state), None, length=num_epochs)
        new, state = carry
        ends = map_tasks(lambda task: surrogate(new, task), tasks, batching)
        loss_after, after = mesh.mean_over_tasks(ends)
        report = jax.tree.map(lambda x: x[0], epochs)
        bad = (epochs["nonfinite_tasks"] > 0) | (epochs["nonfinite_update"] > 0)
        first_bad = jnp.argmax(bad)  # the first epoch, if none is
        nonfinite = {k: x[first_bad] for k, x in epochs.items() if "nonfinite" in k}
        return (
            new,
            state,
            _as_returns({**report, **nonfinite, "surrogate_after": loss_after, **after}),
        )

    return MetaUpdate(one_step.init, update)


def _with_norm(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The optimizer, with the norm of its last gradient as the second half of its state."""
    checks.check_optimizer(optimizer)
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Params) -> PyTree:
        return inner.init(params), jnp.zeros(())

    def update(gradient: PyTree, state: PyTree, params: Params, **extra: Any) -> Any:
        updates, inner_state = inner.update(gradient, state[0], params, **extra)
        return updates, (inner_state, jnp.linalg.norm(ravel_pytree(gradient)[0]))

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


def _check_problem(problem: Any) -> None:
    if not isinstance(problem, ReinforcementProblem):
        raise TypeError(
            "problem must be what reinforcement_problem returns; received "
            f"{type(problem).__name__}."
        )
    checks.check_choice(problem.mode, MODES, "problem.mode")


def _check_params(problem: ReinforcementProblem, params: Params) -> None:
    expected = jax.eval_shape(problem.init, jax.random.key(0))
    checks.check_fits("state.params", expected, params, "They must be of the problem's policy.")


def _of_episodes(tasks: Task, axis: int = 1) -> Metrics:
    """The metrics of the episodes before the first inner step and after the last one.

    Args:
        tasks: of a device, or one of them.
        axis: of the inner steps in the support.
    """
    after = tasks.query.metrics
    first = lambda x: jax.lax.index_in_dim(x, 0, axis, keepdims=False)  # noqa: E731
    before = jax.tree.map(
        lambda s, q: first(s) if s.shape[axis] else q, tasks.support.metrics, after
    )
    return {"before": before, "after": after}


def _as_returns(metrics: Metrics) -> Metrics:
    """The loss of a meta-step under its name, and minus the return in the place of it."""
    return {**metrics, "surrogate_before": metrics["loss"], "loss": -metrics["after"]["return"]}
