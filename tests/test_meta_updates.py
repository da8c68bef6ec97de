"""The outer step of meta-reinforcement learning, and the training loop.

Most tests share one compiled TRPO step of one problem.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_trees_close
from jax.flatten_util import ravel_pytree

from maml_jax import Task, init, make_evaluate_fn, make_train_fn, task_mesh
from maml_jax.networks import gaussian_policy, recurrent_policy
from maml_jax.reinforcement import (
    adaptation_returns,
    navigation,
    reinforcement_problem,
    surrogate,
    surrogate_update,
    trpo,
)

KEY = jax.random.key(0)
HORIZON, TASKS = 8, 4


def small_problem(**options):
    policy = gaussian_policy(2, 2, (8,), activation=jnp.tanh)
    settings = {"num_episodes": 5, "inner_lr": 0.5, **options}
    return reinforcement_problem(navigation(horizon=HORIZON), policy, **settings)


def draw(problem, params, count=TASKS):
    keys = jax.random.split(jax.random.key(1), count)
    return jax.jit(jax.vmap(problem.sample, (None, 0)))(params, keys)


def compiled(update):
    return jax.jit(lambda p, t: update.update(p, update.init(p), t))


def gradient_of(problem):
    """Returns `(params, tasks) -> ((mean loss, mean divergence), gradient)`."""

    def mean_loss(params, tasks):
        losses, metrics = jax.vmap(problem.learner.loss, (None, 0))(params, tasks)
        return jnp.mean(losses), jnp.mean(metrics["query"]["kl"])

    return jax.jit(jax.value_and_grad(mean_loss, has_aux=True))


@pytest.fixture(scope="module")
def drawn():
    """A problem, its parameters, and tasks."""
    problem = small_problem()
    params = problem.init(KEY)
    return problem, params, draw(problem, params)


@pytest.fixture(scope="module")
def gradient(drawn):
    return gradient_of(drawn[0])


@pytest.fixture(scope="module")
def step(drawn):
    """TRPO's step, `(params, tasks) -> (params, state, metrics)`."""
    return compiled(trpo(drawn[0], conjugate_steps=4))


# TRPO


def test_trpo_step(drawn, step, gradient):
    """The gradient is that of the meta-loss; the step reduces the loss within its bound."""
    problem, params, tasks = drawn
    new, _, metrics = step(params, tasks)
    assert metrics["accepted"]
    assert metrics["surrogate_after"] < metrics["surrogate_before"]
    assert 0 < metrics["kl"] <= 0.01
    expected = jnp.linalg.norm(ravel_pytree(gradient(params, tasks)[1])[0])
    np.testing.assert_allclose(metrics["gradient_norm"], expected, rtol=1e-4)
    loss, divergence = gradient(new, tasks)[0]
    np.testing.assert_allclose(loss, metrics["surrogate_after"], rtol=1e-4)
    np.testing.assert_allclose(divergence, metrics["kl"], rtol=1e-3)
    with pytest.raises(ValueError, match="products must be one of"):
        trpo(problem, products="natural")


def test_steps_after_an_episodes_end_do_not_matter(drawn, step):
    """The masks of these steps reach the curvature and the divergence, too."""
    _, params, tasks = drawn
    dead = jnp.arange(HORIZON)[:, None] >= 3

    def cut(samples, filling):
        fill = lambda x: jnp.where(
            dead.reshape(HORIZON, 1, *[1] * (x.ndim - samples.alive.ndim)), filling, x
        )
        return samples._replace(
            observations=fill(samples.observations),
            actions=fill(samples.actions),
            advantages=jnp.where(dead, 0.0, samples.advantages),
            alive=samples.alive & ~dead,
        )

    result = [
        step(params, Task(tasks.support, cut(tasks.query, filling))) for filling in (0.1, 3.0)
    ]
    assert result[0][2]["accepted"]
    assert_trees_close(result[0][0], result[1][0], 1e-4)
    assert_trees_close(result[0][2], result[1][2], 1e-3)


def test_no_step_without_a_signal(drawn, step):
    _, params, tasks = drawn
    support, query = (x._replace(advantages=jnp.zeros_like(x.advantages)) for x in tasks)
    new, _, metrics = step(params, Task(support, query))
    assert metrics["gradient_norm"] == 0
    jax.tree.map(np.testing.assert_array_equal, new, params)


def test_products_are_of_full_precision(drawn):
    """Every product of the outer step sets its precision: accelerators default to less."""
    problem, params, tasks = drawn

    def precisions(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name in ("gemm", "dot_general"):
                yield str(equation.params["precision"])
            for value in jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
            ):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    yield from precisions(inner)

    update = trpo(problem)
    traced = jax.make_jaxpr(lambda p, t: update.update(p, (), t))(params, tasks)
    precision = list(precisions(traced.jaxpr))
    assert len(precision) > 20
    assert all("highest" in text.lower() for text in precision), set(precision)


def test_batching_and_subsamples(drawn, step):
    """Also checks that the update uses the problem's outer loss."""
    problem, params, tasks = drawn
    one = step(params, tasks)
    doubled = problem._replace(
        outer_loss=lambda p, samples: (2.0 * problem.outer_loss(p, samples)[0], {})
    )
    scanned = compiled(trpo(doubled, conjugate_steps=4, batching="scan"))(params, tasks)
    np.testing.assert_allclose(scanned[2]["gradient_norm"], 2 * one[2]["gradient_norm"], rtol=1e-4)
    np.testing.assert_allclose(
        scanned[2]["surrogate_after"], 2 * one[2]["surrogate_after"], rtol=1e-3
    )
    assert_trees_close(one[0], scanned[0], 1e-3)  # conjugate gradients amplify rounding
    some = compiled(trpo(problem, conjugate_steps=4, product_episodes=2))(params, tasks)
    np.testing.assert_allclose(one[2]["gradient_norm"], some[2]["gradient_norm"], rtol=1e-5)
    assert some[2]["accepted"]
    moved = [ravel_pytree(x[0])[0] - ravel_pytree(params)[0] for x in (one, some)]
    cosine = jnp.vdot(*moved) / jnp.linalg.norm(moved[0]) / jnp.linalg.norm(moved[1])
    assert 0.3 < cosine < 0.999  # another estimate of the curvature


# Masks, and gradient steps


MASK = {"mean": {"Dense_0": False, "Dense_1": True}, "log_std": True}


def test_a_mask_keeps_parameters_bit_for_bit(drawn, gradient):
    """TRPO solves in the subspace of the other parameters: its step differs from the full one."""
    problem, params, tasks = drawn
    whole = gradient(params, tasks)[1]
    free = {**whole, "mean": whole["mean"]["Dense_1"]}
    expected = jnp.linalg.norm(ravel_pytree(free)[0])
    for update in (
        trpo(problem, conjugate_steps=4, mask=MASK),
        surrogate_update(problem, optax.sgd(0.1), mask=MASK),
    ):
        new, _, metrics = compiled(update)(params, tasks)
        kept = [x["mean"]["Dense_0"] for x in (new, params)]
        jax.tree.map(np.testing.assert_array_equal, *kept)
        assert np.any(new["log_std"] != params["log_std"])
        assert np.any(new["mean"]["Dense_1"]["kernel"] != params["mean"]["Dense_1"]["kernel"])
        np.testing.assert_allclose(metrics["gradient_norm"], expected, rtol=1e-4)
        assert metrics["surrogate_after"] < metrics["surrogate_before"]


def test_surrogate_update(drawn):
    """Two steps on the problem's outer loss, the clipped surrogate."""
    problem, params, tasks = drawn
    problem = problem._replace(outer_loss=surrogate(problem.policy, clip=0.05))
    new, _, metrics = compiled(surrogate_update(problem, optax.sgd(0.1), num_epochs=2))(
        params, tasks
    )
    clipped = gradient_of(problem)
    expected, norms = params, []
    for _ in range(2):
        grads = clipped(expected, tasks)[1]
        norms.append(jnp.linalg.norm(ravel_pytree(grads)[0]))
        expected = jax.tree.map(lambda p, g: p - 0.1 * g, expected, grads)
    assert_trees_close(new, expected, 1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], norms[0], rtol=1e-4)
    np.testing.assert_allclose(metrics["surrogate_after"], clipped(new, tasks)[0][0], rtol=1e-3)
    np.testing.assert_array_equal(metrics["loss"], -tasks.query.metrics["return"].mean())


# The loop around them


@pytest.fixture(scope="module")
def trained(drawn):
    """The state and metrics after one meta-step on several devices."""
    problem, params, _ = drawn
    update = trpo(problem, conjugate_steps=4)
    mesh = task_mesh(TASKS, jax.devices()[:TASKS])
    train = make_train_fn(problem.sample, update, num_tasks=TASKS, num_meta_steps=1, mesh=mesh)
    return train(init(params, update, 3))


def test_devices_agree(drawn, step, trained):
    """Several devices give the step of one device on the same tasks."""
    problem, params, _ = drawn
    key = jax.random.fold_in(jax.random.key(3), 0)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(TASKS))
    tasks = jax.jit(jax.vmap(problem.sample, (None, 0)))(params, keys)
    new, _, metrics = step(params, tasks)
    assert_trees_close(new, trained[0].params, 1e-3)
    assert_trees_close(metrics["before"], jax.tree.map(lambda x: x[0], trained[1]["before"]), 1e-3)
    assert trained[0].step == 1


def test_a_meta_step_reports(trained):
    metrics = trained[1]
    for name in ("before", "after"):
        expected = {"return", "explained_variance", "alive", "nonfinite", "gradient_norm"}
        assert set(metrics[name]) == expected
    np.testing.assert_allclose(metrics["kl_before"], 0.0, atol=1e-6)
    assert np.all(metrics["kl"] > 1e-5)
    assert {"kl", "accepted", "backtracks", "gradient_norm", "nonfinite_tasks"} <= set(metrics)
    assert metrics["kl"].shape == (1,)
    np.testing.assert_array_equal(metrics["loss"], -metrics["after"]["return"])


def test_recurrent_policies_adapt():
    """By gradient steps; TRPO, which compiles slowly, is only traced."""
    policy = recurrent_policy(2, 2, 6)
    problem = reinforcement_problem(navigation(horizon=6), policy, num_episodes=4, inner_lr=0.5)
    params = problem.init(KEY)
    tasks = draw(problem, params, 2)
    _, _, metrics = compiled(surrogate_update(problem, optax.sgd(0.1)))(params, tasks)
    assert metrics["surrogate_after"] < metrics["surrogate_before"]
    new, _, _ = jax.eval_shape(lambda p, t: trpo(problem).update(p, (), t), params, tasks)
    assert jax.tree.structure(new) == jax.tree.structure(params)


def test_evaluation_plays_new_episodes_after_each_update():
    problem = small_problem()
    params = problem.init(KEY)
    goals = jax.vmap(problem.env.sample_task)(jax.random.split(KEY, 3))
    tasks = goals, jax.random.split(jax.random.key(7), 3)
    watch = lambda t: {"rewards": t.rewards, "actions": t.actions, "d": t.distribution.log_std}
    returns = functools.partial(
        adaptation_returns, problem, num_updates=2, num_episodes=4, monitor=watch
    )
    evaluate = make_evaluate_fn(returns)
    result = evaluate(params, tasks, 0.5).per_task
    assert result["return"].shape == (3, 3)
    assert result["rewards"].shape == (3, 3, HORIZON, 4)
    np.testing.assert_allclose(result["rewards"].sum(2).mean(-1), result["return"], rtol=1e-5)
    assert len(np.unique(result["actions"])) == result["actions"].size
    still = evaluate(params, tasks, 0.0).per_task
    np.testing.assert_allclose(still["d"], 0.0)
    np.testing.assert_array_equal(result["actions"][:, 0], still["actions"][:, 0])
    assert not np.allclose(result["d"][:, 1], 0.0)
