"""All exact modes give the meta-gradient of reverse mode, in less memory."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_trees_close, classification_task, cross_entropy, mlp_params

from maml_jax import PerStep, Task, meta_loss
from maml_jax.memory import MemoryUse, fitting_modes, format_memory_report, memory_report
from maml_jax.meta_gradient import MODES, gradient

PREFIX = [0.3, {"w": 0.2, "b": 0.5}, 0.1]
ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1.0, eps_root=1e-6))
# by name: inner_lr for S steps, other arguments
SETTINGS = {
    "number": (lambda steps: 0.5, {}),
    "prefix": (lambda steps: PREFIX, {}),
    "per_step": (lambda steps: PerStep(jnp.linspace(0.1, 0.5, steps)), {}),
    "per_layer_per_step": (
        lambda s: PerStep([jnp.full(s, 0.2), jnp.full(s, 0.4), jnp.zeros(s)]),
        {},
    ),
    "mask": (lambda steps: 0.5, {"mask": [False, True, {"w": True, "b": False}]}),
    "momentum": (lambda steps: 0.2, {"inner_optimizer": optax.sgd(1.0, momentum=0.9)}),
    "adam": (lambda steps: 0.02, {"inner_optimizer": ADAM}),
}


def meta_gradient(mode, inner_lr, num_steps, metrics_weight=0.0, **kwargs):
    """Differentiates in the parameters and the inner rates, for a meta-batch of 2, under jit."""
    params = mlp_params(jax.random.key(0))
    tasks = classification_task(jax.random.key(1), num_tasks=2)

    def total(params, inner_lr):
        def one(task):
            loss, metrics = meta_loss(
                cross_entropy, params, task, inner_lr, num_steps, mode=mode, **kwargs
            )
            # The differentiated value may include metrics of the inner steps.
            inner = jnp.sum(metrics["support"]["size"]) + jnp.sum(metrics["support"]["loss"])
            return loss + metrics_weight * inner

        return jnp.mean(jax.vmap(one)(tasks))

    return jax.jit(jax.grad(total, argnums=(0, 1)))(params, inner_lr)


@pytest.mark.parametrize("num_steps", [1, 3, 10])
@pytest.mark.parametrize("setting", ["number", "adam"])
@pytest.mark.accelerator
def test_exact_modes_agree_over_steps(setting, num_steps, x64):
    make_rate, kwargs = SETTINGS[setting]
    rate = make_rate(num_steps)
    expected = meta_gradient("reverse", rate, num_steps, **kwargs)
    for mode in ("remat", "mixed"):
        assert_trees_close(meta_gradient(mode, rate, num_steps, **kwargs), expected, 1e-10)


@pytest.mark.parametrize("setting", sorted(set(SETTINGS) - {"number", "adam"}))
@pytest.mark.accelerator
def test_exact_modes_agree_in_all_settings(setting, x64):
    make_rate, kwargs = SETTINGS[setting]
    rate = make_rate(3)
    expected = meta_gradient("reverse", rate, 3, metrics_weight=0.3, **kwargs)
    for mode in ("remat", "mixed"):
        actual = meta_gradient(mode, rate, 3, metrics_weight=0.3, **kwargs)
        assert_trees_close(actual, expected, 1e-10)


@pytest.mark.accelerator
def test_first_order_differs_on_the_test_problem(x64):
    """The curvature matters on the test problem, so that not every mode passes."""
    exact = meta_gradient("reverse", 0.5, 3)[0]
    first = meta_gradient("first_order", 0.5, 3)[0]
    largest = max(
        float(jnp.max(jnp.abs(a - b)))
        for a, b in zip(*map(jax.tree.leaves, (exact, first)), strict=True)
    )
    assert largest > 1e-2


@pytest.mark.accelerator
def test_values_that_the_loss_closes_over_are_differentiated(x64):
    """The parameters of a learned loss have a gradient through the inner steps in every mode."""
    x, y = jnp.linspace(-1, 1, 5), jnp.arange(5.0)
    labels = jnp.array([0, 1, 0, 1, 1])

    def outer(scale, mode):
        def inner_loss(p, batch):
            weights = jnp.where(labels == 1, scale, 1.0)  # closes over floats and integers
            return jnp.mean(weights * (jnp.sin(p * x) - y) ** 2), {}

        judge = lambda p, batch: (jnp.mean((p * x - y) ** 2), {})
        tasks = Task(jnp.zeros(2), jnp.zeros(2))
        one = lambda task: meta_loss(inner_loss, 0.5, task, 0.1, 3, outer_loss=judge, mode=mode)[0]
        return jnp.mean(jax.vmap(one)(tasks))

    expected = jax.grad(outer)(0.7, "reverse")
    assert abs(expected) > 1e-3
    for mode in ("remat", "mixed"):
        np.testing.assert_allclose(jax.grad(outer)(0.7, mode), expected, rtol=1e-10)


def test_the_support_batch_is_differentiated(x64):
    """Data set distillation: a gradient in the support inputs, beside integer labels."""
    params = mlp_params(jax.random.key(0), (3, 5, 4))
    task = classification_task(jax.random.key(1))

    def outer(inputs, mode):
        changed = Task((inputs, task.support[1]), task.query)
        return meta_loss(cross_entropy, params, changed, 0.5, 2, mode=mode)[0]

    grad = jax.jit(jax.grad(outer), static_argnums=1)
    expected = grad(task.support[0], "reverse")
    for mode in ("remat", "mixed"):
        np.testing.assert_allclose(grad(task.support[0], mode), expected, rtol=1e-9, atol=1e-12)


def test_the_meta_loss_in_forward_mode():
    """Mixed mode refuses forward-mode differentiation; the other modes support it."""
    loss = lambda p, b: (jnp.sum(jnp.sin(p)), {})
    fn = lambda mode: lambda p: meta_loss(loss, p, Task(0.0, 0.0), 0.1, mode=mode)[0]
    p = jnp.ones(2)
    np.testing.assert_allclose(jax.jacfwd(fn("remat"))(p), jax.grad(fn("mixed"))(p), rtol=1e-6)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jacfwd(fn("mixed"))(p)
    # Every mode supports differentiating the meta-gradient once more.
    hessian = lambda mode: jax.jacfwd(jax.grad(fn(mode)))(p)
    np.testing.assert_allclose(hessian("mixed"), hessian("reverse"), rtol=1e-5)


def test_gradient_refuses_an_unknown_mode():
    with pytest.raises(ValueError, match="mode must be one of"):
        gradient(cross_entropy, "forward")


def wide_report(num_steps, modes):
    """Reports memory for a network whose activations outweigh its parameters."""
    sizes = (16, 64, 64, 1)
    params = mlp_params(jax.random.key(0), sizes, jnp.float32)

    def loss(p, batch):
        x, y = batch
        for layer in p[:-1]:
            x = jnp.tanh(x @ layer["w"] + layer["b"])
        return jnp.mean((x @ p[-1]["w"] + p[-1]["b"] - y) ** 2), {}

    batch = (
        jax.ShapeDtypeStruct((500, 16), jnp.float32),
        jax.ShapeDtypeStruct((500, 1), jnp.float32),
    )
    make = lambda mode: functools.partial(
        meta_loss, loss, inner_lr=0.01, num_inner_steps=num_steps, mode=mode
    )
    return memory_report(make, params, Task(batch, batch), modes=modes)


def test_memory_report_orders_the_modes():
    report = wide_report(10, MODES)
    assert report["mixed"].temporary < report["remat"].temporary < report["reverse"].temporary
    assert report["first_order"].temporary < report["mixed"].temporary
    assert report["reverse"].arguments > 0
    table = format_memory_report(report)
    assert all(mode in table for mode in MODES)


def test_a_hundred_second_order_steps_in_a_tenth_of_the_memory():
    report = wide_report(100, ("reverse", "mixed"))
    assert report["mixed"].temporary < 0.1 * report["reverse"].temporary


MEGABYTE = 10**6
REPORT = {
    "first_order": MemoryUse(8 * MEGABYTE, MEGABYTE, MEGABYTE),
    "remat": MemoryUse(38 * MEGABYTE, MEGABYTE, MEGABYTE),
    "mixed": MemoryUse(28 * MEGABYTE, MEGABYTE, MEGABYTE),
    "reverse": MemoryUse(98 * MEGABYTE, MEGABYTE, MEGABYTE),
}


@pytest.mark.parametrize(
    ("available", "fitting", "advice"),
    [
        (100, ("reverse", "mixed", "remat", "first_order"), "mode='reverse' fits."),
        (99, ("mixed", "remat", "first_order"), "mode='mixed' fits."),
        (39, ("mixed", "first_order"), "mode='mixed' fits."),
        (29, ("first_order",), "Only mode='first_order' fits, which approximates"),
        (9, (), "No mode fits: take fewer tasks at once"),
    ],
)
def test_the_report_names_the_mode_that_fits(available, fitting, advice):
    assert fitting_modes(REPORT, available * MEGABYTE) == fitting
    *table, sentence = format_memory_report(REPORT, available * MEGABYTE).splitlines()
    marked = {line.split()[0] for line in table if line.endswith("does not fit")}
    assert marked == set(REPORT) - set(fitting)
    assert re.search(advice, sentence)


def test_advice_is_limited_to_the_requested_modes():
    only = {"remat": REPORT["remat"]}
    assert fitting_modes(only, 10**9) == ("remat",)
    assert "fit" not in format_memory_report(only)
    with pytest.raises(ValueError, match="0 or more bytes; received -1"):
        fitting_modes(only, -1)


def test_memory_report_refuses_an_unknown_mode():
    with pytest.raises(ValueError, match="mode must be one of"):
        memory_report(lambda mode: lambda p: p, 1.0, modes=("fast",))
