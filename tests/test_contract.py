"""What every problem must be: pure single-task functions that the core can batch and differentiate.

A new problem package adds its problems to `PROBLEMS`, and passes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_trees_close

from maml_jax import Task, gradient_update, init, make_train_fn, meta_loss, task_mesh
from maml_jax.classification import ImageSet, classification_problem
from maml_jax.networks import convolutional, gaussian_policy, mlp
from maml_jax.regression import sinusoid_problem
from maml_jax.reinforcement import navigation, reinforcement_problem


def image_problem():
    """3-way 1-shot episodes of random images, closed over for the contract's `sample`."""
    network = convolutional((8, 8, 1), 3, num_filters=4, num_layers=2)
    problem = classification_problem(network, 3, 1, 2)
    images = jax.random.randint(jax.random.key(9), (6, 4, 8, 8, 1), 0, 256).astype(jnp.uint8)
    images = ImageSet(images, jnp.full(6, 4, jnp.int32))
    return problem._replace(sample=lambda params, key: problem.sample(params, key, images))


def policy_problem():
    """Navigation with one inner step, whose samples lose their axis of steps for these tests."""
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
    for mine, theirs in zip(one, other, strict=True):  # labels may be the same, inputs not
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
    task_loss = functools.partial(
        meta_loss, problem.inner_loss, inner_lr=0.01, outer_loss=problem.outer_loss
    )
    optimizer = optax.adam(1e-3)
    train = make_train_fn(
        problem.sample,
        gradient_update(task_loss, optimizer),
        num_tasks=4,
        num_meta_steps=3,
        mesh=task_mesh(4),
    )
    state, metrics = train(init(params, optimizer, 0))
    assert jnp.all(jnp.isfinite(metrics["loss"]))
    assert state.step == 3
