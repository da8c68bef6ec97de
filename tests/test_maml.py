"""Algorithm 1 against derivatives by hand, finite differences, and other libraries."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_trees_close, classification_task, cross_entropy, mlp_params
from flax import nnx
from jax.test_util import check_grads

from maml_jax import PerStep, Task, adapt, inner_update, meta_loss

# L(theta; (A, c)) = (theta - c)' A (theta - c) / 2: the gradient is A (theta - c), the Hessian A.
A_SUPPORT = jnp.array([[2.0, 0.5], [0.5, 1.0]])
C_SUPPORT = jnp.array([1.0, -2.0])
A_QUERY = jnp.array([[1.0, -0.3], [-0.3, 3.0]])
C_QUERY = jnp.array([0.5, 4.0])
THETA = jnp.array([0.2, 0.7])


def quadratic(params, batch):
    a, c = batch
    error = params - c
    return 0.5 * error @ a @ error, {}


QUADRATIC_TASK = Task((A_SUPPORT, C_SUPPORT), (A_QUERY, C_QUERY))


def test_inner_update_is_one_gradient_step(x64):
    adapted, metrics = inner_update(quadratic, THETA, QUADRATIC_TASK.support, 0.1)
    error = np.asarray(THETA - C_SUPPORT)
    a = np.asarray(A_SUPPORT)
    np.testing.assert_allclose(adapted, np.asarray(THETA) - 0.1 * a @ error, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], 0.5 * error @ a @ error, rtol=1e-6)


@pytest.mark.parametrize("num_steps", [0, 1, 3])
@pytest.mark.accelerator
def test_second_order_meta_gradient_by_hand(num_steps, x64):
    """theta_S - c = (I - lr A)^S (theta - c): the meta-gradient is J' A_q (theta_S - c_q)."""
    lr = 0.2
    a, c = np.asarray(A_SUPPORT, np.float64), np.asarray(C_SUPPORT, np.float64)
    jacobian = np.linalg.matrix_power(np.eye(2) - lr * a, num_steps)
    adapted = c + jacobian @ (np.asarray(THETA, np.float64) - c)
    outer = np.asarray(A_QUERY, np.float64) @ (adapted - np.asarray(C_QUERY, np.float64))

    def gradient(mode):
        args = (THETA.astype(jnp.float64), QUADRATIC_TASK, lr, num_steps)
        fn = lambda p, *rest: meta_loss(quadratic, p, *rest, mode=mode)
        return jax.grad(fn, has_aux=True)(*args)[0]

    for mode in ("reverse", "remat", "mixed"):
        np.testing.assert_allclose(gradient(mode), jacobian.T @ outer, rtol=1e-7)
    # First order replaces the Jacobian by the identity.
    np.testing.assert_allclose(gradient("first_order"), outer, rtol=1e-7)


@pytest.mark.accelerator
def test_meta_gradient_against_finite_differences(x64):
    params = mlp_params(jax.random.key(0), (3, 5, 4))
    task = classification_task(jax.random.key(1))
    fn = jax.jit(lambda p: meta_loss(cross_entropy, p, task, 0.5, 2)[0])
    check_grads(fn, (params,), order=1, modes=["rev"], atol=1e-5, rtol=1e-5)


@pytest.mark.accelerator
def test_adapt_repeats_inner_update(x64):
    params = mlp_params(jax.random.key(0))
    batch = classification_task(jax.random.key(1)).support
    adapted, metrics = jax.jit(lambda p: adapt(cross_entropy, p, batch, 0.3, 3))(params)
    step = jax.jit(lambda p: inner_update(cross_entropy, p, batch, 0.3))
    losses = []
    for _ in range(3):
        params, recorded = step(params)
        losses.append(recorded["loss"])
    assert_trees_close(adapted, params, 1e-12)
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-12)
    assert metrics["accuracy"].shape == (3,)


@pytest.mark.accelerator
def test_jit_equals_eager_and_vmap_equals_a_loop(x64):
    params = mlp_params(jax.random.key(0), (3, 5, 4))
    tasks = classification_task(jax.random.key(1), num_tasks=3)
    fn = lambda task: meta_loss(cross_entropy, params, task, 0.3, 2)
    batched = jax.jit(jax.vmap(fn))(tasks)
    for t in range(3):
        one = fn(jax.tree.map(lambda x, t=t: x[t], tasks))  # eager
        assert_trees_close(jax.tree.map(lambda x, t=t: x[t], batched), one, 1e-12)


def test_zero_steps_change_nothing():
    adapted, metrics = adapt(quadratic, THETA, QUADRATIC_TASK.support, 0.1, 0)
    np.testing.assert_array_equal(adapted, THETA)
    assert metrics["loss"].shape == (0,)


def test_monitor_receives_parameters_before_and_after_each_step():
    _, (metrics, recorded) = adapt(
        quadratic, THETA, QUADRATIC_TASK.support, 0.1, 3, monitor=lambda p: p[0]
    )
    assert recorded.shape == (4,)
    assert metrics["loss"].shape == (3,)
    np.testing.assert_allclose(recorded[0], THETA[0])
    adapted, _ = adapt(quadratic, THETA, QUADRATIC_TASK.support, 0.1, 3)
    np.testing.assert_allclose(recorded[3], adapted[0])


class TestInnerRates:
    PARAMS = {"a": jnp.ones(2), "b": {"c": jnp.ones(3), "d": jnp.ones(())}}

    @staticmethod
    def loss(params, batch):
        # The gradient is 1 everywhere: a step equals the rate.
        return sum(jnp.sum(p) for p in jax.tree.leaves(params)), {}

    def taken(self, inner_lr, num_steps=1):
        adapted, _ = adapt(self.loss, self.PARAMS, None, inner_lr, num_steps)
        return jax.tree.map(lambda p, q: np.round(np.asarray(p - q), 5), self.PARAMS, adapted)

    def test_pytree_prefix(self):
        moved = self.taken({"a": 0.5, "b": 0.25})
        np.testing.assert_allclose(moved["a"], 0.5)
        np.testing.assert_allclose(moved["b"]["c"], 0.25)
        np.testing.assert_allclose(moved["b"]["d"], 0.25)

    def test_rate_for_each_parameter(self):
        moved = self.taken({"a": jnp.array([0.1, 0.2]), "b": 0.0})
        np.testing.assert_allclose(moved["a"], [0.1, 0.2])

    def test_rate_for_each_step(self):
        rates = PerStep(jnp.array([0.1, 0.2, 0.3]))
        np.testing.assert_allclose(self.taken(rates, 3)["a"], 0.6)

    def test_rate_for_each_layer_and_step(self):
        rates = PerStep({"a": jnp.array([0.1, 0.2]), "b": jnp.array([0.0, 0.5])})
        moved = self.taken(rates, 2)
        np.testing.assert_allclose(moved["a"], 0.3, rtol=1e-6)
        np.testing.assert_allclose(moved["b"]["c"], 0.5)

    def test_learned_rate_has_its_derivative(self, x64):
        """d/dlr of L_q(theta - lr g) = -g' grad L_q(theta')."""
        g = np.asarray(A_SUPPORT) @ np.asarray(THETA - C_SUPPORT)
        adapted = np.asarray(THETA) - 0.1 * g
        expected = -g @ np.asarray(A_QUERY) @ (adapted - np.asarray(C_QUERY))
        fn = lambda lr: meta_loss(quadratic, THETA, QUADRATIC_TASK, lr)[0]
        np.testing.assert_allclose(jax.grad(fn)(0.1), expected, rtol=1e-5)

    @pytest.mark.parametrize(
        ("inner_lr", "num_steps", "message"),
        [
            ({"a": 0.1}, 1, "pytree prefix of params"),
            ({"a": jnp.ones(3), "b": 0.1}, 1, r"at \['a'\] expected shape \(\) or \(2,\)"),
            (
                PerStep(jnp.ones(3)),
                2,
                r"leading axis of num_inner_steps=2 .* received shape \(3,\)",
            ),
            (jnp.ones(2), 2, r"received an array of shape \(2,\).*maml_jax.PerStep\(array\)"),
            (PerStep(jnp.ones(())), 2, "leading axis of num_inner_steps=2"),
        ],
    )
    def test_mismatched_rates(self, inner_lr, num_steps, message):
        with pytest.raises(ValueError, match=message):
            self.taken(inner_lr, num_steps)

    def test_inner_update_refuses_rates_for_several_steps(self):
        with pytest.raises(ValueError, match="one step takes one rate"):
            inner_update(self.loss, self.PARAMS, None, PerStep(jnp.ones(3)))


class TestInnerOptimizers:
    @pytest.mark.parametrize(
        "optimizer",
        [
            optax.sgd(0.1),
            optax.sgd(0.1, momentum=0.9),
            optax.adam(0.1, eps_root=1e-8),
            optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1)),
            optax.masked(optax.sgd(0.1), {"w": True, "b": False}),
        ],
    )
    def test_equals_the_loop_in_optaxs_documentation(self, optimizer):
        params = {"w": jnp.arange(3.0), "b": jnp.ones(2)}
        loss = lambda p, _: (jnp.sum(jnp.sin(p["w"])) + jnp.sum(p["b"] ** 2), {})
        adapted, _ = adapt(loss, params, None, 1.0, 4, inner_optimizer=optimizer)
        state = optimizer.init(params)
        for _ in range(4):
            updates, state = optimizer.update(
                jax.grad(loss, has_aux=True)(params, 0)[0], state, params
            )
            params = optax.apply_updates(params, updates)
        assert_trees_close(adapted, params, 1e-6)


class TestMask:
    PARAMS = {"body": {"w": jnp.arange(3.0)}, "head": jnp.arange(2.0)}

    @staticmethod
    def loss(params, batch):
        return jnp.sum(params["body"]["w"] ** 2) * jnp.sum(params["head"] ** 2), {}

    @pytest.mark.parametrize(
        "mask",
        [
            {"body": False, "head": True},
            lambda p: {"body": {"w": False}, "head": True},
        ],
    )
    def test_only_the_head_adapts_and_all_have_a_meta_gradient(self, mask):
        adapted, _ = adapt(self.loss, self.PARAMS, None, 0.01, 2, mask=mask)
        np.testing.assert_array_equal(adapted["body"]["w"], self.PARAMS["body"]["w"])
        assert not np.allclose(adapted["head"], self.PARAMS["head"])
        fn = lambda p: meta_loss(self.loss, p, Task(0.0, 0.0), 0.01, 2, mask=mask)[0]
        grads = jax.grad(fn)(self.PARAMS)
        assert np.any(np.asarray(grads["body"]["w"]) != 0)

    def test_frozen_parameters_keep_their_second_order_terms(self, x64):
        """For scalars, h' = (1 - 2 lr b^2) h, with the head h and the body b."""
        params = {"body": {"w": jnp.array([1.5])}, "head": jnp.array([0.7])}
        mask, lr = {"body": False, "head": True}, 0.1
        b, h = 1.5, 0.7
        # L(b, h') = b^2 (1 - 2 lr b^2)^2 h^2
        expected = h**2 * (2 * b * (1 - 2 * lr * b**2) ** 2 - 8 * lr * b**3 * (1 - 2 * lr * b**2))
        for mode in ("reverse", "remat", "mixed"):
            fn = lambda p, mode=mode: meta_loss(
                self.loss, p, Task(0.0, 0.0), lr, mask=mask, mode=mode
            )[0]
            np.testing.assert_allclose(jax.grad(fn)(params)["body"]["w"][0], expected, rtol=1e-10)

    @pytest.mark.parametrize(
        ("mask", "message"),
        [
            ({"head": True}, "mask must be a pytree prefix"),
            ({"body": 1.0, "head": True}, "Python bools only"),
            (False, "selects no floating-point leaf"),
        ],
    )
    def test_mismatched_masks(self, mask, message):
        with pytest.raises(ValueError, match=message):
            adapt(self.loss, self.PARAMS, None, 0.1, mask=mask)

    def test_an_equinox_module_as_mask(self):
        """A callable module is a valid mask."""
        model = eqx.nn.MLP(1, 1, 4, 1, key=jax.random.key(0))
        params, static = eqx.partition(model, eqx.is_inexact_array)
        none = jax.tree.map(lambda _: False, params)
        mask = eqx.tree_at(lambda m: m.layers[-1].bias, none, True)
        loss = lambda p, x: (jnp.mean((jax.vmap(eqx.combine(p, static))(x) - 1) ** 2), {})
        adapted, _ = adapt(loss, params, jnp.ones((3, 1)), 0.1, mask=mask)
        np.testing.assert_array_equal(adapted.layers[0].weight, params.layers[0].weight)
        assert adapted.layers[-1].bias != params.layers[-1].bias

    def test_integer_leaves_pass_through(self):
        params = {"w": jnp.ones(2), "count": jnp.array(3)}
        loss = lambda p, _: (jnp.sum(p["w"] ** 2) * p["count"], {})
        adapted, _ = adapt(loss, params, None, 0.1, 2)
        assert adapted["count"] == 3
        assert adapted["w"][0] != 1.0


class TestWrongUse:
    @pytest.mark.parametrize(
        ("loss", "error", "message"),
        [
            (lambda p, b: (p, {}), ValueError, r"scalar loss .* received shape \(2,\)"),
            (lambda p, b: jnp.sum(p), TypeError, r"pair \(loss, metrics\)"),
            (lambda p, b: (jnp.sum(p), 3.0), TypeError, "metrics a dict"),
            (lambda p, b: (jnp.int32(1), {}), TypeError, "float loss"),
        ],
    )
    @pytest.mark.parametrize("mode", ["reverse", "mixed"])
    def test_losses(self, loss, error, message, mode):
        with pytest.raises(error, match=message):
            meta_loss(loss, THETA, Task(0.0, 0.0), 0.1, mode=mode)

    def test_outer_loss_is_checked_too(self):
        with pytest.raises(ValueError, match="outer_loss must return a scalar"):
            meta_loss(quadratic, THETA, QUADRATIC_TASK, 0.1, outer_loss=lambda p, b: (p, {}))

    def test_support_and_query_of_different_structure(self):
        task = Task((A_SUPPORT, C_SUPPORT), {"a": A_QUERY})
        with pytest.raises(ValueError, match="support and query must have the same structure"):
            meta_loss(quadratic, THETA, task, 0.1)
        other = lambda p, batch: (jnp.sum(p @ batch["a"]), {})
        meta_loss(quadratic, THETA, task, 0.1, outer_loss=other)  # valid: each has its loss

    def test_no_float_leaf(self):
        with pytest.raises(ValueError, match=r"no floating-point leaf.*int32"):
            adapt(quadratic, {"n": jnp.arange(3)}, None, 0.1)
        with pytest.raises(ValueError, match="no floating-point leaf"):
            adapt(quadratic, {}, None, 0.1)

    @pytest.mark.parametrize(
        ("steps", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError)]
    )
    def test_number_of_steps(self, steps, error):
        with pytest.raises(error, match="num_inner_steps must be"):
            adapt(quadratic, THETA, QUADRATIC_TASK.support, 0.1, steps)

    def test_unknown_mode(self):
        with pytest.raises(ValueError, match="mode must be one of 'reverse'"):
            adapt(quadratic, THETA, QUADRATIC_TASK.support, 0.1, mode="exact")

    def test_a_task_without_support(self):
        with pytest.raises(TypeError, match="attributes support and query"):
            meta_loss(quadratic, THETA, (1, 2), 0.1)


class TestOtherLibraries:
    """Parameters of Flax Linen, Flax NNX, Equinox and dictionaries give the same step."""

    X = jnp.linspace(-1, 1, 6)[:, None]
    Y = jnp.sin(3 * X)

    def check(self, loss, params):
        task = Task((self.X, self.Y), (self.X, -self.Y))
        fn = jax.jit(jax.value_and_grad(lambda p: meta_loss(loss, p, task, 0.1, 2)[0]))
        value, grads = fn(params)
        assert jax.tree.structure(grads) == jax.tree.structure(params)
        assert np.isfinite(value)
        assert any(np.any(np.asarray(g) != 0) for g in jax.tree.leaves(grads))

    def test_plain_dictionary(self):
        params = {"w": jnp.ones((1, 1)), "b": jnp.zeros(1)}
        self.check(lambda p, b: (jnp.mean((b[0] @ p["w"] + p["b"] - b[1]) ** 2), {}), params)

    def test_flax_linen(self):
        model = nn.Sequential([nn.Dense(8), nn.tanh, nn.Dense(1)])
        params = model.init(jax.random.key(0), self.X)
        self.check(lambda p, b: (jnp.mean((model.apply(p, b[0]) - b[1]) ** 2), {}), params)

    def test_flax_nnx(self):
        model = nnx.Sequential(
            nnx.Linear(1, 8, rngs=nnx.Rngs(0)), jnp.tanh, nnx.Linear(8, 1, rngs=nnx.Rngs(1))
        )
        graph, params, rest = nnx.split(model, nnx.Param, ...)

        def loss(p, batch):
            return jnp.mean((nnx.merge(graph, p, rest)(batch[0]) - batch[1]) ** 2), {}

        self.check(loss, params)

    def test_equinox(self):
        model = eqx.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
        params, static = eqx.partition(model, eqx.is_inexact_array)

        def loss(p, batch):
            return jnp.mean((jax.vmap(eqx.combine(p, static))(batch[0]) - batch[1]) ** 2), {}

        self.check(loss, params)
