"""Sinusoid tasks, their loss and baselines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_close
from jax.test_util import check_grads

from maml_jax import Task
from maml_jax.kernels.products import matmul
from maml_jax.networks import mlp
from maml_jax.networks.mlp import num_parameters
from maml_jax.regression import Examples, baselines, mean_squared_error, sinusoid, sinusoid_problem


class TestSinusoids:
    def test_ranges_and_formula(self):
        sample = sinusoid_problem(mlp(1, 1), 7, 3).sample
        tasks = jax.jit(jax.vmap(lambda k: sample(None, k)))(
            jax.random.split(jax.random.key(0), 500)
        )
        assert tasks.support.inputs.shape == (500, 7, 1)
        assert tasks.query.targets.shape == (500, 3, 1)
        x = np.concatenate([tasks.support.inputs, tasks.query.inputs], axis=1)
        assert -5 <= x.min() < -4.9
        assert 4.9 < x.max() <= 5
        assert not np.intersect1d(tasks.support.inputs[0], tasks.query.inputs[0]).size
        informed = sinusoid_problem(mlp(3, 1), 7, 3, informed=True).sample
        tasks_with_inputs = jax.vmap(lambda k: informed(None, k))(
            jax.random.split(jax.random.key(0), 500)
        )
        x, amplitude, phase = np.moveaxis(np.asarray(tasks_with_inputs.support.inputs), -1, 0)
        assert 0.1 <= amplitude.min() < 0.2
        assert 4.9 < amplitude.max() <= 5.0
        assert 0 <= phase.min() < 0.05
        assert np.pi - 0.05 < phase.max() <= np.pi
        # The same key gives the same function with and without the extra inputs.
        np.testing.assert_allclose(
            tasks.support.targets[..., 0], amplitude * np.sin(x - phase), atol=1e-5
        )

    def test_fixed_tasks_share_functions_and_points(self):
        fixed = sinusoid.sample_fixed_tasks(jax.random.key(3), 4, 20)
        five, ten = (sinusoid.few_shot_tasks(fixed, k, 100) for k in (5, 10))
        np.testing.assert_array_equal(five.support.inputs, ten.support.inputs[:, :5])
        np.testing.assert_array_equal(five.query.targets, ten.query.targets)
        with pytest.raises(ValueError, match="at most the 20 drawn; received 21"):
            sinusoid.few_shot_tasks(fixed, 21, 100)


class TestLoss:
    def test_mean_squared_error(self):
        loss, metrics = mean_squared_error(lambda p, x: p * x)(
            2.0, Examples(jnp.array([[1.0], [2.0]]), jnp.array([[0.0], [1.0]]))
        )
        np.testing.assert_allclose(loss, (2.0**2 + 3.0**2) / 2)
        assert metrics == {}

    def test_shapes_must_agree(self):
        with pytest.raises(ValueError, match=r"received \(3, 1\) and \(3,\)"):
            mean_squared_error(lambda p, x: p * x)(1.0, Examples(jnp.ones((3, 1)), jnp.ones(3)))


class TestNetworks:
    def test_parameter_count_of_the_paper(self):
        """1-40-40-1: 40 + 40 + 1600 + 40 + 40 + 1."""
        params = mlp(1, 1).init(jax.random.key(0))
        assert num_parameters(params) == 1761

    def test_values_and_structure(self):
        network = mlp(2, 3, (5,), activation=jnp.tanh)
        params = network.init(jax.random.key(0))
        x = jax.random.normal(jax.random.key(1), (4, 6, 2))
        h = jnp.tanh(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])
        y = h @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]
        np.testing.assert_allclose(network.apply(params, x), y, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(
        ("name", "scale"), [("he_normal", 0.2236), ("truncated_normal", 0.0088)]
    )
    def test_initializers(self, name, scale):
        kernel = mlp(40, 1, (2000,), initializer=name).init(jax.random.key(0))["Dense_0"]["kernel"]
        np.testing.assert_allclose(np.std(kernel), scale, rtol=0.03)

    def test_wrong_use(self):
        with pytest.raises(ValueError, match="layer sizes must be 1 or more"):
            mlp(1, 1, (0,))
        with pytest.raises(ValueError, match="initializer must be one of 'he_normal'"):
            mlp(1, 1, initializer="zeros")
        network = mlp(1, 1)
        with pytest.raises(ValueError, match="inputs must have 1 features"):
            network.apply(network.init(jax.random.key(0)), jnp.ones((3, 2)))


class TestMatmul:
    """The product with a special lowering equals the plain one, derivatives included."""

    A = jax.random.normal(jax.random.key(0), (5, 3))
    B = jax.random.normal(jax.random.key(1), (3, 4))

    def test_derivatives_to_second_order(self, x64):
        a, b = self.A.astype(jnp.float64), self.B.astype(jnp.float64)
        check_grads(lambda a, b: jnp.sin(matmul(a, b)), (a, b), order=2, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0), (2, 1)])
    def test_all_batchings(self, axes):
        shape = lambda x, axis: x if axis is None else jnp.stack([x, 2 * x, -x], axis)
        a, b = shape(self.A, axes[0]), shape(self.B, axes[1])

        def second_order(product):
            def curvature(a, b):
                inner = lambda b: jnp.sum(jnp.tanh(product(a, b)) ** 2)
                stepped = b - 0.1 * jax.grad(inner)(b)
                return jnp.sum(jnp.sin(product(a, stepped)))

            return jax.jit(jax.vmap(jax.grad(curvature, (0, 1)), axes))(a, b)

        assert_trees_close(second_order(matmul), second_order(jnp.matmul), 1e-5)

    def test_two_task_axes(self):
        a = jnp.stack([self.A, -self.A])[None] * jnp.arange(3.0)[:, None, None, None]
        b = jnp.stack([self.B, 2 * self.B])[None] * jnp.ones((3, 1, 1, 1))
        result = jax.vmap(jax.vmap(matmul))(a, b)
        np.testing.assert_allclose(result, a @ b, rtol=1e-5, atol=1e-6)

    def test_incompatible_shapes(self):
        with pytest.raises(TypeError, match=r"\(2, 3\) and \(2, 3\)"):
            matmul(jnp.ones((2, 3)), jnp.ones((2, 3)))


class TestBaselines:
    def test_multi_task_loss_uses_all_points(self):
        task = Task(
            Examples(jnp.array([[1.0]]), jnp.array([[1.0]])),
            Examples(jnp.array([[2.0], [3.0]]), jnp.array([[0.0], [0.0]])),
        )
        loss, _ = baselines.multi_task_loss(mean_squared_error(lambda p, x: p * x))(1.0, task)
        np.testing.assert_allclose(loss, (0 + 4 + 9) / 3)

    def test_tuning_selects_the_smallest_error_and_survives_divergence(self):
        curve = lambda rate: jnp.where(
            rate > 0.5, jnp.nan, jnp.array([9.0, 1.0, 1.0]) * (rate - 0.1) ** 2
        )
        best, scores = baselines.tune_inner_lr(curve, jnp.array([0.01, 0.1, 0.3, 1.0]))
        np.testing.assert_allclose(best, 0.1)
        assert np.isinf(scores[-1])

    @pytest.mark.parametrize("regularizer", baselines.REGULARIZERS)
    def test_single_task_networks_by_hand(self, regularizer):
        """Two linear networks y = w x: errors and penalties by hand."""
        network = type(mlp(1, 1))(init=lambda key: None, apply=lambda w, x: w * x)
        w = jnp.array([1.0, 3.0])
        points = Examples(jnp.ones((2, 1, 1)), jnp.zeros((2, 1, 1)))
        task_loss = baselines.single_task_loss(network, regularizer, 0.5)
        loss, metrics = task_loss(w, Task((), points))
        penalty = {"none": 0.0, "l2": 0.5 * (1 + 9), "to_mean": 0.5 * (1 + 1)}[regularizer]
        np.testing.assert_allclose(loss, 1 + 9 + penalty)
        np.testing.assert_allclose(metrics["mse"], 5.0)
        # The mean is a target and is not differentiated.
        gradient = jax.grad(lambda w: task_loss(w, Task((), points))[0])(w)
        pull = {"none": [0, 0], "l2": [1, 3], "to_mean": [-1, 1]}[regularizer]
        np.testing.assert_allclose(gradient, 2 * np.array([1, 3]) + np.array(pull))

    def test_each_network_receives_points_of_one_function(self):
        functions = sinusoid.Sinusoid(jnp.array([1.0, 3.0]), jnp.array([0.0, 1.0]))
        task = baselines.sample_single_task_batches(6)(None, jax.random.key(0), functions)
        x, y = np.asarray(task.query.inputs), np.asarray(task.query.targets)
        assert x.shape == (2, 6, 1)
        np.testing.assert_allclose(y[1], 3 * np.sin(x[1] - 1), atol=1e-5)

    def test_average(self):
        params = {"w": jnp.array([[1.0, 2.0], [3.0, 6.0]])}
        np.testing.assert_allclose(baselines.average_networks(params)["w"], [2.0, 4.0])

    def test_unknown_regularizer(self):
        with pytest.raises(ValueError, match="regularizer must be one of"):
            baselines.single_task_loss(mlp(1, 1), "dropout", 0.1)
