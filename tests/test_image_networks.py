"""Image networks: shapes, parameter counts, lowerings, normalisation, precision."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_close

from maml_jax import Task, meta_loss
from maml_jax.classification import LabelledImages, cross_entropy
from maml_jax.kernels import convolution_products
from maml_jax.kernels.convolutions import LOWERINGS, convolution
from maml_jax.networks import convolutional, fully_connected, num_parameters
from maml_jax.networks.image import max_pool
from maml_jax.networks.normalization import NORMS, BatchNorm


def count(network):
    return num_parameters(jax.eval_shape(network.init, jax.random.key(0)))


def test_parameters_of_mini_imagenet_are_those_of_the_original():
    network = convolutional((84, 84, 3), 5, num_filters=32, pooling="max")
    # convolutions with bias: 9*3*32+32 + 3*(9*32*32+32); head: 800*5+5; offsets: 4*32
    assert count(network) == 896 + 3 * 9248 + 4005 + 128 == 32_773


def test_parameters_of_omniglot():
    # 9*64+64 + 3*(9*64*64+64); head: 64*5+5; offsets: 4*64
    assert count(convolutional((28, 28, 1), 5)) == 640 + 3 * 36928 + 325 + 256
    sizes = (784, 256, 128, 64, 64, 5)
    dense = sum(a * b + b for a, b in itertools.pairwise(sizes))
    assert count(fully_connected((28, 28, 1), 5)) == dense + 256 + 128 + 64 + 64


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("side", "strides"), [(8, (2, 2)), (7, (2, 2)), (5, (1, 1)), (6, (2, 1))])
@pytest.mark.accelerator
def test_lowerings_give_one_convolution(side, strides, padding, full_precision):
    keys = jax.random.split(jax.random.key(0), 2)
    images = jax.random.normal(keys[0], (3, side, side + 1, 2))
    kernel = jax.random.normal(keys[1], (3, 3, 2, 4))
    numbers = ("NHWC", "HWIO", "NHWC")
    outputs = [
        convolution(name)(images, kernel, strides, padding, dimension_numbers=numbers)
        for name in LOWERINGS
    ]
    for output in outputs[:-1]:
        assert_trees_close(output, outputs[-1], 1e-5)


def test_other_convolutions_are_left_to_jax():
    images, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 2, 4))
    result = convolution("patches")(
        images,
        kernel,
        (1, 1),
        "SAME",
        rhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=2,
    )
    assert result.shape == (1, 8, 8, 4)
    assert result[0, 4, 4, 0] == 18.0
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "batch_group_count": 2}
    result = convolution("patches")(jnp.ones((2, 8, 8, 2)), kernel, (1, 1), "SAME", **options)
    assert result.shape == (1, 8, 8, 4)


def small_task(shape=(8, 8, 1), dtype=jnp.float32):
    def batch(seed, n):
        images = jax.random.uniform(jax.random.key(seed), (n, *shape), dtype)
        return LabelledImages(images, jnp.arange(n) % 3)

    return Task(batch(1, 3), batch(2, 6))


def meta_gradient(network, params, task, mode="reverse"):
    fn = functools.partial(
        meta_loss, cross_entropy(network.apply), inner_lr=0.3, num_inner_steps=2, mask=network.mask,
        mode=mode,
    )  # fmt: skip
    return jax.jit(jax.grad(fn, has_aux=True))(params, task)[0]


@pytest.mark.parametrize("pooling", ["stride", "max"])
@pytest.mark.accelerator
def test_lowerings_and_modes_give_one_meta_gradient(x64, pooling):
    make = functools.partial(
        convolutional, (8, 8, 1), 3, num_filters=4, num_layers=2, pooling=pooling
    )
    task = small_task(dtype=jnp.float64)
    params = make().init(jax.random.key(0))
    params = jax.tree.map(lambda p: p.astype(jnp.float64), params)
    expected = meta_gradient(make(lowering="native"), params, task)
    for lowering in ("patches", "shifts"):
        assert_trees_close(meta_gradient(make(lowering=lowering), params, task), expected, 1e-10)
    assert_trees_close(meta_gradient(make(), params, task, "mixed"), expected, 1e-10)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.accelerator
def test_every_normalization_trains(norm):
    network = convolutional((8, 8, 1), 3, num_filters=6, num_layers=1, norm=norm)
    params = network.init(jax.random.key(0))
    expected = {
        "batch": {"offset"},
        "batch_scale": {"offset", "scale"},
        "layer": {"bias", "scale"},
        "group": {"bias", "scale"},
        "none": set(),
    }
    assert set(params.get("Norm_0", {})) == expected[norm]
    grads = meta_gradient(network, params, small_task())
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))
    mask = network.mask(params)
    assert not any(jax.tree.leaves(mask.get("Norm_0", {})))
    assert all(jax.tree.leaves(mask["Head"]))


def test_batch_norm_by_hand():
    x = jnp.array([[1.0, 4.0], [3.0, 4.0], [8.0, 1.0]])
    module = BatchNorm()
    params = {"params": {"offset": jnp.array([0.5, 0.0])}}
    expected = (np.array(x) - [4, 3]) / np.sqrt(np.array([26 / 3, 2]) + 1e-3) + [0.5, 0]
    np.testing.assert_allclose(module.apply(params, x), expected, rtol=1e-6)
    first_two = (np.array(x) - [2, 4]) / np.sqrt(np.array([1, 0]) + 1e-3) + [0.5, 0]
    result = BatchNorm(num_statistics=2).apply(params, x)
    np.testing.assert_allclose(result, first_two, rtol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("make", [convolutional, fully_connected])
def test_biases_matter_except_before_batch_norm(make, norm):
    sizes = (
        {"num_filters": 16, "num_layers": 1} if make is convolutional else {"hidden_sizes": (16,)}
    )
    network, task = make((8, 8, 1), 3, norm=norm, **sizes), small_task()
    params = network.init(jax.random.key(0))
    moved = jax.tree_util.tree_map_with_path(
        lambda path, p: (
            p + jnp.arange(1.0, p.size + 1)
            if path[0].key in ("Conv_0", "Dense_0") and path[1].key == "bias"
            else p
        ),
        params,
    )
    apply = functools.partial(network.apply, images=task.query.images, num_statistics=3)
    same = np.array_equal(apply(params), apply(moved))
    assert same == norm.startswith("batch")
    grads = jax.grad(lambda p: cross_entropy(network.apply)(p, task.query)[0])(moved)
    first = grads["Conv_0" if make is convolutional else "Dense_0"]
    assert np.any(first["kernel"])
    assert np.any(first["bias"]) != same
    if not same:  # more than rounding
        assert np.abs(first["bias"]).max() > 1e-3 * np.abs(first["kernel"]).max()


@pytest.mark.parametrize("num_statistics", [None, 2])
def test_batch_norm_removes_an_offset(num_statistics):
    x, offset = jax.random.normal(jax.random.key(0), (5, 3)), jnp.array([0.5, -2.0, 1.0])
    module = BatchNorm(num_statistics=num_statistics)
    params = {"params": {"offset": jnp.array([0.5, 0.0, 1.0])}}
    assert_trees_close(module.apply(params, x + offset), module.apply(params, x), 1e-5)


def test_batch_norm_of_one_black_image_is_finite():
    network = convolutional((8, 8, 1), 3, num_filters=4, num_layers=2)
    params = network.init(jax.random.key(0))
    black = Task(*(LabelledImages(jnp.zeros((3, 8, 8, 1)), jnp.arange(3)) for _ in range(2)))
    grads = meta_gradient(network, params, black)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))


@pytest.mark.accelerator
def test_bfloat16_leaves_parameters_updates_and_logits_in_float32():
    make = functools.partial(convolutional, (8, 8, 1), 3, num_filters=8, num_layers=2)
    params = make(dtype=jnp.bfloat16).init(jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    images = small_task().query.images
    half, full = (make(dtype=d).apply(params, images) for d in (jnp.bfloat16, None))
    assert half.dtype == jnp.float32
    assert np.any(np.asarray(half != full))
    np.testing.assert_allclose(half, full, atol=0.1)
    grads = meta_gradient(make(dtype=jnp.bfloat16), params, small_task())
    expected = meta_gradient(make(), params, small_task())
    cosine = sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (grads, expected))))  # noqa: B905
    norms = [jnp.sqrt(sum(jnp.vdot(a, a) for a in jax.tree.leaves(g))) for g in (grads, expected)]
    assert cosine / (norms[0] * norms[1]) > 0.98


def test_max_pool_drops_an_odd_edge():
    x = jnp.arange(25.0).reshape(1, 5, 5, 1)
    np.testing.assert_array_equal(max_pool(x)[0, ..., 0], [[6, 8], [16, 18]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: convolutional((28, 28), 5), r"image_shape must be \(H, W, C\)"),
        (lambda: convolutional((28, 28, 1), 0), "num_outputs must be 1 or more"),
        (lambda: convolutional((28, 28, 1), 5, pooling="mean"), "received 'mean'"),
        (lambda: convolutional((28, 28, 1), 5, norm="instance"), "received 'instance'"),
        (lambda: convolutional((28, 28, 1), 5, lowering="winograd"), "received 'winograd'"),
        (lambda: convolutional((8, 8, 1), 5, pooling="max"), "expected 16 or more"),
        (lambda: fully_connected((28, 28, 1), 5, (64, 0)), r"hidden_sizes\[1\] must be 1 or more"),
        (lambda: convolutional((28, 0, 1), 5), r"image_shape\[1\] must be 1 or more"),
        (
            lambda: fully_connected((4, 4, 1), 5).apply({}, jnp.zeros((2, 16))),
            r"shape \[n, 4, 4, 1\]; received \(2, 16\)",
        ),
    ],
)
def test_impossible_networks_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: fully_connected((4, 4, 1), 2, (64.0, 32)), r"hidden_sizes\[0\]"),
        (lambda: fully_connected((4, 4.0, 1), 2), r"image_shape\[1\]"),
        (lambda: convolutional((4.0, 4.0, 1), 2), r"image_shape\[0\]"),
    ],
)
def test_sizes_are_integers(make, name):
    with pytest.raises(TypeError, match=f"{name} must be a Python int.*of type float"):
        make()


@pytest.mark.parametrize("filters", [2, 28], ids=["fewer", "more"])  # fewer than the 27 of a patch
@pytest.mark.parametrize("cache_bytes", [1, 10**9], ids=["image by image", "all at once"])
@pytest.mark.parametrize(
    "batched", [(0, 0), (0, None), (None, 0)], ids=["both", "images", "kernel"]
)
@pytest.mark.accelerator
def test_convolution_products_under_vmap(x64, monkeypatch, cache_bytes, batched, filters):
    """Values, gradients and second derivatives equal JAX's, in tasks and in pieces of a batch."""
    monkeypatch.setattr(convolution_products, "CACHE_BYTES", cache_bytes)
    keys = jax.random.split(jax.random.key(0), 3)
    num_images = 6 if cache_bytes == 1 else 4  # JAX caches lowerings by shape
    images = jax.random.normal(keys[0], (2, num_images, 5, 4, 3), jnp.float64)
    kernels = jax.random.normal(keys[1], (2, 3, 3, 3, filters), jnp.float64)
    images, kernels = (
        x if axis == 0 else x[0] for x, axis in zip((images, kernels), batched, strict=True)
    )

    def results(lowering):
        conv = convolution(lowering)

        def loss(x, w):
            y = conv(x, w, (2, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            return jnp.sum(jnp.sin(y))

        def directional(x, w):
            gradient = jax.grad(loss, (0, 1))
            _, second = jax.jvp(gradient, (x, w), (jnp.cos(x), jnp.cos(w)))
            pulled = jax.grad(lambda *p: sum(jnp.sum(g**3) for g in gradient(*p)), (0, 1))(x, w)
            return loss(x, w), gradient(x, w), second, pulled

        return jax.jit(jax.vmap(directional, batched))(images, kernels)

    assert_trees_close(results("patches"), results("native"), 1e-9)


@pytest.mark.parametrize("form", convolution_products.FORMS)
def test_the_accelerators_form_of_the_products_is_equal(form):
    geometry = convolution_products.Geometry((7, 6), (3, 3), (2, 2), ((1, 1), (0, 1)))
    keys = jax.random.split(jax.random.key(1), 3)
    shapes = {"x": (4, 2, 7, 6, 3), "w": (4, 3, 3, 3, 5), "y": (4, 2, *geometry.output, 5)}
    operands = {"output": "xw", "input": "yw", "kernel": "xy"}[form]
    a, b = (jax.random.normal(k, shapes[name]) for k, name in zip(keys, operands, strict=False))
    on_cpu = convolution_products._on_cpu(a, b, form=form, geometry=geometry)
    elsewhere = convolution_products._anywhere(a, b, form=form, geometry=geometry)
    assert_trees_close(on_cpu, elsewhere, 1e-5)
    expected = {"output": "y", "input": "x", "kernel": "w"}[form]
    assert elsewhere.shape == shapes[expected]


def test_convolutions_keep_the_precision_of_their_context():
    """Even if a gradient of a gradient lowers them later, under another default."""
    network = convolutional((6, 6, 1), 2, num_filters=3, num_layers=1, lowering="patches")
    params = network.init(jax.random.key(0))
    images = jnp.ones((2, 6, 6, 1))

    def loss(p):
        with jax.default_matmul_precision("highest"):
            return jnp.sum(network.apply(p, images) ** 2)

    twice = jax.grad(lambda p: sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(loss)(p))))
    text = jax.jit(twice).lower(params).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) >= 6
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)
