"""Adaptation curves over inner steps, and confidence intervals over tasks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import classification_task, cross_entropy, mlp_params
from jax.sharding import Mesh

from maml_jax import (
    PerStep,
    Task,
    adapt,
    adaptation_curve,
    algorithms,
    confidence_interval,
    make_evaluate_fn,
)
from maml_jax.mesh import TASK_AXIS
from maml_jax.types import Problem


def curve(loss_fn, num_inner_steps, **options):
    return functools.partial(adaptation_curve, loss_fn, num_inner_steps=num_inner_steps, **options)


def quadratic(params, target):
    return jnp.mean((params - target) ** 2), {"first": params[0]}


def test_curve_by_hand():
    """Each step multiplies theta - c by 1 - 2 lr / 2, in 2 dimensions with a mean."""
    tasks = Task(jnp.array([[1.0, 1.0], [3.0, 3.0]]), jnp.array([[1.0, 1.0], [2.0, 2.0]]))
    result = make_evaluate_fn(curve(quadratic, 2))(jnp.zeros(2), tasks, 0.5)
    shrink = 0.5 ** np.arange(3)  # the gradient is 2 / 2 (theta - c)
    theta = np.array([1.0 * (1 - shrink), 3.0 * (1 - shrink)])  # [T, S + 1]
    expected = (theta - np.array([[1.0], [2.0]])) ** 2
    np.testing.assert_allclose(result.per_task["loss"], expected, atol=1e-6)
    np.testing.assert_allclose(result.per_task["first"], theta, atol=1e-6)
    np.testing.assert_allclose(result.mean["loss"], expected.mean(0), atol=1e-6)
    half = 1.96 * expected.std(0) / np.sqrt(2)
    np.testing.assert_allclose(result.ci95["loss"], half, atol=1e-6)


def test_the_last_point_is_the_loss_after_adapt():
    params = mlp_params(jax.random.key(0), (3, 8, 4), jnp.float32)
    tasks = classification_task(jax.random.key(1), num_tasks=3, dtype=jnp.float32)
    result = make_evaluate_fn(curve(cross_entropy, 4))(params, tasks, 0.3)
    task = jax.tree.map(lambda x: x[1], tasks)
    adapted, _ = adapt(cross_entropy, params, task.support, 0.3, 4)
    loss, metrics = cross_entropy(adapted, task.query)
    np.testing.assert_allclose(result.per_task["loss"][1, -1], loss, rtol=1e-5)
    np.testing.assert_allclose(result.per_task["accuracy"][1, -1], metrics["accuracy"])
    assert result.per_task["loss"].shape == (3, 5)
    last = make_evaluate_fn(curve(cross_entropy, 4, last_only=True))(params, tasks, 0.3)
    assert last.per_task["loss"].shape == (3, 1)
    np.testing.assert_allclose(last.per_task["loss"][:, 0], result.per_task["loss"][:, -1])


@pytest.mark.parametrize(("num_devices", "batching"), [(4, "vmap"), (2, "scan"), (1, 3)])
def test_results_do_not_depend_on_devices_or_batching(num_devices, batching):
    params = mlp_params(jax.random.key(0), (3, 8, 4), jnp.float32)
    tasks = classification_task(jax.random.key(1), num_tasks=8, dtype=jnp.float32)
    expected = make_evaluate_fn(curve(cross_entropy, 2))(params, tasks, 0.3)
    mesh = Mesh(np.array(jax.devices()[:num_devices]), (TASK_AXIS,))
    evaluate = make_evaluate_fn(curve(cross_entropy, 2), batching=batching, mesh=mesh)
    result = evaluate(params, tasks, 0.3)
    np.testing.assert_allclose(result.per_task["loss"], expected.per_task["loss"], rtol=1e-5)


def test_members_under_vmap_equal_a_loop():
    tasks = Task(jnp.array([[1.0, 1.0], [3.0, 3.0]]), jnp.array([[1.0, 1.0], [2.0, 2.0]]))
    evaluate = make_evaluate_fn(curve(quadratic, 1))
    members = jnp.array([[0.0, 0.0], [1.0, 2.0], [3.0, 0.0]])
    together = jax.vmap(evaluate, (0, None, None))(members, tasks, 0.5)
    for index, params in enumerate(members):
        alone = evaluate(params, tasks, 0.5).mean["loss"]
        np.testing.assert_allclose(together.mean["loss"][index], alone, rtol=1e-6)


def test_confidence_interval_covers_the_mean():
    """In 400 experiments of 50 tasks, about 95 % of the intervals contain the true mean."""
    values = jax.random.normal(jax.random.key(0), (400, 50))
    half = confidence_interval(values, axis=1)
    share = jnp.mean(jnp.abs(values.mean(1)) <= half)
    assert 0.91 < share < 0.98


def test_evaluation_accepts_the_arguments_of_training():
    """Rates for steps and parameters, a batch for each step, and task-dependent initial values."""
    loss = lambda p, target: (jnp.sum((p["a"] + p["b"] - target) ** 2), {})
    params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    support = jnp.arange(12.0).reshape(2, 3, 2)  # [T, S, ...]
    tasks = Task(support, support[:, 0])
    rates = PerStep({"a": jnp.array([0.1, 0.2, 0.3]), "b": jnp.zeros(3)})
    initial = lambda p, batches: {**p, "b": jnp.mean(batches, axis=0)}
    evaluate = make_evaluate_fn(curve(loss, 3, batch_per_step=True, initial=initial))
    per_task = evaluate(params, tasks, rates).per_task["loss"]
    for t in range(2):
        a, b = np.zeros(2), np.mean(support[t], axis=0)
        expected = [np.sum((a + b - tasks.query[t]) ** 2)]
        for step, rate in enumerate((0.1, 0.2, 0.3)):
            a = a - rate * 2 * (a + b - support[t, step])
            expected.append(np.sum((a + b - tasks.query[t]) ** 2))
        np.testing.assert_allclose(per_task[t], expected, rtol=1e-5)


def test_a_meta_learner_is_evaluated_after_its_steps():
    problem = Problem(lambda key: jnp.zeros(2), lambda *_: None, quadratic, quadratic)
    tasks = Task(jnp.array([[1.0, 1.0], [3.0, 3.0]]), jnp.array([[1.0, 1.0], [2.0, 2.0]]))
    learner = algorithms.maml(problem, 0.5, 2)
    at_end = make_evaluate_fn(learner.evaluate)(jnp.zeros(2), tasks)
    whole = make_evaluate_fn(curve(quadratic, 2))(jnp.zeros(2), tasks, 0.5)
    np.testing.assert_allclose(at_end.mean["loss"], whole.mean["loss"][-1], rtol=1e-6)


def test_wrong_use():
    with pytest.raises(ValueError, match="num_inner_steps must be 0 or more"):
        make_evaluate_fn(curve(quadratic, -1))(jnp.zeros(2), Task(*jnp.ones((2, 2, 2))), 0.1)
    with pytest.raises(ValueError, match="one leading axis of T tasks"):
        make_evaluate_fn(curve(quadratic, 1))(
            jnp.zeros(2), Task(jnp.ones((2, 2)), jnp.ones((3, 2))), 0.1
        )
