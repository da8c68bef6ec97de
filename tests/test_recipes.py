"""The recipes in docs/networks.md give the meta-gradient of a hand-written loop."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "networks.md"


@pytest.fixture(scope="module")
def page():
    """Returns the names that the page's code defines."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names = {"__name__": "page"}
    exec(compile("\n".join(blocks), PAGE.name, "exec"), names)
    return names


def by_hand(loss_fn, theta, task, inner_lr, num_steps):
    for step in range(num_steps):
        batch = jax.tree.map(lambda x, s=step: x[s], task.support)
        slope = jax.grad(lambda p, b=batch: loss_fn(p, b)[0])(theta)
        theta = jax.tree.map(lambda p, g: p - inner_lr * g, theta, slope)
    return loss_fn(theta, task.query)[0]


@pytest.mark.parametrize("name", ["linen", "nnx", "equinox"])
def test_batch_norm_and_dropout(name, page):
    loss_fn, params = page["networks"][name]
    task, steps = page["task"], page["NUM_STEPS"]
    expected = jax.jit(jax.grad(lambda p: by_hand(loss_fn, p, task, 0.1, steps)))(params)

    gradient = page["gradients"][name]
    assert jax.tree.structure(gradient) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    assert sum(float(jnp.abs(g).sum()) for g in jax.tree.leaves(gradient)) > 1e-2

    # Dropout differs between steps; statistics are those of the current batch.
    batch = jax.tree.map(lambda x: x[0], task.support)
    losses = [loss_fn(params, (*batch[:2], key))[0] for key in task.support[2]]
    assert len(set(map(float, losses))) == steps
    one, other = (loss_fn(params, (batch[0] * s, *batch[1:]), train=False)[0] for s in (1, 50))
    np.testing.assert_allclose(one, other, rtol=1e-2)
