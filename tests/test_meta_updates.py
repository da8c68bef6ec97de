"""The outer step of meta-reinforcement learning, and the meta-iteration around it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_trees_close
from jax.flatten_util import ravel_pytree

from maml_jax import Task, init, meta_loss, task_mesh
from maml_jax.networks import gaussian_policy, recurrent_policy
from maml_jax.reinforcement import (
    gradient_steps,
    make_evaluate_fn,
    make_iterate_fn,
    navigation,
    reinforcement_problem,
    surrogate,
    trpo,
)
from maml_jax.reinforcement import meta_updates as updates_lib

KEY = jax.random.key(0)


def small_problem(**options):
    policy = gaussian_policy(2, 2, (8,), activation=jnp.tanh)
    settings = {"num_episodes": 5, "inner_lr": 0.5, **options}
    return reinforcement_problem(navigation(horizon=12), policy, **settings)


@pytest.fixture(scope="module")
def drawn():
    """A problem, parameters, and eight tasks of it."""
    problem = small_problem()
    params = problem.init(KEY)
    keys = jax.random.split(jax.random.key(1), 8)
    return problem, params, jax.jit(jax.vmap(problem.sample, (None, 0)))(params, keys)


def test_conjugate_gradients_solve_a_system(x64):
    a = jax.random.normal(KEY, (6, 6))
    matrix = a @ a.T + jnp.eye(6)
    target = jnp.arange(6.0)
    found, residual = updates_lib.conjugate_gradients(lambda v: matrix @ v, target, 6)
    np.testing.assert_allclose(found, jnp.linalg.solve(matrix, target), rtol=1e-6)
    assert residual < 1e-6


def test_line_search_shrinks_until_both_conditions_hold():
    def score(x):  # lower to the left of 1; divergence grows with the step
        return jnp.sum((x - 1.0) ** 2), jnp.sum(x**2)

    start = jnp.zeros(1)
    found = updates_lib.line_search(score, start, -4.0 * jnp.ones(1), 1.0, 0.5, 0.5, 15)
    np.testing.assert_allclose(found.params, 0.5)  # 4, 2: no better; 1: too far; 0.5
    assert found.accepted
    assert found.backtracks == 3


@pytest.mark.parametrize("value", [jnp.inf, jnp.nan, 2.0])
def test_line_search_restores_the_parameters(value):
    start = jnp.arange(3.0)
    found = updates_lib.line_search(
        lambda x: (jnp.asarray(value), jnp.zeros(())), start, jnp.ones(3), 1.0, 0.5, 0.8, 4
    )
    np.testing.assert_array_equal(found.params, start)
    assert not found.accepted
    assert found.backtracks == 4
    assert found.loss == 1.0


def test_a_divergence_that_is_nan_is_not_accepted():
    found = updates_lib.line_search(
        lambda x: (jnp.zeros(()), jnp.full((), jnp.nan)),
        jnp.zeros(2),
        jnp.ones(2),
        1.0,
        0.5,
        0.8,
        3,
    )
    np.testing.assert_array_equal(found.params, 0)


def products(problem, params, tasks, vector, kind, x64=False):
    flat, unravel = ravel_pytree(params)

    def outputs(p):
        return jax.vmap(lambda t: problem.adapted_distribution(unravel(p), t))(tasks)

    if kind == "gauss_newton":
        distribution, push = jax.linearize(outputs, flat)
        pull = jax.linear_transpose(push, flat)
        multiply = updates_lib._gauss_newton(distribution, tasks, push, pull)
    else:
        multiply = updates_lib._of_divergence(outputs, tasks, flat, kind)
    return multiply(vector)


def test_products_agree(x64):
    """Gauss-Newton and exact to rounding; finite differences to the square of their step."""
    problem = small_problem()
    to_64 = lambda tree: jax.tree.map(
        lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, tree
    )
    params = to_64(problem.init(KEY))
    keys = jax.random.split(jax.random.key(1), 4)
    tasks = to_64(jax.jit(jax.vmap(problem.sample, (None, 0)))(params, keys))
    vector = jax.random.normal(KEY, ravel_pytree(params)[0].shape)
    found = {k: products(problem, params, tasks, vector, k) for k in updates_lib.PRODUCTS}
    scale = jnp.abs(found["exact"]).max()
    assert jnp.abs(found["gauss_newton"] - found["exact"]).max() < 1e-6 * scale
    assert jnp.abs(found["finite_differences"] - found["exact"]).max() < 1e-2 * scale
    # Without the adaptation inside they are another matrix: the curvature of plain TRPO.
    plain = small_problem(num_steps=0)
    queries = tasks._replace(support=jax.tree.map(lambda x: x[:, :0], tasks.support))
    other = products(plain, params, queries, vector, "exact")
    assert jnp.abs(other - found["exact"]).max() > 0.05 * scale


def test_steps_that_were_not_taken_change_no_step(drawn):
    """Whatever stands behind an episode's end: the masks reach the curvature and the divergence."""
    problem, params, tasks = drawn
    dead = jnp.arange(12)[:, None] >= 4

    def cut(samples, filling):
        fill = lambda x: jnp.where(
            dead.reshape(12, 1, *[1] * (x.ndim - samples.alive.ndim)), filling, x
        )
        return samples._replace(
            observations=fill(samples.observations),
            actions=fill(samples.actions),
            advantages=jnp.where(dead, 0.0, samples.advantages),
            alive=samples.alive & ~dead,
        )

    update = trpo(problem, conjugate_steps=4)
    step = jax.jit(lambda p, t: update.update(p, (), t, 1))
    found = [step(params, Task(tasks.support, cut(tasks.query, filling))) for filling in (0.1, 3.0)]
    assert found[0][2]["accepted"]
    assert_trees_close(found[0][0], found[1][0], 1e-4)
    assert_trees_close(found[0][2], found[1][2], 1e-3)


def test_products_are_of_full_precision(drawn):
    """On accelerators, whose default is less: every product of the outer step says so."""
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
    traced = jax.make_jaxpr(lambda p, t: update.update(p, (), t, 1))(params, tasks)
    found = list(precisions(traced.jaxpr))
    assert len(found) > 20
    assert all("highest" in text.lower() for text in found), set(found)


@pytest.mark.parametrize("kind", updates_lib.PRODUCTS)
def test_trpo_step(drawn, kind):
    """The gradient is that of the meta-loss; the step improves, and keeps to its bound."""
    problem, params, tasks = drawn
    update = trpo(problem, products=kind)
    new, _, metrics = jax.jit(lambda p, t: update.update(p, (), t, 1))(params, tasks)
    assert metrics["accepted"]
    assert metrics["surrogate_after"] < metrics["surrogate_before"]
    assert 0 < metrics["kl"] <= 0.01

    def loss(p):
        one = lambda t: meta_loss(
            problem.inner_loss,
            p,
            t,
            0.5,
            outer_loss=problem.outer_loss,
            batch_per_step=True,
        )[0]
        return jnp.mean(jax.vmap(one)(tasks))

    expected = jnp.linalg.norm(ravel_pytree(jax.grad(loss)(params))[0])
    np.testing.assert_allclose(metrics["gradient_norm"], expected, rtol=1e-4)
    np.testing.assert_allclose(loss(new), metrics["surrogate_after"], rtol=1e-4)
    judged = jax.vmap(lambda t: surrogate(problem.policy)(problem.adapt(new, t), t.query)[1]["kl"])
    np.testing.assert_allclose(judged(tasks).mean(), metrics["kl"], rtol=1e-3)


def test_batching_and_subsamples(drawn):
    problem, params, tasks = drawn
    found = []
    for options in ({"batching": "vmap"}, {"batching": "scan"}, {"product_episodes": 2}):
        update = trpo(problem, conjugate_steps=3, **options).update  # more amplify rounding
        found.append(jax.jit(lambda p, t, u=update: u(p, (), t, 1))(params, tasks))
    one, scanned, some = found
    assert_trees_close(one[0], scanned[0], 1e-3)
    np.testing.assert_allclose(one[2]["gradient_norm"], some[2]["gradient_norm"], rtol=1e-5)
    assert some[2]["accepted"]
    moved = [ravel_pytree(x[0])[0] - ravel_pytree(params)[0] for x in (one, some)]
    cosine = jnp.vdot(*moved) / jnp.linalg.norm(moved[0]) / jnp.linalg.norm(moved[1])
    assert 0.3 < cosine < 0.999  # another curvature, of the same kind


def test_gradient_steps(drawn):
    problem, params, tasks = drawn
    optimizer = optax.sgd(0.1)
    update = gradient_steps(problem, optimizer)
    new, _, metrics = jax.jit(lambda p, t: update.update(p, optimizer.init(p), t, 1))(params, tasks)

    def loss(p):
        value = lambda t: surrogate(problem.policy)(problem.adapt(p, t), t.query)[0]
        return jnp.mean(jax.vmap(value)(tasks))

    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params))
    assert_trees_close(new, expected, 1e-5)
    np.testing.assert_allclose(metrics["surrogate_after"], loss(new), rtol=1e-3)
    with pytest.raises(ValueError, match="products must be one of"):
        trpo(problem, products="natural")


@pytest.fixture(scope="module")
def iterations():
    """Parameters after two iterations of 8 tasks, by the number of devices, and their metrics."""
    problem = small_problem()
    update = trpo(problem, conjugate_steps=4)
    found = {}
    for count in (1, 8):
        mesh = task_mesh(8, jax.devices()[:count])
        iterate = make_iterate_fn(problem, update, num_tasks=8, num_steps=2, mesh=mesh)
        found[count] = iterate(init(problem.init(KEY), update, 3))
    return found


def test_devices_agree(iterations):
    one, eight = (iterations[count][0].params for count in (1, 8))
    assert_trees_close(one, eight, 1e-3)
    assert_trees_close(iterations[1][1]["before"], iterations[8][1]["before"], 1e-3)
    assert iterations[1][0].step == 2


def test_an_iteration_reports(iterations):
    metrics = iterations[1][1]
    for name in ("before", "after"):
        expected = {"return", "explained_variance", "alive", "nonfinite", "gradient_norm"}
        assert set(metrics[name]) == expected
    np.testing.assert_allclose(metrics["kl_before"], 0.0, atol=1e-6)
    assert np.all(metrics["kl"] > 1e-5)
    assert {"kl", "accepted", "backtracks", "gradient_norm", "nonfinite_tasks"} <= set(metrics)
    assert metrics["kl"].shape == (2,)
    np.testing.assert_array_equal(metrics["loss"], -metrics["after"]["return"])


def test_every_iteration_draws_its_own_tasks_and_noise():
    """Also where the parameters stay: nothing is drawn twice."""
    problem = small_problem()
    still = updates_lib.MetaUpdate(
        lambda params: (),
        lambda params, state, tasks, count: (
            params,
            state,
            {"losses": tasks.query.metrics["return"]},
        ),
    )
    mesh = task_mesh(2, jax.devices()[:1])
    iterate = make_iterate_fn(problem, still, num_tasks=2, num_steps=3, mesh=mesh)
    _, metrics = iterate(init(problem.init(KEY), still, 3))
    for name in ("before", "after"):
        assert len(np.unique(metrics[name]["return"])) == 3


def test_dispatches_of_other_sizes_draw_the_same_and_compile_once(iterations):
    traced = []
    problem = small_problem()
    update = trpo(problem, conjugate_steps=4)
    counted = update._replace(update=lambda *args: traced.append(1) or update.update(*args))
    mesh = task_mesh(8, jax.devices()[:1])
    iterate = make_iterate_fn(problem, counted, num_tasks=8, mesh=mesh)
    state = init(problem.init(KEY), update, 3)
    for _ in range(2):
        state, _ = iterate(state)
    assert len(traced) == 1
    assert_trees_close(state.params, iterations[1][0].params, 1e-4)


def test_seeds_vmap():
    problem = small_problem()
    update = gradient_steps(problem, optax.adam(1e-2))
    iterate = make_iterate_fn(problem, update, num_tasks=2, mesh=task_mesh(2, jax.devices()[:1]))
    states = [init(problem.init(jax.random.key(s)), update, s) for s in range(2)]
    alone, _ = iterate(init(problem.init(jax.random.key(1)), update, 1))
    both, _ = jax.vmap(iterate)(jax.tree.map(lambda *x: jnp.stack(x), *states))
    second = jax.tree.map(lambda x: x[1], both.params)
    assert_trees_close(second, alone.params, 1e-4)


def test_recurrent_policies_adapt():
    policy = recurrent_policy(2, 2, 6)
    problem = reinforcement_problem(navigation(horizon=6), policy, num_episodes=4, inner_lr=0.5)
    update = trpo(problem, conjugate_steps=3)
    iterate = make_iterate_fn(problem, update, num_tasks=2, mesh=task_mesh(2, jax.devices()[:1]))
    _, metrics = iterate(init(problem.init(KEY), update, 0))
    assert metrics["accepted"].all()


def test_evaluation_plays_new_episodes_after_each_update():
    env, policy = navigation(horizon=8), gaussian_policy(2, 2, (8,))
    params = policy.init(KEY)
    goals = jax.vmap(env.sample_task)(jax.random.split(KEY, 3))
    evaluate = make_evaluate_fn(env, policy, num_episodes=4, keep_trajectories=True)
    rates = jnp.array([0.5, 0.25])
    found = evaluate(params, goals, jax.random.key(7), rates)
    assert found.evaluation.per_task["return"].shape == (3, 3)
    t = found.trajectories
    assert t.rewards.shape == (3, 3, 8, 4)
    np.testing.assert_allclose(
        t.rewards.sum(2).mean(-1), found.evaluation.per_task["return"], rtol=1e-5
    )
    noise = np.asarray(t.actions)
    assert len(np.unique(noise)) == noise.size
    still = evaluate(params, goals, jax.random.key(7), jnp.zeros(2)).trajectories
    np.testing.assert_allclose(still.distribution.log_std, 0.0)
    np.testing.assert_array_equal(t.actions[:, 0], still.actions[:, 0])
    assert not np.allclose(t.distribution.log_std[:, 1], 0.0)


def test_counts_are_checked():
    problem = small_problem()
    with pytest.raises(ValueError, match="num_tasks must be 1 or more"):
        make_iterate_fn(problem, trpo(problem), num_tasks=0)
