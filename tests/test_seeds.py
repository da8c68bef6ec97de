"""The sinusoid's seeds: devices that they take, and their evaluation on many."""

import functools

import jax
import numpy as np
import pytest

from experiments import sinusoid
from maml_jax import adaptation_curve, member_mesh
from maml_jax.regression import mean_squared_error
from maml_jax.regression.sinusoid import few_shot_tasks, sample_fixed_tasks


@pytest.mark.parametrize(
    ("num_tasks", "runs", "cores", "devices"),
    [(25, 1, 2, 1), (24, 1, 2, 2), (24, 1, 1, 1), (25, 2, 2, 2), (25, 3, 2, 1), (24, 3, 8, 6)],
)
def test_a_sinusoid_takes_cores_for_which_it_has_work(num_tasks, runs, cores, devices):
    config = sinusoid.Config(num_tasks=num_tasks)
    assert sinusoid.cpu_devices(config, runs, cores) == devices
    assert member_mesh(runs, num_tasks, jax.devices()[:devices]).size == devices


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
        functools.partial(adaptation_curve, mean_squared_error(network.apply), num_inner_steps=2)
    )
    for seed, index in ((0, 0), (1, 23)):
        own = jax.tree.map(lambda p, s=seed: p[s], params)
        task = jax.tree.map(lambda x, i=index: x[i], tasks)
        expected = curve(own, task, inner_lr=0.01 * (seed + 1))["loss"]
        np.testing.assert_allclose(found[seed, index], expected, rtol=1e-5)
