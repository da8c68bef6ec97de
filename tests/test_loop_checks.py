"""The training loop names invalid states, and invalid outputs of a meta-update."""

import jax
import jax.numpy as jnp
import optax
import pytest

from maml_jax import (
    MetaUpdate,
    fit,
    gradient_update,
    init,
    make_train_fn,
    over_members,
    task_mesh,
)
from maml_jax.pooling import pool, report

THETA = {"w": jnp.zeros(2)}
UPDATE = gradient_update(
    lambda theta, target: (jnp.sum((theta["w"] - target) ** 2), {}), optax.sgd(0.1)
)


def trainer(update=UPDATE):
    draw = lambda params, key: jnp.ones(2)
    return make_train_fn(draw, update, num_tasks=1, num_meta_steps=1, mesh=task_mesh(1))


def one():
    return init(THETA, UPDATE, 0)


def stacked():
    return jax.vmap(lambda key: init(THETA, UPDATE, key))(jax.random.split(jax.random.key(0), 3))


ONE_MEMBER = r"MetaState of one member; received the stacked states of 3 members.*over_members"


def test_a_run_of_one_member_refuses_other_states():
    train = trainer()
    for call in (train, train.lower, lambda state: fit(train, state, num_meta_steps=1)):
        with pytest.raises(ValueError, match=ONE_MEMBER):
            call(stacked())
        with pytest.raises(TypeError, match=r"must be a MetaState, from maml_jax\.init.*ived dict"):
            call(THETA)


def test_members_refuse_other_states():
    train = over_members(trainer())
    for call in (train, train.lower):
        with pytest.raises(ValueError, match=r"leading axis of M.*jax\.vmap.*step has shape \(\)"):
            call(one())
        with pytest.raises(TypeError, match=r"stacked MetaState with a leading axis of M.*dict"):
            call(THETA)


def test_fit_refuses_members():
    with pytest.raises(TypeError, match=r"fit takes one member; received MemberTrainFn.*over_memb"):
        fit(over_members(trainer()), stacked(), num_meta_steps=1)


def output(change):
    """Traces a meta-step of an update that returns `change(params, state, metrics)`."""

    def update(params, state, targets):
        metrics = report(pool(jnp.sum(targets, axis=1), None, {}), (), params)
        return change(params, state, metrics)

    custom = MetaUpdate(lambda params: jnp.zeros(()), update)
    return trainer(custom).lower(init(THETA, custom, 0))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda p, s, m: (p, m), TypeError, r"triple \(params, state, metrics\).*a tuple of 2"),
        (lambda p, s, m: (p, s, m["loss"]), TypeError, r"triple .* with metrics a dict; received"),
        (
            lambda p, s, m: (p, s, {"loss": m["loss"]}),
            TypeError,
            r"metrics with nonfinite_tasks.*received \['loss'\].*maml_jax\.pooling\.report",
        ),
        (lambda p, s, m: (p["w"], s, m), ValueError, r"params returned by .* have the structure"),
        (
            lambda p, s, m: ({"w": p["w"][:1]}, s, m),
            ValueError,
            r"params returned .*\['w'\] must have shape \(2,\); received \(1,\)",
        ),
        (
            lambda p, s, m: ({"w": p["w"].astype(jnp.bfloat16)}, s, m),
            TypeError,
            r"keep dtype float32 at params\['w'\]; received bfloat16",
        ),
        (lambda p, s, m: (p, (), m), ValueError, r"state returned by .* have the structure"),
    ],
)
def test_the_output_of_an_update(change, error, message):
    with pytest.raises(error, match=message):
        output(change)


def test_an_update_that_keeps_its_forms_passes():
    assert output(lambda p, s, m: (p, s + 1, m)).out_info[0].params["w"].shape == (2,)
