"""Several seeds in one program, on devices of their own: the same as each seed alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_trees_close, classification_task, cross_entropy, mlp_params
from jax.sharding import PartitionSpec

from benchmarks.programs import collectives
from experiments import sinusoid
from maml_jax import (
    Task,
    adaptation_curve,
    init,
    make_train_fn,
    meta_loss,
    over_seeds,
    seed_mesh,
    task_mesh,
)
from maml_jax.regression import mean_squared_error
from maml_jax.regression.sinusoid import few_shot_tasks, sample_fixed_tasks

OPTIMIZER = optax.adam(1e-2)
LOSS = functools.partial(meta_loss, cross_entropy, inner_lr=0.1)
TASKS, STEPS = 4, 3


def dtype():
    return jnp.float64 if jax.config.jax_enable_x64 else jnp.float32


def sample(params, key):
    return classification_task(key, dtype=dtype())


def trainer(mesh, **options):
    return make_train_fn(
        sample,
        LOSS,
        OPTIMIZER,
        num_tasks=TASKS,
        num_steps=STEPS,
        mesh=mesh,
        **options,
    )


def states(count):
    """The states of so many seeds."""
    each = [
        init(mlp_params(jax.random.key(seed), (3, 8, 4), dtype()), OPTIMIZER, seed)
        for seed in range(count)
    ]
    return jax.tree.map(lambda *x: jnp.stack(x), *each)


def alone(all_states, seed):
    """What a seed comes to by itself on one device."""
    own = jax.tree.map(lambda x: x[seed], all_states)
    return jax.device_get(trainer(task_mesh(TASKS, jax.devices()[:1]))(own))


@pytest.mark.parametrize(
    ("seeds", "devices", "shape", "one_by_one"),
    [
        (2, 4, (2, 2), False),
        (4, 2, (2, 1), True),
        pytest.param(4, 4, (4, 1), False, marks=pytest.mark.slow),
        pytest.param(3, 4, (1, 4), True, marks=pytest.mark.slow),
    ],
)
def test_each_seed_is_as_alone(seeds, devices, shape, one_by_one, x64):
    mesh = seed_mesh(seeds, TASKS, jax.devices()[:devices])
    assert mesh.devices.shape == shape
    train = over_seeds(trainer(mesh), one_by_one)
    text = train.lower(states(seeds)).compile().as_text()
    assert collectives(text) == {**dict.fromkeys(collectives(""), 0), "all-reduce": shape[1] > 1}
    found, metrics = train(states(seeds))
    assert metrics["loss"].shape == (seeds, STEPS)
    found, metrics = train(found)  # the second call takes what the first gave
    for seed in (0, seeds - 1):
        first, _ = alone(states(seeds), seed)
        expected, losses = jax.device_get(
            trainer(task_mesh(TASKS, jax.devices()[:1]))(jax.tree.map(jnp.asarray, first))
        )
        np.testing.assert_allclose(metrics["loss"][seed], losses["loss"], rtol=1e-10)
        ours = jax.tree.map(lambda x, i=seed: x[i], found.params)
        assert_trees_close(ours, expected.params, 1e-10)


@pytest.mark.slow
def test_on_a_task_mesh_every_device_has_all_seeds():
    found, _ = over_seeds(trainer(task_mesh(TASKS, jax.devices()[:2])))(states(3))
    expected, _ = alone(states(3), 2)
    ours = jax.tree.map(lambda x: x[2], found.params)
    assert_trees_close(ours, expected.params, 1e-5)


def test_each_seed_has_data_of_its_own():
    def draw(params, key, row):
        return Task(row, row)

    loss = lambda p, row: (jnp.mean((p - row) ** 2), {})
    train = make_train_fn(
        draw,
        functools.partial(meta_loss, loss, inner_lr=0.0),
        optax.sgd(0.5),
        num_tasks=2,
        num_steps=1,
        mesh=seed_mesh(2, 2, jax.devices()[:2]),
    )
    start = jax.vmap(lambda p: init(p, optax.sgd(0.5), jax.random.key(0)))(jnp.zeros((2, 1)))
    found, _ = over_seeds(train)(start, jnp.array([[3.0], [5.0]]))
    np.testing.assert_allclose(found.params, [[3.0], [5.0]])


def test_spread_data_is_refused():
    train = trainer(seed_mesh(2, TASKS), data_specs=(PartitionSpec("tasks"),))
    with pytest.raises(ValueError, match=r"whole on every device; received .*'tasks'"):
        over_seeds(train)
    with pytest.raises(ValueError, match="received a TrainFn without on_device"):
        over_seeds(dataclasses.replace(train, data_specs=PartitionSpec(), on_device=None))


@pytest.mark.parametrize(
    ("seeds", "tasks", "shape"),
    [
        (1, 25, (1, 5)),
        (8, 25, (8, 1)),
        (3, 25, (1, 5)),  # more devices than 3 x 1
        (4, 32, (4, 2)),
        (6, 4, (2, 4)),
        (7, 11, (7, 1)),
    ],
)
def test_as_many_devices_as_both_can_use(seeds, tasks, shape):
    mesh = seed_mesh(seeds, tasks)
    assert mesh.axis_names == ("seeds", "tasks")
    assert mesh.devices.shape == shape


@pytest.mark.parametrize(
    ("num_tasks", "runs", "cores", "devices"),
    [(25, 1, 2, 1), (24, 1, 2, 2), (24, 1, 1, 1), (25, 2, 2, 2), (25, 3, 2, 1), (24, 3, 8, 6)],
)
def test_a_sinusoid_takes_cores_for_which_it_has_work(num_tasks, runs, cores, devices):
    config = sinusoid.Config(num_tasks=num_tasks)
    assert sinusoid.cpu_devices(config, runs, cores) == devices
    assert seed_mesh(runs, num_tasks, jax.devices()[:devices]).size == devices


def test_the_sinusoids_evaluation_on_many_devices():
    """24 tasks on 8 devices; adapted one by one, they come to the same."""
    config = sinusoid.Config(
        hidden_sizes=(8,), eval_steps=2, inner_lr=1.0, meta_lr=1.0, num_seeds=2
    )
    network = sinusoid.make_network(config)
    params = jax.vmap(network.init)(jax.random.split(jax.random.key(0), 2))
    drawn = sample_fixed_tasks(jax.random.key(1), 24, 5)
    tasks = few_shot_tasks(drawn, 5, 20)
    judge, *_ = sinusoid._judges(config)
    found = judge(params, tasks, np.array([0.01, 0.02], np.float32))
    assert len(found.sharding.device_set) == 8
    curve = jax.jit(
        functools.partial(adaptation_curve, mean_squared_error(network.apply), num_steps=2)
    )
    for seed, index in ((0, 0), (1, 23)):
        own = jax.tree.map(lambda p, s=seed: p[s], params)
        task = jax.tree.map(lambda x, i=index: x[i], tasks)
        expected = curve(own, task, inner_lr=0.01 * (seed + 1))["loss"]
        np.testing.assert_allclose(found[seed, index], expected, rtol=1e-5)
