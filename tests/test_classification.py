"""Episodes, losses, protocols and baselines of few-shot classification."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_trees_close
from jax.sharding import PartitionSpec

from benchmarks.programs import collectives
from maml_jax import Task, adapt, gradient_update, init, make_train_fn, meta_loss, task_mesh
from maml_jax.classification import (
    PROTOCOLS,
    ImageSet,
    LabelledImages,
    baselines,
    classification_problem,
    cross_entropy,
    draw_episodes,
    episode_sampler,
    query_loss,
    with_support_images,
)
from maml_jax.classification.episodes import distinct
from maml_jax.classification.image_sets import CLASS_SPECS, split_classes, turn
from maml_jax.classification.losses import query_outputs
from maml_jax.mesh import replicate
from maml_jax.networks import convolutional, fully_connected

CLASSES, EXAMPLES, SIDE = 12, 9, 4


def tagged_set(counts=None):
    """Makes images whose corner pixels encode class, example and rotation."""
    images = np.zeros((CLASSES, EXAMPLES, SIDE, SIDE, 1), np.uint8)
    images[:, :, 0, 0, 0] = 1 + np.arange(CLASSES)[:, None]
    images[:, :, 0, 1, 0] = 1 + np.arange(EXAMPLES)[None]
    counts = np.full(CLASSES, EXAMPLES) if counts is None else np.asarray(counts)
    return ImageSet(jnp.asarray(images), jnp.asarray(counts, jnp.int32))


def tags(images):
    """Decodes class, example and quarter turns of each image [n, 4, 4, 1] of a tagged set."""
    result = []
    for image in np.rint(np.asarray(images[..., 0]) * 255).astype(int):
        turns = [q for q in range(4) if np.rot90(image, -q)[0, 0] and np.rot90(image, -q)[0, 1]]
        assert len(turns) == 1
        upright = np.rot90(image, -turns[0])
        result.append((upright[0, 0] - 1, upright[0, 1] - 1, turns[0]))
    return np.array(result)


@pytest.fixture(scope="module")
def episodes():
    """Tags of 400 episodes, 3-way 2-shot with 3 queries: classes, examples, turns [400, n]."""
    sampler = episode_sampler(3, 2, 3, "augment")
    draw = jax.jit(functools.partial(draw_episodes, sampler), static_argnums=2)
    tasks = draw(jax.random.key(0), tagged_set(), 400)
    support, query = (
        np.stack([tags(images) for images in np.asarray(batch.images)]) for batch in tasks
    )
    return tasks, support, query


def test_an_episode_has_n_distinct_classes_in_order_of_labels(episodes):
    tasks, support, query = episodes
    assert tasks.support.images.shape == (400, 6, SIDE, SIDE, 1)
    assert tasks.support.images.dtype == jnp.float32
    np.testing.assert_array_equal(tasks.support.labels[0], [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(tasks.query.labels[0], [0, 0, 0, 1, 1, 1, 2, 2, 2])
    for s, q in zip(support, query, strict=True):
        classes = s[::2, 0]
        assert len(set(classes)) == 3
        np.testing.assert_array_equal(s[:, 0], np.repeat(classes, 2))
        np.testing.assert_array_equal(q[:, 0], np.repeat(classes, 3))


def test_support_and_query_share_no_drawing(episodes):
    _, support, query = episodes
    for s, q in zip(support, query, strict=True):
        drawings = [tuple(row) for row in np.concatenate([s, q])[:, :2]]
        assert len(set(drawings)) == len(drawings)


def test_a_class_is_rotated_as_a_whole_and_by_all_multiples(episodes):
    _, support, query = episodes
    for s, q in zip(support, query, strict=True):
        np.testing.assert_array_equal(q[::3, 2], s[::2, 2])
        assert all(len(set(s[2 * i : 2 * i + 2, 2])) == 1 for i in range(3))
    shares = np.bincount(support[:, ::2, 2].ravel(), minlength=4) / (400 * 3)
    assert np.all(np.abs(shares - 0.25) < 0.06)  # 4 standard deviations for 1,200 draws


def test_classes_examples_and_their_order_are_uniform(episodes):
    _, support, query = episodes
    for position in range(3):
        counts = np.bincount(support[:, 2 * position, 0], minlength=CLASSES)
        expected = 400 / CLASSES
        chi_square = np.sum((counts - expected) ** 2 / expected)
        assert chi_square < 31.3  # 99.9 % of chi-square with 11 degrees of freedom
    examples = np.bincount(query[..., 1].ravel(), minlength=EXAMPLES)
    expected = query[..., 1].size / EXAMPLES
    assert np.sum((examples - expected) ** 2 / expected) < 26.1  # the same with 8


def test_distinct_draws_every_ordered_choice_equally_often():
    draws = jax.jit(jax.vmap(lambda k: distinct(k, 4, 2)))(
        jax.random.split(jax.random.key(0), 6000)
    )
    codes, counts = np.unique(np.asarray(draws) @ [10, 1], return_counts=True)
    assert len(codes) == 12
    assert np.sum((counts - 500) ** 2 / 500) < 31.3


def test_distinct_draws_all_elements_and_more_than_it_unrolls():
    for count in (5, 40):
        drawn = jax.jit(lambda k, n=count: distinct(k, n, n))(jax.random.key(1))
        np.testing.assert_array_equal(np.sort(drawn), np.arange(count))


def test_same_key_same_episode_other_key_other_episode():
    sample = jax.jit(functools.partial(episode_sampler(3, 2, 3), None))
    one, again = (sample(jax.random.key(5), tagged_set()) for _ in range(2))
    assert_trees_close(one, again, 0)
    other = sample(jax.random.key(6), tagged_set())
    assert np.any(np.asarray(one.support.images) != np.asarray(other.support.images))


def test_padding_of_small_classes_is_never_drawn():
    counts = np.where(np.arange(CLASSES) % 2, 5, EXAMPLES)
    sampler = episode_sampler(3, 2, 3)
    draw = jax.jit(functools.partial(draw_episodes, sampler), static_argnums=2)
    tasks = draw(jax.random.key(0), tagged_set(counts), 100)
    for batch in tasks:
        for images in np.asarray(batch.images):
            result = tags(images)
            assert np.all(result[:, 1] < counts[result[:, 0]])


def test_small_classes_are_refused_if_their_counts_are_known():
    counts = np.where(np.arange(CLASSES) == 3, 4, EXAMPLES)
    with pytest.raises(ValueError, match=r"need 5 examples of a class .* class 3 of the set has 4"):
        draw_episodes(episode_sampler(3, 2, 3), jax.random.key(0), tagged_set(counts), 2)


def test_rotated_classes_are_separate_classes():
    sampler = episode_sampler(12, 1, 1, "classes")
    draw = jax.jit(functools.partial(draw_episodes, sampler), static_argnums=2)
    support = draw(jax.random.key(0), tagged_set(), 60).support
    repeated = 0
    for images in np.asarray(support.images):
        result = tags(images)
        assert len({(c, t) for c, _, t in result}) == 12
        repeated += len(set(result[:, 0])) < 12
    assert repeated > 0  # the same character twice, in different rotations


def test_turn_equals_numpys_rot90():
    images = np.arange(2 * 3 * 3).reshape(2, 3, 3, 1)
    for quarters in range(4):
        expected = np.rot90(images, quarters, axes=(1, 2))
        np.testing.assert_array_equal(turn(jnp.asarray(images), quarters), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: episode_sampler(0, 1, 1), "num_ways must be 1 or more"),
        (lambda: episode_sampler(5, 1, 0), "num_queries must be 1 or more"),
        (lambda: episode_sampler(5, 1, 1, "mirror"), "'augment', 'classes'; received 'mirror'"),
        (lambda: episode_sampler(13, 1, 1)(None, jax.random.key(0), tagged_set()), "set has 12"),
        (lambda: episode_sampler(2, 5, 5)(None, jax.random.key(0), tagged_set()), "at most 9"),
        (
            lambda: episode_sampler(2, 1, 1)(
                None, jax.random.key(0), ImageSet(jnp.zeros((3, 4)), jnp.zeros(3))
            ),
            r"received \(3, 4\) and \(3,\)",
        ),
        (
            lambda: episode_sampler(2, 1, 1, "augment")(
                None,
                jax.random.key(0),
                ImageSet(jnp.zeros((3, 4, 5, 6, 1), jnp.uint8), jnp.full(3, 4)),
            ),
            "only square images can be rotated; received 5x6",
        ),
    ],
)
def test_impossible_episodes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_cross_entropy_by_hand():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]))
    batch = LabelledImages(logits, jnp.array([0, 1]))
    loss, metrics = cross_entropy(lambda params, images: images)(None, batch)
    np.testing.assert_allclose(loss, -(np.log(0.5) + np.log(0.2)) / 2, rtol=1e-6)
    assert metrics["accuracy"] == 0.5


def test_cross_entropy_refuses_mismatched_labels():
    with pytest.raises(ValueError, match=r"received \(2, 3\) and \(3,\)"):
        cross_entropy(lambda params, images: images)(
            None, LabelledImages(jnp.zeros((2, 3)), jnp.zeros(3, jnp.int32))
        )


@pytest.fixture(scope="module")
def network():
    return convolutional((8, 8, 1), 3, num_filters=4, num_layers=2)


@pytest.fixture(scope="module")
def params(network):
    return network.init(jax.random.key(0))


@pytest.fixture(scope="module")
def task():
    """Draws a task of random images, 3-way 2-shot with 4 queries."""
    keys = jax.random.split(jax.random.key(1), 2)
    batches = [
        LabelledImages(jax.random.uniform(k, (3 * n, 8, 8, 1)), jnp.repeat(jnp.arange(3), n))
        for k, n in zip(keys, (2, 4), strict=True)
    ]
    return Task(*batches)


def test_protocols_differ_in_the_images_whose_statistics_they_use(network, params, task):
    """Changing a query image changes other answers in the transductive protocol only."""
    changed = task.query.images.at[0].add(0.5)

    @functools.partial(jax.jit, static_argnums=0)
    def others(protocol, images):
        return query_outputs(network.apply, protocol, params, task.support.images, images)[1:]

    for protocol in PROTOCOLS:
        moved = float(
            jnp.abs(others(protocol, changed) - others(protocol, task.query.images)).max()
        )
        assert (moved > 1e-3) == (protocol == "transductive"), protocol


def test_the_query_loss_follows_its_protocol(network, params, task):
    batch = with_support_images(task).query
    result = {
        protocol: float(jax.jit(query_loss(network.apply, protocol))(params, batch)[0])
        for protocol in PROTOCOLS
    }
    plain = float(cross_entropy(network.apply)(params, task.query)[0])
    np.testing.assert_allclose(result["transductive"], plain, rtol=1e-5)
    assert len({round(value, 4) for value in result.values()}) == 3
    with pytest.raises(ValueError, match="received 'both'"):
        query_loss(network.apply, "both")


def test_norm_is_not_adapted_but_gets_its_meta_gradient(network, params, task):
    loss = cross_entropy(network.apply)
    adapted, _ = adapt(loss, params, task.support, 0.5, 1, mask=network.mask)
    assert_trees_close(adapted["Norm_0"], params["Norm_0"], 0)
    assert np.any(np.asarray(adapted["Conv_0"]["kernel"] != params["Conv_0"]["kernel"]))
    outer = lambda p: meta_loss(loss, p, task, 0.5, mask=network.mask)[0]
    grads = jax.jit(jax.grad(outer))(params)
    assert np.any(np.asarray(grads["Norm_0"]["offset"]) != 0)


def test_adapt_norm_adapts_it(task):
    network = convolutional((8, 8, 1), 3, num_filters=4, num_layers=1, adapt_norm=True)
    params = network.init(jax.random.key(0))
    adapted, _ = adapt(
        cross_entropy(network.apply), params, task.support, 0.5, 1, mask=network.mask
    )
    assert np.any(np.asarray(adapted["Norm_0"]["offset"]) != 0)


def test_matching_logits_by_hand():
    """The images are the features; the query resembles the first support image only."""
    apply = lambda params, images, features: images.reshape(len(images), -1)
    support = LabelledImages(jnp.eye(2).reshape(2, 2, 1, 1), jnp.array([1, 0]))
    query = 3.0 * jnp.array([[1.0, 0.0]]).reshape(1, 2, 1, 1)
    logits = baselines.matching_logits(apply, 2, "transductive", None, support, query)
    attention = np.exp([1.0, 0.0]) / np.sum(np.exp([1.0, 0.0]))
    np.testing.assert_allclose(np.exp(logits[0]), attention[::-1], rtol=1e-5)


def test_nearest_neighbour_by_hand():
    apply = lambda params, images, features: images.reshape(len(images), -1)
    as_images = lambda rows: jnp.array(rows).reshape(len(rows), 2, 1, 1)
    support = LabelledImages(as_images([[1.0, 0.0], [0.0, 5.0]]), jnp.array([0, 1]))
    query = LabelledImages(as_images([[2.0, 1.0], [1.0, 2.0], [3.0, 1.0]]), jnp.array([0, 1, 1]))
    result = baselines.nearest_neighbour_accuracy(apply, "transductive", None, Task(support, query))
    np.testing.assert_allclose(result, 2 / 3)


def test_class_batches_label_turned_classes():
    sample = jax.jit(functools.partial(baselines.class_batches(64, "classes"), None))
    batch = sample(jax.random.key(0), tagged_set()).query
    result = tags(batch.images)
    np.testing.assert_array_equal(np.asarray(batch.labels), 4 * result[:, 0] + result[:, 2])


def test_new_head_keeps_the_trunk_and_prefers_no_class(params):
    network = convolutional((8, 8, 1), 7, num_filters=4, num_layers=2)
    merged = baselines.with_new_head(params, 7)
    assert_trees_close(merged["Conv_1"], params["Conv_1"], 0)
    images = jax.random.uniform(jax.random.key(3), (5, 8, 8, 1))
    np.testing.assert_array_equal(network.apply(merged, images), np.zeros((5, 7)))


def test_classes_spread_over_devices_give_the_same_episodes():
    """13 classes on 4 devices: the last device holds one class and padding."""
    uneven = jax.tree.map(lambda x: jnp.concatenate([x, x[:1]]), tagged_set())
    network = fully_connected((SIDE, SIDE, 1), 2, (8,))
    optimizer = optax.sgd(0.1)
    losses = {}
    for axis in (None, "tasks"):
        problem = classification_problem(network, 2, 1, 1, "augment", axis)
        train = make_train_fn(
            problem.sample,
            gradient_update(
                functools.partial(meta_loss, problem.inner_loss, inner_lr=0.1, mask=network.mask),
                optimizer,
            ),
            num_tasks=8,
            num_meta_steps=3,
            mesh=task_mesh(8, jax.devices()[:4]),
            data_specs=(PartitionSpec() if axis is None else CLASS_SPECS,),
        )
        image_set = uneven if axis is None else split_classes(uneven, 4)
        state = init(network.init(jax.random.key(0)), optimizer, 0)
        if axis is not None:
            result = collectives(jax.jit(train).lower(state, image_set).compile().as_text())
            used = {name: count for name, count in result.items() if count}
            assert used == {"all-reduce": 1, "all-gather": 1, "reduce-scatter": 1}
        _, metrics = train(state, image_set)
        losses[axis] = np.asarray(metrics["loss"])
    np.testing.assert_array_equal(losses[None], losses["tasks"])


def test_training_moves_nothing_between_host_and_device():
    """The compiled step draws episodes from images on the device."""
    network = fully_connected((SIDE, SIDE, 1), 2, (8,))
    problem = classification_problem(network, 2, 1, 1, "augment")
    optimizer = optax.adam(1e-3)
    task_loss = functools.partial(meta_loss, problem.inner_loss, inner_lr=0.1, mask=network.mask)
    train = make_train_fn(
        problem.sample, gradient_update(task_loss, optimizer), num_tasks=8, num_meta_steps=2
    )
    state, _ = train(init(network.init(jax.random.key(0)), optimizer, 0), tagged_set())
    images = replicate(tagged_set(), task_mesh(8))
    with jax.transfer_guard("disallow"):
        state, metrics = train(state, images)
    assert state.step == 4
    assert np.all(np.isfinite(metrics["loss"]))
