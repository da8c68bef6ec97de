"""Brax's estimators agree with ours where both compute the same thing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("brax", reason="locomotion needs the rl extra")

from maml_jax import init, make_train_fn
from maml_jax.networks import Gaussian, memoryless_policy
from maml_jax.reinforcement import (
    Environment,
    Samples,
    State,
    reinforcement_problem,
    rollout,
    surrogate,
    surrogate_update,
)
from maml_jax.reinforcement import locomotion as lib
from maml_jax.reinforcement.advantages import generalized_advantages

KEY = jax.random.key(0)


def made_up_samples(key, distribution, num_steps=7, num_episodes=5):
    a, b, c = jax.random.split(key, 3)
    lengths = jax.random.randint(a, (num_episodes,), 2, num_steps + 1)
    alive = jnp.arange(num_steps)[:, None] < lengths
    advantages = jnp.where(alive, jax.random.normal(b, alive.shape), 0.0)
    actions = distribution.sample(c)
    return Samples(jnp.zeros((*alive.shape, 1)), actions, advantages, alive, distribution, {})


def test_brax_advantages_are_ours_for_whole_returns():
    a, b = jax.random.split(KEY)
    lengths = jnp.array([7, 3, 5, 1])
    alive = jnp.arange(7)[:, None] < lengths
    rewards = jnp.where(alive, jax.random.normal(a, (7, 4)), 0.0)
    values = jax.random.normal(b, (7, 4))
    ours = generalized_advantages(rewards, values, alive, 0.9, 1.0)
    theirs = lib.brax_advantages(rewards, values, alive, 0.9, 1.0)
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
    ours = generalized_advantages(rewards, values, alive, 0.9, 0.5)
    theirs = lib.brax_advantages(rewards, values, alive, 0.9, 0.5)
    assert np.max(np.abs(theirs - ours)) > 0.1  # another estimator: see its docstring


def test_brax_distribution_is_a_gaussian_before_the_tanh():
    parameters = jax.random.normal(KEY, (7, 5, 6))
    other = lib.NormalTanh(parameters + 0.1)
    tanh = lib.NormalTanh(parameters)
    deviations = jax.nn.softplus(parameters[..., 3:]) + 0.001
    gaussian = Gaussian(parameters[..., :3], jnp.log(deviations))
    actions = tanh.sample(jax.random.key(1))
    jacobian = jnp.sum(jnp.log1p(-(jnp.tanh(actions) ** 2)), -1)
    np.testing.assert_allclose(
        tanh.log_prob(actions), gaussian.log_prob(actions) - jacobian, atol=2e-3
    )
    np.testing.assert_allclose(tanh.kl(other), gaussian.kl(other.before_tanh), rtol=1e-5)
    assert np.all(tanh.kl(tanh) == 0)


def test_brax_ppo_loss_is_our_clipped_surrogate():
    """The policy's parameters are its distributions."""
    policy = memoryless_policy(lambda key: None, lambda params, _: lib.NormalTanh(params))
    old = jax.random.normal(KEY, (7, 5, 6))
    samples = made_up_samples(jax.random.key(1), lib.NormalTanh(old))
    new = old + 0.3 * jax.random.normal(jax.random.key(2), (7, 5, 6))

    def compiled(loss):
        return jax.jit(jax.value_and_grad(lambda params: loss(params, samples)[0]))

    theirs = compiled(lib.brax_ppo_loss(policy, clip=0.2))
    for a, b in zip(theirs(new), compiled(surrogate(policy, 0.2))(new), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    far = jnp.where(samples.alive[..., None], new, 1e4)  # ratios that overflow
    gradient = theirs(far)[1]
    assert np.all(np.isfinite(gradient))
    assert not np.any(gradient[~samples.alive])
    dear = lib.brax_ppo_loss(policy, clip=0.2, entropy_cost=0.1)
    assert dear(new, samples)[0] != theirs(new)[0]


def test_brax_estimators_train():
    def sample_task(key):
        return jax.random.normal(key, (1,))

    def reset(key, task):
        return State(jnp.zeros(1), jnp.zeros(()), jnp.zeros((), bool), task)

    def step(state, action):
        assert action.shape == (1,)
        return state._replace(reward=-jnp.sum((action - state.inner) ** 2))

    env = lib.squashed(Environment(sample_task, reset, step, 1, 1, 3, lambda task: task))
    policy = lib.tanh_gaussian_policy(1, 1, (4,))
    episodes = rollout(env, policy, policy.init(KEY), jnp.zeros(1), KEY, 20)
    assert float(jnp.max(-episodes.rewards)) <= 1.0  # the tanh bounds the actions
    loss = lib.brax_ppo_loss(policy, entropy_cost=1e-3)
    problem = reinforcement_problem(env, policy, num_episodes=5, outer_loss=loss)
    update = surrogate_update(problem, optax.adam(1e-2), num_epochs=2)
    params = policy.init(KEY)
    train = make_train_fn(problem.sample, update, num_tasks=2, num_meta_steps=1)
    after, metrics = train(init(params, update, 0))
    assert np.isfinite(metrics["surrogate_after"]).all()
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), params, after.params)
    assert max(jax.tree.leaves(moved)) > 0
