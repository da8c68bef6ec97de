"""Invalid arguments are refused at the call, with errors that name the expected values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_trees_close

from maml_jax import (
    Task,
    adapt,
    adaptation_curve,
    gradient_update,
    init,
    inner_update,
    make_evaluate_fn,
    make_train_fn,
    meta_loss,
    meta_step,
    over_members,
)
from maml_jax.classification import (
    CLASS_SPECS,
    ImageSet,
    classification_problem,
    cross_entropy,
    draw_episodes,
    episode_sampler,
    split_classes,
)
from maml_jax.classification.baselines import class_batches
from maml_jax.classification.losses import LabelledImages, loss_and_accuracy, one_hot
from maml_jax.networks import convolutional, fully_connected, mlp
from maml_jax.regression import sinusoid_problem

LOGITS = jnp.array([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])


def linear(p, images, **options):
    return images.reshape(images.shape[0], -1) @ p


class TestLabels:
    @pytest.mark.parametrize("bad", [[10, 11], [-1, 0], [0, 3], [2**31 - 1, 0]])
    def test_outside_the_ways(self, bad):
        labels = jnp.array(bad, jnp.int32)
        for value in (labels, np.asarray(labels), np.asarray(bad, np.int64)):
            with pytest.raises(ValueError, match=r"from 0 to 2 for 3 ways; received labels from"):
                loss_and_accuracy(LOGITS, value)
        loss, metrics = jax.jit(loss_and_accuracy)(LOGITS, labels)
        assert np.isnan(loss)
        assert np.isnan(metrics["accuracy"])

    @pytest.mark.parametrize("dtype", [np.float32, np.bool_, np.complex64])
    def test_that_are_not_integers(self, dtype):
        for fn in (loss_and_accuracy, jax.jit(loss_and_accuracy)):
            with pytest.raises(TypeError, match=r"labels must be integers from 0 to 2.*received"):
                fn(LOGITS, np.array([0, 1], dtype))

    def test_bad_support_labels_give_nan(self):
        images = jnp.ones((2, 2, 2, 1))
        good = LabelledImages(images, jnp.array([0, 1]))
        bad = LabelledImages(images, jnp.array([0, 7]))
        loss = cross_entropy(linear)
        theta = jnp.ones((4, 3))
        one = jax.jit(lambda support: meta_loss(loss, theta, Task(support, good), 0.1)[0])
        assert np.isfinite(one(good))
        assert np.isnan(one(bad))
        gradient = jax.jit(jax.grad(lambda p, batch: loss(p, batch)[0]))
        assert np.isnan(gradient(theta, bad)).all()

    def test_valid_labels_of_any_integer_type(self):
        expected = -jnp.mean(jax.nn.log_softmax(LOGITS)[jnp.arange(2), jnp.array([0, 2])])
        for dtype in (np.int8, np.uint8, np.int32):
            loss, metrics = loss_and_accuracy(LOGITS, np.array([0, 2], dtype))
            np.testing.assert_allclose(loss, expected, rtol=1e-6)
            assert metrics["accuracy"] == 0.5
        np.testing.assert_array_equal(one_hot(np.array([1]), 2), [[0.0, 1.0]])


def image_set(counts=(6, 6, 6), dtype=np.uint8, examples=6):
    images = np.full((len(counts), examples, 4, 4, 1), 1, dtype)
    return ImageSet(images, np.array(counts, np.int32))


class TestImages:
    @pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.int64, np.bool_, np.int8])
    def test_of_another_type(self, dtype):
        for sampler in (episode_sampler(2, 1, 2), class_batches(3)):
            for draw in (sampler, jax.jit(sampler)):
                with pytest.raises(TypeError, match=r"must be uint8.*received .*astype\(np.uint8"):
                    draw(None, jax.random.key(0), image_set(dtype=dtype))

    def test_that_are_not_scaled(self):
        for network in (fully_connected((4, 4, 1), 2, (3,)), convolutional((8, 8, 1), 2)):
            shapes = jax.eval_shape(network.init, jax.random.key(0))
            side = 4 if "Dense_0" in shapes else 8
            for dtype in (jnp.uint8, jnp.int32, jnp.bool_):
                images = jax.ShapeDtypeStruct((2, side, side, 1), dtype)
                with pytest.raises(TypeError, match=r"must be floating point.*Divide bytes by 255"):
                    jax.eval_shape(network.apply, shapes, images)

    def train(self, num_shots=1, num_queries=5):
        network = fully_connected((4, 4, 1), 2, (3,), norm="none")
        problem = classification_problem(network, 2, num_shots, num_queries)
        task_loss = functools.partial(meta_loss, problem.inner_loss, inner_lr=0.1)
        train = make_train_fn(
            problem.sample,
            gradient_update(task_loss, optax.sgd(0.1)),
            num_tasks=2,
            num_meta_steps=1,
        )
        return train, lambda: init(network.init(jax.random.key(0)), optax.sgd(0.1), 0)

    def test_too_few_of_a_class_are_refused_at_the_call(self):
        train, start = self.train()
        with pytest.raises(ValueError, match=r"need 6 examples of a class.*class 0 .* has 3\."):
            train(start(), image_set((3, 6, 6)))
        on_device = jax.tree.map(jnp.asarray, image_set((6, 6, 4)))
        with pytest.raises(ValueError, match=r"class 2 of the set has 4\."):
            train(start(), on_device)
        with pytest.raises(
            ValueError, match=r"class 1 .* has 9 examples by counts, and 6 by the shape of images"
        ):
            train(start(), image_set((6, 9, 6)))
        good = image_set()
        state, metrics = train(start(), good)
        state, metrics = train(state, good)
        assert np.isfinite(metrics["loss"]).all()
        with pytest.raises(
            ValueError, match=r"class 0 of the set has 3\."
        ):  # new data is checked again
            train(state, image_set((3, 6, 6)))

    def test_too_few_among_several_seeds_and_on_spread_devices(self):
        train, start = self.train()
        both = lambda tree: jax.tree.map(lambda x: jnp.stack([jnp.asarray(x)] * 2), tree)
        with pytest.raises(ValueError, match=r"class 0 of the set has 3\."):
            over_members(train)(both(start()), image_set((3, 6, 6)))
        sampler = episode_sampler(2, 1, 5, class_axis="tasks")
        network = fully_connected((4, 4, 1), 2, (3,), norm="none")
        loss = functools.partial(meta_loss, cross_entropy(network.apply), inner_lr=0.1)
        spread = make_train_fn(
            sampler,
            gradient_update(loss, optax.sgd(0.1)),
            num_tasks=2,
            num_meta_steps=1,
            data_specs=(CLASS_SPECS,),
        )
        with pytest.raises(ValueError, match=r"class 1 of the set has 2\."):
            spread(start(), split_classes(image_set((6, 2, 6)), 2))
        axis = lambda params, key, x: DRAW(
            params, jax.random.fold_in(key, jax.lax.axis_index("tasks"))
        )
        talks = make_train_fn(
            axis, gradient_update(TASK_LOSS, optax.sgd(0.1)), num_tasks=2, num_meta_steps=1
        )
        assert np.isfinite(talks(init(THETA, optax.sgd(0.1), 0), jnp.ones(1))[1]["loss"]).all()

    def test_classes_without_images_give_nan(self):
        sampler = class_batches(8)
        with pytest.raises(ValueError, match=r"need 1 examples of a class.*class 1 .* has 0\."):
            sampler(None, jax.random.key(0), image_set((6, 0, 6)))
        task = jax.jit(sampler)(None, jax.random.key(0), image_set((6, 0, 6)))
        of_empty = np.asarray(task.query.labels) == 1
        assert of_empty.any()
        np.testing.assert_array_equal(np.isnan(task.query.images).all((1, 2, 3)), of_empty)

    def test_too_few_under_jit_give_nan(self):
        sampler = episode_sampler(2, 1, 5)
        key = jax.random.key(0)
        task = jax.jit(sampler)(None, key, image_set((3, 3, 3)))
        assert np.isnan(task.support.images).all()
        assert np.isfinite(jax.jit(sampler)(None, key, image_set()).query.images).all()
        with pytest.raises(ValueError, match=r"class 0 of the set has 3"):
            draw_episodes(sampler, key, image_set((3, 3, 3)), 2)


LOSS = lambda p, batch: (jnp.mean((batch[0] @ p["w"] - batch[1]) ** 2), {})
THETA = {"w": jnp.ones(2)}
BATCH = (jnp.ones((3, 2)), jnp.zeros(3))


def step(theta, tasks, task_loss, optimizer=None):
    optimizer = optimizer or optax.sgd(0.1)
    return meta_step(task_loss, theta, optimizer.init(theta), tasks, optimizer)


class TestParameters:
    def test_complex_leaves(self):
        params = {"w": jnp.ones(2), "phase": jnp.ones(2, jnp.complex64)}
        for mask in (None, True, {"w": True, "phase": True}, lambda p: {"w": True, "phase": True}):
            for call in (inner_update, adapt):
                with pytest.raises(TypeError, match=r"complex: \['phase'\].*mask="):
                    call(LOSS, params, BATCH, 0.1, mask=mask)
        adapted, _ = adapt(LOSS, params, BATCH, 0.1, mask={"w": True, "phase": False})
        assert_trees_close(adapted["phase"], params["phase"], 0)

    def test_metrics_that_are_not_real(self):
        one = jax.tree.map(lambda x: x[None], Task(BATCH, BATCH))
        for value, expected in (
            (jnp.ones(2) * 1j, r"real numbers; received .*shape.*'odd'"),
            ("text", r"arrays or numbers; received str.*'odd'"),
            (jax.random.key(0), r"real numbers; received .*'odd'"),
        ):
            loss = lambda p, b, value=value: (LOSS(p, b)[0], {"odd": value})
            task_loss = functools.partial(meta_loss, loss, inner_lr=0.1)
            with pytest.raises(TypeError, match=expected):
                step(THETA, one, task_loss)


class TestBatches:
    EMPTY = (jnp.ones((0, 2)), jnp.zeros(0))

    def test_without_examples(self):
        for call in (inner_update, adapt):
            with pytest.raises(ValueError, match=r"batch must have examples; .*\(0, 2\)"):
                call(LOSS, THETA, self.EMPTY, 0.1)
        with pytest.raises(ValueError, match=r"query must have examples"):
            meta_loss(LOSS, THETA, Task(BATCH, self.EMPTY), 0.1)
        evaluate = make_evaluate_fn(functools.partial(adaptation_curve, LOSS, num_inner_steps=1))
        tasks = jax.tree.map(lambda x: x[None], Task(BATCH, self.EMPTY))
        with pytest.raises(ValueError, match=r"query must have examples"):
            evaluate(THETA, tasks, 0.1)
        adapt(LOSS, THETA, self.EMPTY, 0.1, num_inner_steps=0)  # no steps need no examples
        no_context = lambda p, batch: LOSS(p, batch[:2])
        adapt(no_context, THETA, (*BATCH, jnp.ones((3, 0))), 0.1)  # empty optional features

    def test_no_tasks(self):
        none = jax.tree.map(lambda x: x[None][:0], Task(BATCH, BATCH))
        with pytest.raises(ValueError, match=r"1 task or more; received a leading axis of 0"):
            step(THETA, none, TASK_LOSS)
        with pytest.raises(ValueError, match=r"1 task or more"):
            make_evaluate_fn(functools.partial(adaptation_curve, LOSS, num_inner_steps=1))(
                THETA, none, 0.1
            )

    def test_custom_task_types_may_have_another_query(self):
        from typing import NamedTuple

        class Forecast(NamedTuple):
            support: tuple
            query: dict
            name: jax.Array

        tasks = Forecast(
            jax.tree.map(lambda x: x[None], BATCH), {"limit": jnp.ones((1,))}, jnp.zeros((1,))
        )
        judge = lambda p, query: (jnp.sum(p["w"] ** 2) * query["limit"], {})
        loss = functools.partial(meta_loss, LOSS, inner_lr=0.1, outer_loss=judge)
        theta, *_ = step(THETA, tasks, loss)
        result = make_evaluate_fn(
            functools.partial(adaptation_curve, LOSS, num_inner_steps=1, outer_loss=judge)
        )(theta, tasks, 0.1)
        assert result.mean["loss"].shape == (2,)
        with pytest.raises(ValueError, match=r"same structure when one loss is used.*outer_loss="):
            step(theta, tasks, TASK_LOSS)
        with pytest.raises(TypeError, match="attributes support and query"):
            step(theta, {"support": jnp.ones(1)}, loss)


TASK_LOSS = functools.partial(meta_loss, LOSS, inner_lr=0.1)
DRAW = lambda params, key: Task(BATCH, BATCH)


class TestCounts:
    @pytest.mark.parametrize("bad", [2.0, "2", True, jnp.array(2), None])
    def test_that_are_not_integers(self, bad):
        for name in ("num_tasks", "num_meta_steps"):
            counts = {"num_tasks": 2, "num_meta_steps": 2, name: bad}
            with pytest.raises(TypeError, match=rf"{name} must be a Python int.*received"):
                make_train_fn(DRAW, gradient_update(TASK_LOSS, optax.sgd(0.1)), **counts)
        for position, name in enumerate(("num_ways", "num_shots", "num_queries")):
            sizes = [2, 2, 2]
            sizes[position] = bad
            with pytest.raises(TypeError, match=rf"{name} must be a Python int"):
                episode_sampler(*sizes)

    @pytest.mark.parametrize("bad", [1.5, "3", None])
    def test_of_problems_and_networks(self, bad):
        network, key = mlp(1, 1, (3,)), jax.random.key(0)
        for make in (
            lambda: mlp(1, 1, (bad,)),
            lambda: sinusoid_problem(network, bad, 5),
            lambda: sinusoid_problem(network, 5, bad),
            lambda: class_batches(bad),
            lambda: draw_episodes(episode_sampler(2, 1, 1), key, image_set(), bad),
        ):
            with pytest.raises(TypeError, match="must be a Python int"):
                make()

    def test_steps_per_draw(self):
        update = gradient_update(TASK_LOSS, optax.sgd(0.1))
        make = functools.partial(make_train_fn, DRAW, update, num_tasks=2, num_meta_steps=2)
        with pytest.raises(ValueError, match=r"steps_per_draw must be 1 or more; received 0"):
            make(steps_per_draw=0)
        with pytest.raises(TypeError, match=r"steps_per_draw must be a Python int"):
            make(steps_per_draw=1.5)


class TestOptimizers:
    def test_a_state_of_another_meta_optimizer(self):
        train = make_train_fn(
            DRAW, gradient_update(TASK_LOSS, optax.adam(0.1)), num_tasks=2, num_meta_steps=1
        )
        for other in (optax.sgd(0.1), optax.sgd(0.1, momentum=0.9), optax.rmsprop(0.1)):
            with pytest.raises(
                ValueError, match=r"state.update_state must have the .*maml_jax.init"
            ):
                train(init(THETA, other, 0))
        other_params = init({"w": jnp.ones(3)}, optax.adam(0.1), 0)
        with pytest.raises(
            ValueError, match=r"update_state.*must have shape \(2,\); received \(3,\)"
        ):
            train(init(THETA, optax.adam(0.1), 0)._replace(update_state=other_params[1]))

    def test_inner_optimizers_that_need_the_loss(self):
        """A Polyak step, (f - f*) / |g|^2, and its meta-gradient in every exact mode."""
        polyak = optax.polyak_sgd(max_learning_rate=10.0)
        task = Task(BATCH, BATCH)
        adapted, _ = adapt(LOSS, THETA, BATCH, 1.0, inner_optimizer=polyak)
        (value, _), slope = jax.value_and_grad(LOSS, has_aux=True)(THETA, BATCH)
        square = jnp.sum(slope["w"] ** 2)
        np.testing.assert_allclose(
            adapted["w"], THETA["w"] - value / square * slope["w"], rtol=1e-5
        )

        def outer(theta, mode):
            loss = functools.partial(meta_loss, LOSS, inner_lr=1.0, num_inner_steps=2, mode=mode)
            return loss(theta, task, inner_optimizer=polyak)[0]

        expected = jax.grad(outer)({"w": jnp.array([1.0, 0.3])}, "reverse")
        for mode in ("remat", "mixed"):
            assert_trees_close(jax.grad(outer)({"w": jnp.array([1.0, 0.3])}, mode), expected, 1e-5)

    def test_inside_that_need_more(self):
        with pytest.raises(TypeError, match=r"receives value=.*requires further.*value_fn"):
            adapt(LOSS, THETA, BATCH, 1.0, inner_optimizer=optax.lbfgs())
        with pytest.raises(TypeError, match=r"meta_optimizer receives value=.*value_fn"):
            step(
                THETA, jax.tree.map(lambda x: x[None], Task(BATCH, BATCH)), TASK_LOSS, optax.lbfgs()
            )

    def test_meta_optimizers_that_need_the_loss(self):
        plateau = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau())
        tasks = jax.tree.map(lambda x: x[None], Task(BATCH, BATCH))
        _, state, metrics = step(THETA, tasks, TASK_LOSS, plateau)
        np.testing.assert_allclose(state[1].best_value, metrics["loss"], rtol=1e-6)

    def test_inner_optimizers_with_other_arguments(self):
        def update(updates, state, params=None, *, temperature=None):
            return jax.tree.map(jnp.negative, updates), state

        optimizer = optax.GradientTransformationExtraArgs(lambda p: (), update)
        adapted, _ = adapt(LOSS, THETA, BATCH, 0.1, inner_optimizer=optimizer)
        assert_trees_close(adapted, adapt(LOSS, THETA, BATCH, 0.1)[0], 1e-6)

    def test_the_sign_of_inner_updates(self):
        clip = optax.clip_by_global_norm(0.1)
        before = LOSS(THETA, BATCH)[0]
        uphill, _ = adapt(LOSS, THETA, BATCH, 1.0, inner_optimizer=clip)
        downhill, _ = adapt(
            LOSS, THETA, BATCH, 1.0, inner_optimizer=optax.chain(clip, optax.sgd(1.0))
        )
        assert LOSS(downhill, BATCH)[0] < before < LOSS(uphill, BATCH)[0]


def test_evaluation_accepts_a_batch_for_each_step():
    """Evaluation with `batch_per_step` equals a loop."""
    batches = (jnp.arange(12.0).reshape(2, 3, 2), jnp.ones((2, 3)))
    tasks = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), Task(batches, BATCH))
    curves = make_evaluate_fn(
        functools.partial(adaptation_curve, LOSS, num_inner_steps=2, batch_per_step=True)
    )(THETA, tasks, 0.01)
    for t in range(2):
        theta, expected = THETA, []
        for step in range(3):
            expected.append(LOSS(theta, jax.tree.map(lambda x, t=t: x[t], tasks.query))[0])
            if step < 2:
                batch = jax.tree.map(lambda x, t=t, s=step: x[t, s], tasks.support)
                theta, _ = inner_update(LOSS, theta, batch, 0.01)
        np.testing.assert_allclose(curves.per_task["loss"][t], expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"leading axis of num_inner_steps=3"):
        make_evaluate_fn(
            functools.partial(adaptation_curve, LOSS, num_inner_steps=3, batch_per_step=True)
        )(THETA, tasks, 0.01)
