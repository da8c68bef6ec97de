"""Advantages and losses of recorded episodes, compared with exact meta-gradients."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_close
from test_reinforcement import KEY, random_tables

from maml_jax import adapt, meta_loss
from maml_jax.networks import Categorical, Gaussian, gaussian_policy, memoryless_policy
from maml_jax.reinforcement import (
    Estimation,
    Samples,
    check_environment,
    inner_objective,
    navigation,
    reinforcement_problem,
    rollout,
    surrogate,
)
from maml_jax.reinforcement import advantages as advantages_lib
from maml_jax.reinforcement.tabular import (
    bandit,
    expected_adapted_return,
    expected_return,
    tabular,
)
from maml_jax.types import Task

# Returns, baseline, advantages


def test_discounted_returns_by_hand():
    rewards = jnp.array([[1.0], [2.0], [3.0]])
    result = advantages_lib.discounted_returns(rewards, 0.5)
    np.testing.assert_allclose(result[:, 0], [2.75, 3.5, 3.0])


@pytest.mark.accelerator
def test_generalized_advantages_by_hand():
    rewards, values = jnp.array([[1.0], [2.0], [0.0]]), jnp.array([[0.5], [1.0], [9.0]])
    alive = jnp.array([[True], [True], [False]])
    result = advantages_lib.generalized_advantages(rewards, values, alive, 0.5, 0.5)
    errors = [1.0 + 0.5 * 1.0 - 0.5, 2.0 - 1.0]  # the value after the episode's end is 0
    np.testing.assert_allclose(result[:, 0], [errors[0] + 0.25 * errors[1], errors[1], 0.0])
    whole = advantages_lib.generalized_advantages(rewards, values, alive, 0.5, 1.0)
    returns = advantages_lib.discounted_returns(rewards, 0.5)
    np.testing.assert_allclose(whole[:2], (returns - values)[:2], rtol=1e-6)


def test_a_time_limit_cannot_be_bootstrapped():
    """The baseline is fitted to returns that end there, and does not value later steps."""
    with pytest.raises(TypeError, match="bootstrap"):
        Estimation(bootstrap=True)


def test_normalized_over_the_steps_before_the_end():
    values = jnp.array([[1.0, 2.0], [3.0, 50.0]])
    alive = jnp.array([[True, True], [True, False]])
    result = advantages_lib.normalized(values, alive)
    assert result[1, 1] == 0
    taken = np.asarray(result)[np.asarray(alive)]
    np.testing.assert_allclose([taken.mean(), taken.std()], [0.0, 1.0], atol=1e-6)


@pytest.mark.accelerator
def test_the_baseline_is_a_ridge_regression_on_the_steps_before_the_end(full_precision):
    env, policy = navigation(horizon=20), gaussian_policy(2, 2, (8,))
    t = rollout(env, policy, policy.init(KEY), jnp.array([0.3, 0.2]), KEY, 8)
    alive = t.alive.at[10:, 3].set(False)
    returns = advantages_lib.discounted_returns(t.rewards, 0.9)
    result = advantages_lib.fit_baseline(t.observations, returns.at[10:, 3].set(1e6), alive)
    table = np.asarray(advantages_lib.features(t.observations), np.float64)[np.asarray(alive)]
    targets = np.asarray(returns, np.float64)[np.asarray(alive)]
    ridge = advantages_lib.RIDGE * np.eye(table.shape[1])
    expected = table @ np.linalg.solve(table.T @ table + ridge, table.T @ targets)
    got = np.asarray(advantages_lib.predict(result, t.observations))[np.asarray(alive)]
    np.testing.assert_allclose(got, expected, atol=2e-3)
    explained = 1 - np.var(targets - expected) / np.var(targets)
    np.testing.assert_allclose(result.explained_variance, explained, atol=1e-3)
    np.testing.assert_allclose(result.ridge, 1e-5)


def test_features():
    observed = jnp.array([[[20.0, -3.0]], [[0.5, 0.0]]])
    result = advantages_lib.features(observed)
    np.testing.assert_allclose(result[0, 0], [10, -3, 100, 9, 0, 0, 0, 1])
    np.testing.assert_allclose(result[1, 0], [0.5, 0, 0.25, 0, 0.01, 1e-4, 1e-6, 1], rtol=1e-6)


def test_ridge_grows_until_the_factorisation_succeeds():
    gram = jnp.diag(jnp.array([1.0, -5e-4]))  # indefinite, as rounding can make it
    weights, ridge = advantages_lib._solve(gram, jnp.ones(2))
    np.testing.assert_allclose(ridge, 1e-3, rtol=1e-5)
    assert np.isfinite(weights).all()
    weights, _ = advantages_lib._solve(jnp.diag(jnp.array([1.0, -5.0])), jnp.ones(2))
    np.testing.assert_array_equal(weights, 0)  # no ridge suffices: no baseline, rather than NaN


# Losses


@pytest.fixture(scope="module")
def recorded():
    """A problem, its parameters and a task."""
    policy = gaussian_policy(2, 2, (8,), activation=jnp.tanh)
    problem = reinforcement_problem(navigation(horizon=10), policy, num_episodes=4)
    params = problem.init(KEY)
    return problem, params, jax.jit(problem.sample)(params, jax.random.key(4))


def test_ratio_is_one_and_divergence_zero_where_the_samples_were_drawn(recorded):
    problem, params, task = recorded
    adapted = problem.learner.adapt(params, task.support)
    loss, metrics = surrogate(problem.policy)(adapted, task.query)
    np.testing.assert_allclose(metrics["ratio"], 1.0, atol=1e-6)
    np.testing.assert_allclose(metrics["kl"], 0.0, atol=1e-6)
    expected = -advantages_lib.masked_mean(task.query.advantages, task.query.alive)
    np.testing.assert_allclose(loss, expected, atol=1e-6)


def test_all_inner_objectives_have_the_same_first_gradient(recorded):
    problem, params, task = recorded
    support = jax.tree.map(lambda x: x[0], task.support)
    grads = [
        jax.grad(inner_objective(problem.policy, form), has_aux=True)(params, support)[0]
        for form in ("likelihood", "lvc", "dice")
    ]
    assert_trees_close(grads[1], grads[0], 1e-5)
    assert_trees_close(grads[2], grads[0], 1e-5)
    with pytest.raises(ValueError, match="the inner objective must be one of"):
        inner_objective(problem.policy, "reinforce")


def test_masked_steps_do_not_count(recorded):
    problem, params, task = recorded
    cut = task.query._replace(
        alive=task.query.alive.at[5:, 1].set(False),
        advantages=task.query.advantages.at[5:, 1].set(0.0),
    )
    other = cut._replace(
        actions=cut.actions.at[5:, 1].add(3.0), observations=cut.observations.at[5:, 1].add(3.0)
    )
    for loss in (inner_objective(problem.policy), surrogate(problem.policy)):
        one, again = (jax.value_and_grad(loss, has_aux=True)(params, x) for x in (cut, other))
        assert_trees_close(one, again, 1e-6)


def test_clipped_surrogate_stops_at_its_bound():
    policy = memoryless_policy(
        lambda key: jnp.zeros(1), lambda p, x: Gaussian(x * 0 + p, jnp.zeros_like(x))
    )
    one = jnp.ones((1, 1, 1))
    samples = Samples(
        one, one * 2, one[..., 0], one[..., 0] > 0, Gaussian(one * 0, one * 0), metrics={}
    )
    far = jnp.array([1.0])  # ratio exp(1.5): beyond the bound, in the direction of improvement
    loss, slope = jax.value_and_grad(lambda p: surrogate(policy, 0.2)(p, samples)[0])(far)
    np.testing.assert_allclose(loss, -1.2, rtol=1e-6)
    np.testing.assert_array_equal(slope, 0.0)


# Against exact meta-gradients


def enumerated(env_horizon, policy, params, tables):
    """Makes samples of all trajectories of a process, weighted by their probabilities.

    The weights multiply the advantages: means over these samples are exact expectations.
    """
    n, num_actions = tables.rewards.shape
    walks = itertools.product(
        *[range(n) for _ in range(env_horizon)], *[range(num_actions) for _ in range(env_horizon)]
    )
    chances = np.asarray(jax.nn.softmax(policy.unroll(params, jnp.eye(n)[None]).logits[0]))
    states, actions, weights = [], [], []
    for walk in walks:
        s, a = walk[:env_horizon], walk[env_horizon:]
        chance = tables.start[s[0]] * np.prod([chances[i, j] for i, j in zip(s, a, strict=True)])
        for t in range(env_horizon - 1):
            chance *= tables.transitions[s[t], a[t], s[t + 1]]
        states.append(s)
        actions.append(a)
        weights.append(float(chance))
    states, actions = np.array(states).T, np.array(actions).T  # [H, walks]
    rewards = np.asarray(tables.rewards)[states, actions]
    to_go = np.cumsum(rewards[::-1], axis=0)[::-1]
    observations = jnp.eye(n)[states]
    return Samples(
        observations,
        jnp.asarray(actions),
        jnp.asarray(to_go * np.array(weights) * len(weights)),
        jnp.ones(actions.shape, bool),
        policy.unroll(params, observations),
        {},
    )


def linear_policy(n, num_actions):
    return memoryless_policy(
        lambda key: jax.random.normal(key, (n, num_actions)), lambda p, x: Categorical(x @ p)
    )


@pytest.mark.parametrize(
    ("horizon", "n", "form", "exact"),
    [
        (1, 1, "lvc", True),
        (1, 1, "dice", True),
        (1, 1, "likelihood", False),
        (2, 2, "dice", True),
        (2, 2, "lvc", False),
        (2, 2, "likelihood", False),
    ],
)
@pytest.mark.accelerator
def test_meta_gradient_against_the_exact_one(x64, horizon, n, form, exact):
    """LVC and DiCE are exact on a bandit, only DiCE on two time steps, the paper's form never."""
    policy, inner_lr = linear_policy(n, 3), 2.0
    params = policy.init(KEY)
    tables = random_tables(jax.random.key(3), n, 3)
    inner = inner_objective(policy, form)
    support = enumerated(horizon, policy, params, tables)
    adapted, _ = adapt(inner, params, support, inner_lr)
    query = enumerated(horizon, policy, adapted, tables)

    def recorded_loss(p):
        return meta_loss(inner, p, Task(support, query), inner_lr, outer_loss=surrogate(policy))[0]

    def exact_return(p):
        return expected_adapted_return(policy, p, tables, horizon, inner_lr)

    result, expected = jax.grad(recorded_loss)(params), jax.grad(exact_return)(params) / horizon
    error = np.abs(result + expected).max() / np.abs(expected).max()
    assert (error < 1e-9) == exact, error


def test_the_exact_return_is_the_mean_return_of_episodes():
    tables = random_tables(jax.random.key(3), 2, 3)
    env = tabular(lambda key: tables, 2, 3, horizon=3)
    policy = linear_policy(2, 3)
    params = policy.init(KEY)
    check_environment(env, policy)
    t = jax.jit(lambda k: rollout(env, policy, params, tables, k, 20_000))(KEY)
    exact = expected_return(policy, params, tables, 3)
    np.testing.assert_allclose(t.returns.mean(), exact, atol=4 * t.returns.std() / 20_000**0.5)
    check_environment(bandit(4), linear_policy(1, 4))
