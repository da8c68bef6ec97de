"""Policies, rollouts and environments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_close

from maml_jax import NonFiniteError
from maml_jax.networks import (
    Categorical,
    Gaussian,
    categorical_policy,
    gaussian_policy,
    recurrent_policy,
)
from maml_jax.reinforcement import (
    Environment,
    State,
    check_environment,
    check_episodes,
    informed,
    navigation,
    reinforcement_problem,
    rollout,
    to_samples,
    with_feedback,
)
from maml_jax.reinforcement.tabular import Tables, tabular

KEY = jax.random.key(0)


def counter(ends_at=(3, 5), horizon=6, reward=lambda t: 1.0, blow_up=None):
    """Makes an environment that counts steps; the task is the step at which the episode ends."""

    def state(t, task, done):
        return State(
            jnp.stack([t, task]).astype(float), jnp.asarray(reward(t), float), done, (t, task)
        )

    def step(before, action):
        t, task = before.inner
        after = state(t + 1, task, t + 1 >= task)
        if blow_up is not None:
            after = after._replace(reward=jnp.where(t + 1 == blow_up, jnp.nan, after.reward))
        return after

    return Environment(
        sample_task=lambda key: jnp.asarray(ends_at)[jax.random.randint(key, (), 0, len(ends_at))],
        reset=lambda key, task: state(0, task, jnp.zeros((), bool))._replace(reward=jnp.zeros(())),
        step=step,
        num_observations=2,
        num_actions=1,
        horizon=horizon,
        task_features=lambda task: task[None].astype(float),
    )


def random_tables(key, n, num_actions):
    a, b, c = jax.random.split(key, 3)
    return Tables(
        jax.random.normal(a, (n, num_actions)),
        jax.nn.softmax(jax.random.normal(b, (n, num_actions, n))),
        jax.nn.softmax(jax.random.normal(c, (n,))),
    )


def play(env, task, episodes=4, key=KEY, policy=None):
    policy = policy or gaussian_policy(env.num_observations, env.num_actions, (8,))
    params = policy.init(jax.random.key(1))
    return jax.jit(lambda k: rollout(env, policy, params, task, k, episodes))(key)


# Distributions


def test_the_gaussian_sums_over_the_elements_of_an_action():
    from jax.scipy.stats import norm

    one = Gaussian(jnp.array([0.3, -1.0]), jnp.log(jnp.array([0.5, 2.0])))
    action = jnp.array([0.1, 0.4])
    expected = norm.logpdf(0.1, 0.3, 0.5) + norm.logpdf(0.4, -1.0, 2.0)
    np.testing.assert_allclose(one.log_prob(action), expected, rtol=1e-5)
    assert one.kl(one) == 0
    other = Gaussian(jnp.array([0.0, -0.5]), jnp.log(jnp.array([0.7, 1.5])))
    draws = jax.vmap(one.sample)(jax.random.split(KEY, 100_000))
    estimate = jnp.mean(one.log_prob(draws) - other.log_prob(draws))
    np.testing.assert_allclose(one.kl(other), estimate, rtol=0.03)
    np.testing.assert_allclose(one.entropy(), -jnp.mean(one.log_prob(draws)), rtol=0.01)


def test_categorical():
    one, other = Categorical(jnp.log(jnp.array([1.0, 3.0]))), Categorical(jnp.zeros(2))
    np.testing.assert_allclose(one.log_prob(jnp.array(1)), np.log(0.75), rtol=1e-6)
    expected = 0.25 * np.log(0.5) + 0.75 * np.log(1.5)
    np.testing.assert_allclose(one.kl(other), expected, rtol=1e-5)
    assert one.kl(one) == 0
    np.testing.assert_allclose(one.entropy(), -(0.25 * np.log(0.25) + 0.75 * np.log(0.75)), 1e-5)


@pytest.mark.parametrize("make", [gaussian_policy, categorical_policy, recurrent_policy])
@pytest.mark.accelerator
def test_unroll_equals_repeated_act(make, full_precision):
    policy = make(3, 2)
    params = policy.init(KEY)
    observations = jax.random.normal(KEY, (5, 4, 3))
    whole = policy.unroll(params, observations)
    for episode in range(2):
        memory = policy.start()
        for t in range(5):
            one, memory = policy.act(params, observations[t, episode], memory)
            for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(whole), strict=True):
                np.testing.assert_allclose(a, b[t, episode], rtol=1e-4, atol=1e-6)


def test_log_std_has_a_lower_bound():
    policy = gaussian_policy(2, 2, (4,))
    params = policy.init(KEY)
    params["log_std"] = jnp.full(2, -100.0)
    result, _ = policy.act(params, jnp.zeros(2), ())
    np.testing.assert_allclose(result.log_std, np.log(1e-6), rtol=1e-6)
    with pytest.raises(ValueError, match="initial_std must be above"):
        gaussian_policy(2, 2, initial_std=0.0)


# Rollouts


def test_alive_until_the_end_and_no_step_after_it():
    t = play(counter(), jnp.asarray(3))
    np.testing.assert_array_equal(t.alive[:, 0], [True, True, True, False, False, False])
    np.testing.assert_array_equal(t.rewards[:, 0], [1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(t.returns, [3, 3, 3, 3])
    assert t.observations.shape == (6, 4, 2)  # exactly four episodes of six steps, without reset


def test_non_finite_values_end_the_episode_and_are_counted():
    t = play(counter(blow_up=2), jnp.asarray(5))
    np.testing.assert_array_equal(t.alive[:, 0], [True, True, False, False, False, False])
    np.testing.assert_array_equal(t.rewards[:, 0], [1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(t.returns, 0)
    assert t.nonfinite.all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(t))
    samples = to_samples(t)
    assert samples.metrics["nonfinite"] == 1
    with pytest.raises(NonFiniteError, match="every episode before adaptation"):
        check_episodes({"before": samples.metrics, "after": samples.metrics})


def test_noise_differs_between_episodes_steps_and_keys():
    env = navigation(horizon=5)
    goal = jnp.array([0.3, 0.3])
    one, same, other = (play(env, goal, key=jax.random.key(k)) for k in (0, 0, 1))
    assert_trees_close(one, same, 0)
    assert np.all(np.asarray(one.actions) != np.asarray(other.actions))
    flat = np.asarray(one.actions).reshape(-1)
    assert len(np.unique(flat)) == flat.size


def test_noise_differs_before_and_after_adaptation_and_between_tasks():
    problem = reinforcement_problem(
        navigation(horizon=5), gaussian_policy(2, 2, (4,)), num_episodes=3, inner_lr=1e-12
    )
    params = problem.init(KEY)
    tasks = jax.jit(jax.vmap(problem.sample, (None, 0)))(params, jax.random.split(KEY, 2))
    noise = np.concatenate([np.ravel(tasks.support.actions), np.ravel(tasks.query.actions)])
    assert len(np.unique(noise)) == noise.size


@pytest.mark.accelerator
def test_nothing_is_differentiated_through_a_rollout():
    env, policy = navigation(horizon=3), gaussian_policy(2, 2, (4,))

    def total(params):
        return jnp.sum(rollout(env, policy, params, jnp.ones(2), KEY, 2).rewards)

    grads = jax.grad(total)(policy.init(KEY))
    assert all(not np.any(g) for g in jax.tree.leaves(grads))


@pytest.mark.accelerator
def test_navigation(full_precision):
    env = navigation()
    goal = jnp.array([0.05, -0.08])
    state = env.reset(KEY, goal)
    state = env.step(state, jnp.array([0.45, -5.0]))  # scaled by 0.1 and clipped to +-0.1
    np.testing.assert_allclose(state.observation, [0.045, -0.1], rtol=1e-6)
    np.testing.assert_allclose(state.reward, -np.hypot(0.005, 0.02), rtol=1e-4)
    assert not state.done
    state = env.step(state, jnp.array([0.0, 0.15]))
    assert state.done
    squared = navigation("squared_distance")
    gained = squared.step(squared.reset(KEY, goal), jnp.array([0.45, -5.0])).reward
    np.testing.assert_allclose(gained, -(0.005**2 + 0.02**2), rtol=1e-4)
    goals = jax.vmap(env.sample_task)(jax.random.split(KEY, 1000))
    assert goals.min() >= -0.5
    assert goals.max() <= 0.5
    with pytest.raises(ValueError, match="reward must be one of"):
        navigation("speed")


def test_an_oracle_observes_the_task_and_feedback_the_last_step():
    goal = jnp.array([0.2, -0.4])
    env = informed(navigation(horizon=4))
    recorded = play(env, goal).observations
    assert env.num_observations == 4
    np.testing.assert_allclose(recorded[..., 2:], jnp.broadcast_to(goal, recorded[..., 2:].shape))
    env = with_feedback(navigation(horizon=4))
    t = play(env, goal)
    np.testing.assert_allclose(t.observations[1:, :, 2:4], t.actions[:-1], rtol=1e-6)
    np.testing.assert_allclose(t.observations[1:, :, 4], t.rewards[:-1], rtol=1e-6)
    check_environment(env, recurrent_policy(5, 2, 4))


def test_feedback_of_discrete_actions_is_one_hot():
    tables = random_tables(KEY, 2, 3)
    env = with_feedback(tabular(lambda key: tables, 2, 3, 4))
    policy = categorical_policy(env.num_observations, 3, (4,))
    check_environment(env, policy)
    task = env.sample_task(KEY)
    t = rollout(env, policy, policy.init(KEY), task, KEY, 5)
    np.testing.assert_array_equal(t.observations[1:, :, 2:5], jax.nn.one_hot(t.actions[:-1], 3))


# Bad input


def test_wrong_shapes_are_named():
    env = navigation()
    policy = gaussian_policy(2, 2, (4,))
    with pytest.raises(ValueError, match=r"observation must have shape \(3,\); received \(2,\)"):
        check_environment(env._replace(num_observations=3))
    bad = env._replace(step=lambda s, a: env.step(s, a)._replace(reward=jnp.zeros(1)))
    with pytest.raises(ValueError, match=r"step: reward must have shape \(\); received \(1,\)"):
        check_environment(bad)
    bad = env._replace(step=lambda s, a: env.step(s, a)._replace(done=jnp.zeros(())))
    with pytest.raises(ValueError, match="done must be bool; received float32"):
        check_environment(bad)
    bad = env._replace(reset=lambda k, t: (jnp.zeros(2),))
    with pytest.raises(TypeError, match="reset must return a State"):
        check_environment(bad)
    bad = env._replace(step=lambda s, a: env.step(s, a)._replace(inner=()))
    with pytest.raises(ValueError, match="structure that reset returns"):
        check_environment(bad)
    with pytest.raises(ValueError, match="does not take the environment's observations"):
        check_environment(env, gaussian_policy(3, 2, (4,)))
    with pytest.raises(ValueError, match=r"actions of shape \(2,\).*received \(3,\)"):
        check_environment(env, gaussian_policy(2, 3, (4,)))
    unsummed = policy._replace(unroll=lambda p, x: policy.unroll(p, x[0]))
    with pytest.raises(ValueError, match="one number per action"):
        check_environment(env, unsummed)
    with pytest.raises(ValueError, match="received"):
        reinforcement_problem(env, gaussian_policy(2, 3, (4,)), num_episodes=2)
