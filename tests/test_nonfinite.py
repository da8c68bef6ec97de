"""Errors name the step and the task of a non-finite loss, gradient or parameter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_trees_close

from maml_jax import (
    NonFiniteError,
    Task,
    check_finite,
    gradient_update,
    init,
    make_train_fn,
    meta_loss,
    meta_step,
    over_members,
    task_mesh,
)
from maml_jax.task_gradients import sum_gradient


def root_loss(p, x):
    """Has a finite value and a non-finite derivative at x = 0."""
    return jnp.sqrt(x * jnp.sum(p**2)), {}


def linear_loss(p, batch):
    x, y = batch
    return jnp.mean((x @ p - y) ** 2), {}


# optax.adam's derivative divides by the root of the second moment, 0 for a feature that is 0.
ADAM_INSIDE = functools.partial(
    meta_loss, linear_loss, inner_lr=1.0, num_inner_steps=1, inner_optimizer=optax.adam(0.01)
)


def step(theta, tasks, task_loss, optimizer, **options):
    return meta_step(task_loss, theta, optimizer.init(theta), tasks, optimizer, **options)


def features(key, num_tasks, zero_in=()):
    """Draws linear regression; tasks `zero_in` have a feature that is always 0."""
    x = jax.random.normal(key, (num_tasks, 4, 2))
    for task in zero_in:
        x = x.at[task, :, 1].set(0.0)
    batch = (x, 1.0 + jnp.sum(x, -1))
    return Task(batch, batch)


@pytest.mark.parametrize("batching", ["vmap", "scan", 2])
def test_each_tasks_gradient_is_checked_separately(batching):
    x = jnp.array([1.0, 0.0, 2.0, jnp.inf, 1.0])
    result = sum_gradient(root_loss, jnp.ones(3), x, batching)
    np.testing.assert_array_equal(result.nonfinite, [False, True, False, True, False])
    np.testing.assert_array_equal(np.isfinite(result.losses), [True, True, True, False, True])


def test_without_a_repeated_run_all_tasks_of_the_chunk_are_named():
    x = jnp.array([1.0, 1.0, 0.0, 2.0, 1.0])
    result = sum_gradient(root_loss, jnp.ones(3), x, 2, single_out=False)
    np.testing.assert_array_equal(result.nonfinite, [False, False, True, True, False])


def test_an_inner_optimizer_without_a_derivative_is_reported_at_its_task():
    tasks = features(jax.random.key(0), 5, zero_in=(2, 3))
    *_, metrics = step(jnp.ones(2), tasks, ADAM_INSIDE, optax.adam(0.1))
    assert np.isfinite(metrics["loss"])
    assert metrics["nonfinite_tasks"] == 2
    assert metrics["first_nonfinite_task"] == 2
    assert metrics["nonfinite_update"] == 1
    with pytest.raises(
        NonFiniteError, match=r"meta-gradient is not finite at meta-step 7, although"
    ):
        check_finite(metrics, first_step=7)
    with pytest.raises(NonFiniteError, match=r"2 task\(s\), the first of them task 2\..*eps_root"):
        check_finite(metrics)


def sample_root(params, key, bad_key):
    """Task 6 of step 2 is bad; its key is an argument."""
    same = jnp.all(jax.random.key_data(key) == bad_key)
    x = jnp.where(same, 0.0, 1.0)
    return Task(x, x)


@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.parametrize("num_steps", [3, 4])
def test_the_step_of_a_dispatch_and_its_task_are_named(num_devices, num_steps):
    """Also in a dispatch's last step, and on any device."""
    optimizer = optax.sgd(0.01)
    root = lambda params, task: root_loss(params, task.query)
    train = make_train_fn(
        sample_root,
        gradient_update(root, optimizer),
        num_tasks=8,
        num_meta_steps=num_steps,
        mesh=task_mesh(8, jax.devices()[:num_devices]),
    )
    key = jax.random.key(3)
    bad = jax.random.key_data(jax.random.fold_in(jax.random.fold_in(key, 2), 6))
    state, metrics = train(init(jnp.ones(2), optimizer, key), bad)
    with pytest.raises(NonFiniteError, match=r"gradient .* meta-step 102, .* 1 task.* task 6\."):
        check_finite(metrics, first_step=100)
    check_finite(jax.tree.map(lambda x: x[:2], metrics))


def test_a_member_among_several_is_named():
    optimizer = optax.sgd(0.01)
    root = lambda params, task: root_loss(params, task.query)
    one = make_train_fn(
        sample_root, gradient_update(root, optimizer), num_tasks=8, num_meta_steps=3
    )
    keys = jax.random.split(jax.random.key(0), 2)
    states = jax.vmap(lambda key: init(jnp.ones(2), optimizer, key))(keys)
    never, bad = jnp.zeros(2, jnp.uint32), jax.random.fold_in(jax.random.fold_in(keys[1], 1), 4)
    keys_to_fail = jnp.stack([never, jax.random.key_data(bad)])
    _, metrics, kept = over_members(one)(states, member_data=(keys_to_fail,))
    np.testing.assert_array_equal(kept, [True, False])
    with pytest.raises(NonFiniteError, match=r"at meta-step 1 of run 1, .* task 4\."):
        check_finite(metrics)


def test_parameters_that_only_the_step_makes_infinite():
    tasks = Task(jnp.ones(3), jnp.ones(3))
    root = lambda params, task: root_loss(params, task.query)
    *_, metrics = step(jnp.ones(2), tasks, root, optax.sgd(jnp.inf))
    assert metrics["nonfinite_tasks"] == 0
    with pytest.raises(
        NonFiniteError, match=r"a parameter after the step, is not finite at meta-step 5, and no"
    ):
        check_finite(metrics, first_step=5)


def test_an_optimizer_may_skip_non_finite_gradients():
    optimizer = optax.apply_if_finite(optax.sgd(0.1), max_consecutive_errors=5)
    tasks = features(jax.random.key(0), 3, zero_in=(1,))
    after, _, metrics = step(jnp.ones(2), tasks, ADAM_INSIDE, optimizer)
    assert_trees_close(after, jnp.ones(2), 0)
    assert metrics["nonfinite_tasks"] == 1
    assert metrics["first_nonfinite_task"] == 1


@pytest.mark.parametrize("batching", ["vmap", "scan", 32])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_gradients_are_summed_in_float32(batching, dtype):
    """2,048 tasks with gradients of 1, and losses and metrics whose sums overflow float16."""
    count = 2048
    loss = lambda p, task: (p["w"] + task.query, {"large": 100 + task.query})
    tasks = Task(jnp.zeros(count, dtype), jnp.zeros(count, dtype))
    optimizer = optax.sgd(1.0)
    theta = {"w": jnp.zeros((), dtype)}
    theta, _, metrics = jax.jit(lambda p, t: step(p, t, loss, optimizer, batching=batching))(
        theta, tasks
    )
    assert theta["w"].dtype == dtype
    assert theta["w"] == -1.0
    assert metrics["large"] == 100.0
    assert metrics["loss"].dtype == jnp.float32


def test_half_precision_on_several_devices():
    loss = lambda p, task: (p * task.query, {})
    draw = lambda params, key: Task(jnp.ones((), jnp.float16), jnp.ones((), jnp.float16))
    optimizer = optax.sgd(1.0)
    train = make_train_fn(
        draw, gradient_update(loss, optimizer, batching="scan"), num_tasks=4096, num_meta_steps=1
    )
    assert train.mesh.size == 8
    state, _ = train(init(jnp.zeros((), jnp.float16), optimizer, 0))
    assert state.params == -1.0
