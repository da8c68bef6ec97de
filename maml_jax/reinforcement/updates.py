"""Gradient steps as the outer step of meta-reinforcement learning (Algorithm 3, line 10).

Holds the checks and metrics that TRPO shares.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from maml_jax import checks, pooling
from maml_jax.batching import Batching, map_tasks
from maml_jax.inner_loop import Mask
from maml_jax.reinforcement.problem import MODES, ReinforcementProblem
from maml_jax.types import Array, MetaUpdate, Metrics, Params, PyTree, Task
from maml_jax.updates import gradient_update


def surrogate_update(
    problem: ReinforcementProblem,
    optimizer: optax.GradientTransformation,
    *,
    num_epochs: int = 1,
    batching: Batching = None,
    mask: Mask = None,
) -> MetaUpdate:
    """Optimises the problem's outer loss by steps of an optax optimizer.

    One epoch on the plain surrogate is the policy gradient (REINFORCE). Several epochs on the
    clipped surrogate (`outer_loss=surrogate(policy, clip=0.3)`) with the inner objective "lvc" are
    ProMP without its penalty on the inner steps (Rothfuss et al. 2019).

    Args:
        problem: a problem from `reinforcement_problem`.
        optimizer: any optax transformation.
        num_epochs: optimizer steps on the same tasks.
        batching: batching of a device's tasks, see `maml_jax.batching`.
        mask: meta-parameters that move, as in `maml_jax.gradient_update`.

    Returns:
        A meta-update. Its metrics: "loss", minus the mean return after adaptation; "before" and
        "after", means over tasks of `Samples.metrics`; "surrogate_before" and "surrogate_after",
        the outer loss; "gradient_norm" of the first epoch; "kl_before" and "kl" in nats, if the
        outer loss returns "kl"; and the inputs of `maml_jax.check_finite`.

    Raises:
        ValueError: `num_epochs` below 1, or an unknown batching; in a step, parameters of another
            policy.
        TypeError: `problem` is not from `reinforcement_problem`, `optimizer` is not
            an optax transformation, or `num_epochs` is not an integer.

    Example:
        >>> import jax
        >>> import optax
        >>> from maml_jax import init, make_train_fn
        >>> from maml_jax.networks import categorical_policy
        >>> from maml_jax.reinforcement import reinforcement_problem, surrogate_update
        >>> from maml_jax.reinforcement.tabular import bandit
        >>> policy = categorical_policy(1, 2, hidden_sizes=())
        >>> problem = reinforcement_problem(bandit(num_actions=2), policy, num_episodes=3)
        >>> update = surrogate_update(problem, optax.adam(1e-2))
        >>> train = make_train_fn(problem.sample, update, num_tasks=2, num_meta_steps=4)
        >>> state = init(problem.init(jax.random.key(0)), update, key=0)
        >>> state, metrics = train(state)
        >>> metrics["after"]["return"].shape  # a return for each meta-step
        (4,)
    """
    check_problem(problem)
    checks.check_counts(num_epochs=num_epochs)
    learner = problem.learner

    def surrogate(params: Params, task: Task) -> tuple[Array, Metrics]:
        loss, metrics = learner.loss(params, task)
        query = metrics["query"]
        return loss, {name: query[name] for name in ("kl",) if name in query}

    def loss(params: Params, task: Task) -> tuple[Array, Metrics]:
        value, metrics = surrogate(params, task)
        before = {f"{name}_before": x for name, x in metrics.items()}
        return value, {**before, **metrics_of_episodes(task, axis=0)}

    one_step = gradient_update(loss, _with_norm(optimizer), batching=batching, mask=mask)

    def update(params: Params, state: PyTree, tasks: Task) -> tuple[Params, PyTree, Metrics]:
        check_params(problem, params)

        def epoch(carry: tuple[Params, PyTree], _: None) -> tuple[Any, Any]:
            params, state, metrics = one_step.update(*carry, tasks)
            return (params, state), {**metrics, "gradient_norm": state[1]}

        carry, epochs = jax.lax.scan(epoch, (params, state), None, length=num_epochs)
        new, state = carry
        ends = map_tasks(lambda task: surrogate(new, task), tasks, batching)
        loss_after, after = pooling.mean_over_tasks(ends)
        report = jax.tree.map(lambda x: x[0], epochs)
        bad = (epochs["nonfinite_tasks"] > 0) | (epochs["nonfinite_update"] > 0)
        first_bad = jnp.argmax(bad)  # 0 if no epoch is bad
        nonfinite = {k: x[first_bad] for k, x in epochs.items() if "nonfinite" in k}
        metrics = {**report, **nonfinite, "surrogate_after": loss_after, **after}
        return new, state, as_returns(metrics)

    return MetaUpdate(one_step.init, update)


def _with_norm(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Adds the norm of the last gradient to an optimizer's state: `(inner_state, norm)`."""
    checks.check_optimizer(optimizer)
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Params) -> PyTree:
        return inner.init(params), jnp.zeros(())

    def update(gradient: PyTree, state: PyTree, params: Params, **extra: Any) -> Any:
        updates, inner_state = inner.update(gradient, state[0], params, **extra)
        norm = jnp.linalg.norm(ravel_pytree(gradient)[0]).astype(state[1].dtype)
        return updates, (inner_state, norm)

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


def check_problem(problem: Any) -> None:
    """Raises a TypeError or ValueError unless `problem` is from `reinforcement_problem`."""
    if not isinstance(problem, ReinforcementProblem):
        raise TypeError(
            f"problem must come from reinforcement_problem; received {type(problem).__name__}."
        )
    checks.check_choice(problem.mode, MODES, "problem.mode")


def check_params(problem: ReinforcementProblem, params: Params) -> None:
    """Raises a ValueError unless `params` fit the problem's policy."""
    expected = jax.eval_shape(problem.init, jax.random.key(0))
    checks.check_fits("state.params", expected, params, "Use parameters of the problem's policy.")


def metrics_of_episodes(tasks: Task, axis: int = 1) -> Metrics:
    """Returns metrics of the episodes "before" the first inner step and "after" the last.

    Args:
        tasks: one task, or a device's tasks.
        axis: axis of the inner steps in the support.
    """
    after = tasks.query.metrics
    first = lambda x: jax.lax.index_in_dim(x, 0, axis, keepdims=False)  # noqa: E731
    before = jax.tree.map(
        lambda s, q: first(s) if s.shape[axis] else q, tasks.support.metrics, after
    )
    return {"before": before, "after": after}


def as_returns(metrics: Metrics) -> Metrics:
    """Renames "loss" to "surrogate_before", and sets "loss" to minus the return."""
    return {**metrics, "surrogate_before": metrics["loss"], "loss": -metrics["after"]["return"]}
