"""Checks that every problem, meta-learner and update consists of pure functions.

A new problem adds itself to `PROBLEMS`, a meta-learner to `LEARNERS`, an update to `UPDATES`, and
passes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_trees_close
from jax.test_util import check_grads

from maml_jax import (
    MetaLearner,
    Task,
    algorithms,
    gradient_update,
    init,
    make_evaluate_fn,
    make_train_fn,
    meta_loss,
    task_mesh,
)
from maml_jax.classification import ImageSet, classification_problem
from maml_jax.networks import convolutional, gaussian_policy, mlp
from maml_jax.regression import sinusoid_problem
from maml_jax.reinforcement import navigation, reinforcement_problem


def image_problem():
    """3-way 1-shot episodes of random images; `sample` closes over the images."""
    network = convolutional((8, 8, 1), 3, num_filters=4, num_layers=2)
    problem = classification_problem(network, 3, 1, 2)
    images = jax.random.randint(jax.random.key(9), (6, 4, 8, 8, 1), 0, 256).astype(jnp.uint8)
    images = ImageSet(images, jnp.full(6, 4, jnp.int32))
    return problem._replace(sample=lambda params, key: problem.sample(params, key, images))


def policy_problem():
    """Navigation with one inner step, whose axis is removed from the samples."""
    policy = gaussian_policy(2, 2, (8,))
    problem = reinforcement_problem(navigation(horizon=5), policy, num_episodes=3)

    def sample(params, key):
        task = problem.sample(params, key)
        return task._replace(support=jax.tree.map(lambda x: x[0], task.support))

    return problem.as_problem._replace(sample=sample)


PROBLEMS = {
    "sinusoid": lambda: sinusoid_problem(mlp(1, 1, (8,)), 5, 5),
    "sinusoid, informed": lambda: sinusoid_problem(mlp(3, 1, (8,)), 5, 5, informed=True),
    "images": lambda: image_problem(),
    "policies": lambda: policy_problem(),
}


@pytest.fixture(params=PROBLEMS, scope="module")
def problem(request):
    return PROBLEMS[request.param]()


@pytest.fixture(scope="module")
def params(problem):
    return problem.init(jax.random.key(0))


def test_sample_is_a_function_of_its_key(problem, params):
    one, again = (problem.sample(params, jax.random.key(1)) for _ in range(2))
    other = problem.sample(params, jax.random.key(2))
    assert isinstance(one, Task)
    assert_trees_close(one, again, 0)
    for mine, theirs in zip(one, other, strict=True):  # labels may be equal, inputs may not
        leaves = zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True)
        assert any(np.any(np.asarray(a) != np.asarray(b)) for a, b in leaves)


def test_losses_are_scalars_with_metrics(problem, params):
    task = problem.sample(params, jax.random.key(1))
    for loss_fn, batch in ((problem.inner_loss, task.support), (problem.outer_loss, task.query)):
        loss, metrics = loss_fn(params, batch)
        assert loss.shape == ()
        assert np.isfinite(loss)
        assert isinstance(metrics, dict)


def test_sampling_batches(problem, params):
    keys = jax.random.split(jax.random.key(3), 3)
    many = jax.jit(jax.vmap(lambda k: problem.sample(params, k)))(keys)
    one = problem.sample(params, keys[1])
    assert_trees_close(jax.tree.map(lambda x: x[1], many), one, 1e-4)


def test_exact_modes_agree(problem, params):
    task = problem.sample(params, jax.random.key(1))

    def gradient(mode):
        fn = functools.partial(
            meta_loss,
            problem.inner_loss,
            inner_lr=0.05,
            num_inner_steps=2,
            outer_loss=problem.outer_loss,
            mode=mode,
        )
        return jax.jit(jax.grad(fn, has_aux=True))(params, task)[0]

    expected = gradient("reverse")
    assert_trees_close(gradient("mixed"), expected, 1e-4)
    assert_trees_close(gradient("remat"), expected, 1e-4)


def test_trains(problem, params):
    learner = algorithms.maml(problem, inner_lr=0.01)
    update = gradient_update(learner.loss, optax.adam(1e-3))
    train = make_train_fn(problem.sample, update, num_tasks=4, num_meta_steps=3, mesh=task_mesh(4))
    state, metrics = train(init(params, update, 0))
    assert jnp.all(jnp.isfinite(metrics["loss"]))
    assert state.step == 3


LEARNERS = {
    "maml": lambda problem: algorithms.maml(problem, inner_lr=0.05, num_inner_steps=2),
    "maml, mixed": lambda problem: algorithms.maml(problem, 0.05, 2, mode="mixed"),
}


@pytest.fixture(params=LEARNERS, scope="module")
def learner(request):
    return LEARNERS[request.param](PROBLEMS["sinusoid"]())


def tasks(count):
    problem = PROBLEMS["sinusoid"]()
    return jax.vmap(problem.sample, (None, 0))(None, jax.random.split(jax.random.key(2), count))


def test_a_learner_adapts_and_its_loss_reports_query_metrics(learner):
    assert isinstance(learner, MetaLearner)
    meta = learner.init(jax.random.key(0))
    task = jax.tree.map(lambda x: x[0], tasks(1))
    loss, metrics = learner.loss(meta, task)
    assert loss.shape == ()
    assert metrics["query"]["loss"] == loss
    adapted = learner.adapt(meta, task.support)
    problem = PROBLEMS["sinusoid"]()
    np.testing.assert_allclose(problem.outer_loss(adapted, task.query)[0], loss, rtol=1e-5)


def test_a_learners_gradient_agrees_with_finite_differences(learner, x64):
    widen = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float64), tree)
    meta = widen(learner.init(jax.random.key(0)))
    task = jax.tree.map(lambda x: x[0], widen(tasks(1)))
    loss = jax.jit(lambda m: learner.loss(m, task)[0])
    check_grads(loss, (meta,), order=1, modes=["rev"], atol=1e-5, rtol=1e-5, eps=1e-7)


def test_a_learner_does_not_depend_on_batches_or_devices(learner):
    meta = learner.init(jax.random.key(0))
    many = make_evaluate_fn(learner.evaluate)(meta, tasks(8))
    one = learner.evaluate(meta, jax.tree.map(lambda x: x[5], tasks(8)))
    np.testing.assert_allclose(many.per_task["loss"][5], one["loss"], rtol=1e-4)


FREE = {"Dense_0": False, "Dense_1": True}  # leaves of the sinusoid's network with one hidden layer
UPDATES = {
    "gradient": lambda problem: gradient_update(
        algorithms.maml(problem, inner_lr=0.01).loss, optax.adam(1e-3)
    ),
    "gradient, masked": lambda problem: gradient_update(
        algorithms.maml(problem, inner_lr=0.01).loss, optax.adam(1e-3), mask=FREE
    ),
}


@pytest.mark.parametrize("name", UPDATES)
def test_an_update_is_the_same_on_any_number_of_devices(name):
    problem = PROBLEMS["sinusoid"]()
    update, start = UPDATES[name](problem), problem.init(jax.random.key(0))
    runs = []
    for count in (1, 8):
        train = make_train_fn(
            problem.sample,
            update,
            num_tasks=8,
            num_meta_steps=2,
            mesh=task_mesh(8, jax.devices()[:count]),
        )
        runs.append(jax.device_get(train(init(start, update, 0))))
    (one, metrics), (many, of_many) = runs
    assert_trees_close(many.params, one.params, 1e-5)
    np.testing.assert_allclose(of_many["loss"], metrics["loss"], rtol=1e-5)
    assert {"loss", "nonfinite_tasks", "first_nonfinite_task", "nonfinite_update"} <= set(metrics)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), one.params, jax.device_get(start))
    frozen = [layer for layer, free in FREE.items() if "masked" in name and not free]
    for layer, leaves in moved.items():
        assert any(jax.tree.leaves(leaves)) == (layer not in frozen)
