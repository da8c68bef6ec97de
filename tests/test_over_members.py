"""Several members in one program, on separate devices, equal each member alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_trees_close, classification_task, cross_entropy, mlp_params

from benchmarks.programs import collectives
from maml_jax import (
    NonFiniteError,
    Task,
    check_finite,
    gradient_update,
    init,
    make_train_fn,
    member_mesh,
    meta_loss,
    over_members,
    task_mesh,
)

TASKS, STEPS = 4, 3


def dtype():
    return jnp.float64 if jax.config.jax_enable_x64 else jnp.float32


def sample(params, key):
    return classification_task(key, dtype=dtype())


def update(inner_lr=0.1, optimizer=None):
    loss = functools.partial(meta_loss, cross_entropy, inner_lr=inner_lr)
    return gradient_update(loss, optimizer or optax.adam(1e-2))


def trainer(mesh, inner_lr=0.1, **options):
    return make_train_fn(
        sample, update(inner_lr), num_tasks=TASKS, num_meta_steps=STEPS, mesh=mesh, **options
    )


def states(count):
    """Makes the states of `count` seeds."""
    each = [
        init(mlp_params(jax.random.key(seed), (3, 8, 4), dtype()), update(), seed)
        for seed in range(count)
    ]
    return jax.tree.map(lambda *x: jnp.stack(x), *each)


def of_member(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


def alone(all_states, index, inner_lr=0.1):
    """Returns the state and metrics of a member that trains alone on one device."""
    train = trainer(task_mesh(TASKS, jax.devices()[:1]), inner_lr)
    return jax.device_get(train(of_member(all_states, index)))


@pytest.mark.parametrize(
    ("members", "devices", "shape", "one_by_one"),
    [
        (2, 4, (2, 2), False),
        (4, 2, (2, 1), True),
        pytest.param(4, 4, (4, 1), False, marks=pytest.mark.slow),
        pytest.param(3, 4, (1, 4), True, marks=pytest.mark.slow),
    ],
)
def test_each_member_equals_a_separate_run(members, devices, shape, one_by_one, x64):
    mesh = member_mesh(members, TASKS, jax.devices()[:devices])
    assert mesh.devices.shape == shape
    train = over_members(trainer(mesh), one_by_one=one_by_one)
    text = train.lower(states(members)).compile().as_text()
    reduces = shape[1] > 1
    assert collectives(text)["all-reduce"] == reduces
    once, _, kept = train(states(members))
    assert kept.all()
    twice, metrics, _ = train(once)  # the second call continues from the first
    assert metrics["loss"].shape == (members, STEPS)
    for index in (0, members - 1):
        first, _ = alone(states(members), index)
        expected, losses = jax.device_get(
            trainer(task_mesh(TASKS, jax.devices()[:1]))(jax.tree.map(jnp.asarray, first))
        )
        np.testing.assert_allclose(metrics["loss"][index], losses["loss"], rtol=1e-10)
        assert_trees_close(of_member(twice.params, index), expected.params, 1e-10)


def test_members_with_swept_values_and_one_that_diverges():
    """Rates are traced; a member that diverges keeps its state, and the other trains on."""
    mesh = member_mesh(2, TASKS, jax.devices()[:1])
    train = over_members(trainer(mesh), lambda values: trainer(mesh, inner_lr=values["inner_lr"]))
    before = jax.device_get(states(2))
    after, metrics, kept = train(states(2), values={"inner_lr": jnp.array([0.2, jnp.inf])})
    np.testing.assert_array_equal(kept, [True, False])
    np.testing.assert_array_equal(after.step, [STEPS, 0])
    assert_trees_close(of_member(after.params, 1), of_member(before.params, 1), 0)
    expected, losses = alone(states(2), 0, inner_lr=0.2)
    np.testing.assert_allclose(metrics["loss"][0], losses["loss"], rtol=1e-5)
    assert_trees_close(of_member(after.params, 0), expected.params, 1e-5)
    with pytest.raises(NonFiniteError, match="of run 1"):
        check_finite(metrics)


def test_one_member_runs_the_program_of_one():
    mesh = task_mesh(TASKS, jax.devices()[:1])
    train = over_members(trainer(mesh))
    after, metrics, _ = train(states(1))
    expected, losses = alone(states(1), 0)
    assert_trees_close(of_member(jax.device_get(after.params), 0), expected.params, 0)
    np.testing.assert_array_equal(metrics["loss"][0], losses["loss"])


def test_each_member_has_data_beside_the_shared_data():
    def draw(params, key, shared, row):
        return Task(row + shared, row + shared)

    loss = lambda p, row: (jnp.mean((p - row) ** 2), {})
    move = gradient_update(functools.partial(meta_loss, loss, inner_lr=0.0), optax.sgd(0.5))
    train = make_train_fn(
        draw, move, num_tasks=2, num_meta_steps=1, mesh=member_mesh(2, 2, jax.devices()[:2])
    )
    start = jax.vmap(lambda p: init(p, move, jax.random.key(0)))(jnp.zeros((2, 1)))
    after, *_ = over_members(train)(
        start, jnp.float32(1.0), member_data=(jnp.array([[3.0], [5.0]]),)
    )
    np.testing.assert_allclose(after.params, [[4.0], [6.0]])


@pytest.mark.parametrize(
    ("members", "tasks", "shape"),
    [
        (1, 25, (1, 5)),
        (8, 25, (8, 1)),
        (3, 25, (1, 5)),  # more devices than the 3 x 1 in use
        (4, 32, (4, 2)),
        (6, 4, (2, 4)),
        (7, 11, (7, 1)),
    ],
)
def test_as_many_devices_as_both_can_use(members, tasks, shape):
    mesh = member_mesh(members, tasks)
    assert mesh.axis_names == ("members", "tasks")
    assert mesh.devices.shape == shape
