"""Meta-reinforcement learning: what is recorded, what is estimated, and what bad input is told."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_close

from maml_jax import NonFiniteError, adapt, meta_loss
from maml_jax.networks import (
    Categorical,
    Gaussian,
    categorical_policy,
    gaussian_policy,
    memoryless_policy,
    recurrent_policy,
)
from maml_jax.reinforcement import (
    Environment,
    Estimation,
    Samples,
    State,
    check_environment,
    check_episodes,
    informed,
    inner_objective,
    navigation,
    reinforcement_problem,
    rollout,
    surrogate,
    to_samples,
    with_feedback,
)
from maml_jax.reinforcement import advantages as advantages_lib
from maml_jax.reinforcement.tabular import (
    Tables,
    bandit,
    expected_adapted_return,
    expected_return,
    tabular,
)
from maml_jax.types import Task

KEY = jax.random.key(0)


def counter(ends_at=(3, 5), horizon=6, reward=lambda t: 1.0, blow_up=None):
    """An environment that counts steps; the task says when the episode ends."""

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


def play(env, task, episodes=4, key=KEY, policy=None, horizon=None):
    policy = policy or gaussian_policy(env.num_observations, env.num_actions, (8,))
    params = policy.init(jax.random.key(1))
    return jax.jit(lambda k: rollout(env, policy, params, task, k, episodes, horizon))(key)


# Distributions


def test_gaussian_sums_over_the_actions_elements():
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
def test_unroll_is_act_repeated(make, full_precision):
    policy = make(3, 2)
    params = policy.init(KEY)
    seen = jax.random.normal(KEY, (5, 4, 3))
    whole = policy.unroll(params, seen)
    for episode in range(2):
        memory = policy.start()
        for t in range(5):
            one, memory = policy.act(params, seen[t, episode], memory)
            for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(whole), strict=True):
                np.testing.assert_allclose(a, b[t, episode], rtol=1e-4, atol=1e-6)


def test_log_std_has_a_floor():
    policy = gaussian_policy(2, 2, (4,))
    params = policy.init(KEY)
    params["log_std"] = jnp.full(2, -100.0)
    found, _ = policy.act(params, jnp.zeros(2), ())
    np.testing.assert_allclose(found.log_std, np.log(1e-6), rtol=1e-6)
    with pytest.raises(ValueError, match="initial_std must be above"):
        gaussian_policy(2, 2, initial_std=0.0)


# Rollouts


def test_alive_until_the_end_and_no_step_after_it():
    t = play(counter(), jnp.asarray(3))
    np.testing.assert_array_equal(t.alive[:, 0], [True, True, True, False, False, False])
    np.testing.assert_array_equal(t.rewards[:, 0], [1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(t.returns, [3, 3, 3, 3])
    assert t.terminated.all()
    np.testing.assert_array_equal(t.last_observation[:, 0], [3, 3, 3, 3])
    assert t.observations.shape == (6, 4, 2)  # exactly four episodes of six steps, no reset


def test_a_time_limit_is_not_an_end():
    t = play(counter(), jnp.asarray(100))
    assert t.alive.all()
    assert not t.terminated.any()


def test_what_is_not_finite_ends_the_episode_and_is_counted():
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


def test_an_oracle_is_told_the_task_and_feedback_the_last_step():
    goal = jnp.array([0.2, -0.4])
    env = informed(navigation(horizon=4))
    seen = play(env, goal).observations
    assert env.num_observations == 4
    np.testing.assert_allclose(seen[..., 2:], jnp.broadcast_to(goal, seen[..., 2:].shape))
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


# Returns, baseline, advantages


def test_discounted_returns_by_hand():
    rewards = jnp.array([[1.0], [2.0], [3.0]])
    found = advantages_lib.discounted_returns(rewards, 0.5)
    np.testing.assert_allclose(found[:, 0], [2.75, 3.5, 3.0])
    found = advantages_lib.discounted_returns(rewards, 0.5, jnp.array([8.0]))
    np.testing.assert_allclose(found[:, 0], [3.75, 5.5, 7.0])


@pytest.mark.accelerator
def test_generalized_advantages_by_hand():
    rewards, values = jnp.array([[1.0], [2.0], [0.0]]), jnp.array([[0.5], [1.0], [9.0]])
    alive = jnp.array([[True], [True], [False]])
    found = advantages_lib.generalized_advantages(rewards, values, alive, 0.5, 0.5)
    errors = [1.0 + 0.5 * 1.0 - 0.5, 2.0 - 1.0]  # after the episode's end the value is 0
    np.testing.assert_allclose(found[:, 0], [errors[0] + 0.25 * errors[1], errors[1], 0.0])
    whole = advantages_lib.generalized_advantages(rewards, values, alive, 0.5, 1.0)
    returns = advantages_lib.discounted_returns(rewards, 0.5)
    np.testing.assert_allclose(whole[:2], (returns - values)[:2], rtol=1e-6)


def test_a_time_limit_cannot_be_bootstrapped():
    """The baseline is fitted to returns that end there: its value of what follows is none."""
    with pytest.raises(TypeError, match="bootstrap"):
        Estimation(bootstrap=True)


def test_normalized_over_the_steps_that_were_taken():
    values = jnp.array([[1.0, 2.0], [3.0, 50.0]])
    alive = jnp.array([[True, True], [True, False]])
    found = advantages_lib.normalized(values, alive)
    assert found[1, 1] == 0
    taken = np.asarray(found)[np.asarray(alive)]
    np.testing.assert_allclose([taken.mean(), taken.std()], [0.0, 1.0], atol=1e-6)


@pytest.mark.accelerator
def test_baseline_is_a_ridge_regression_on_the_steps_that_were_taken(full_precision):
    t = play(navigation(horizon=20), jnp.array([0.3, 0.2]), episodes=8)
    alive = t.alive.at[10:, 3].set(False)
    returns = advantages_lib.discounted_returns(t.rewards, 0.9)
    found = advantages_lib.fit_baseline(t.observations, returns.at[10:, 3].set(1e6), alive)
    table = np.asarray(advantages_lib.features(t.observations), np.float64)[np.asarray(alive)]
    targets = np.asarray(returns, np.float64)[np.asarray(alive)]
    ridge = advantages_lib.RIDGE * np.eye(table.shape[1])
    expected = table @ np.linalg.solve(table.T @ table + ridge, table.T @ targets)
    got = np.asarray(advantages_lib.predict(found, t.observations))[np.asarray(alive)]
    np.testing.assert_allclose(got, expected, atol=2e-3)
    explained = 1 - np.var(targets - expected) / np.var(targets)
    np.testing.assert_allclose(found.explained_variance, explained, atol=1e-3)
    np.testing.assert_allclose(found.ridge, 1e-5)


def test_features():
    seen = jnp.array([[[20.0, -3.0]], [[0.5, 0.0]]])
    found = advantages_lib.features(seen)
    np.testing.assert_allclose(found[0, 0], [10, -3, 100, 9, 0, 0, 0, 1])
    np.testing.assert_allclose(found[1, 0], [0.5, 0, 0.25, 0, 0.01, 1e-4, 1e-6, 1], rtol=1e-6)


def test_ridge_grows_until_the_factorisation_succeeds():
    gram = jnp.diag(jnp.array([1.0, -5e-4]))  # indefinite: rounding can do that
    weights, ridge = advantages_lib._solve(gram, jnp.ones(2))
    np.testing.assert_allclose(ridge, 1e-3, rtol=1e-5)
    assert np.isfinite(weights).all()
    weights, _ = advantages_lib._solve(jnp.diag(jnp.array([1.0, -5.0])), jnp.ones(2))
    np.testing.assert_array_equal(weights, 0)  # hopeless: no baseline, rather than NaN


# Losses


@pytest.fixture(scope="module")
def recorded():
    """A problem, parameters and a task of it."""
    policy = gaussian_policy(2, 2, (8,), activation=jnp.tanh)
    problem = reinforcement_problem(navigation(horizon=10), policy, num_episodes=4)
    params = problem.init(KEY)
    return problem, params, jax.jit(problem.sample)(params, jax.random.key(4))


def test_ratio_is_one_and_divergence_zero_where_the_samples_were_drawn(recorded):
    problem, params, task = recorded
    adapted = problem.adapt(params, task)
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
    far = jnp.array([1.0])  # ratio exp(1.5): out of bounds, and better for being so
    loss, slope = jax.value_and_grad(lambda p: surrogate(policy, 0.2)(p, samples)[0])(far)
    np.testing.assert_allclose(loss, -1.2, rtol=1e-6)
    np.testing.assert_array_equal(slope, 0.0)


def test_alpha_does_not_depend_on_the_number_of_tasks(recorded):
    problem, params, _ = recorded
    several = jax.random.split(jax.random.key(9), 5)
    key = several[0]
    adapted = []
    for keys in (several[:1], several):
        tasks = jax.jit(jax.vmap(problem.sample, (None, 0)))(params, keys)
        adapted.append(jax.vmap(problem.adapt, (None, 0))(params, tasks))
    one, five = (jax.tree.map(lambda x: x[0], a) for a in adapted)
    assert_trees_close(one, five, 1e-5)
    moved = jax.tree.map(lambda a, p: a - p, one, params)
    task = problem.sample(params, key)
    support = jax.tree.map(lambda x: x[0], task.support)
    grads = jax.grad(problem.inner_loss, has_aux=True)(params, support)[0]
    assert_trees_close(moved, jax.tree.map(lambda g: -0.1 * g, grads), 1e-5)


# Against exact meta-gradients


def enumerated(env_horizon, policy, params, tables):
    """All trajectories of a process as samples, each weighted by its probability.

    The weight goes into the advantages, so that means over these samples are exact expectations.
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


def random_tables(key, n, num_actions):
    a, b, c = jax.random.split(key, 3)
    return Tables(
        jax.random.normal(a, (n, num_actions)),
        jax.nn.softmax(jax.random.normal(b, (n, num_actions, n))),
        jax.nn.softmax(jax.random.normal(c, (n,))),
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
    """LVC and DiCE are exact on a bandit, DiCE alone on two time steps, the paper's form never."""
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

    found, expected = jax.grad(recorded_loss)(params), jax.grad(exact_return)(params) / horizon
    error = np.abs(found + expected).max() / np.abs(expected).max()
    assert (error < 1e-9) == exact, error


def test_exact_return_is_what_episodes_return():
    tables = random_tables(jax.random.key(3), 2, 3)
    env = tabular(lambda key: tables, 2, 3, horizon=3)
    policy = linear_policy(2, 3)
    params = policy.init(KEY)
    check_environment(env, policy)
    t = jax.jit(lambda k: rollout(env, policy, params, tables, k, 20_000))(KEY)
    exact = expected_return(policy, params, tables, 3)
    np.testing.assert_allclose(t.returns.mean(), exact, atol=4 * t.returns.std() / 20_000**0.5)
    check_environment(bandit(4), linear_policy(1, 4))


# Several inner steps


def test_new_episodes_for_each_inner_step():
    problem = reinforcement_problem(
        navigation(horizon=6), gaussian_policy(2, 2, (4,)), num_episodes=3, num_steps=2
    )
    params = problem.init(KEY)
    task = problem.sample(params, jax.random.key(2))
    first, second = (jax.tree.map(lambda x, i=i: x[i], task.support) for i in range(2))
    assert not np.array_equal(first.actions, second.actions)
    by_hand = params
    for samples in (first, second):
        grads = jax.grad(problem.inner_loss, has_aux=True)(by_hand, samples)[0]
        by_hand = jax.tree.map(lambda p, g: p - 0.1 * g, by_hand, grads)
    assert_trees_close(problem.adapt(params, task), by_hand, 1e-6)
    ratio = surrogate(problem.policy)(by_hand, task.query)[1]["ratio"]
    np.testing.assert_allclose(ratio, 1.0, atol=1e-6)


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
    with pytest.raises(ValueError, match="one number an action"):
        check_environment(env, unsummed)
    with pytest.raises(ValueError, match="received"):
        reinforcement_problem(env, gaussian_policy(2, 3, (4,)), num_episodes=2)
