"""Policies must not learn from rounding, nor from episodes with non-finite values."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax import NonFiniteError, init, make_evaluate_fn, make_train_fn, task_mesh
from maml_jax.networks import Gaussian, gaussian_policy
from maml_jax.reinforcement import (
    Environment,
    Estimation,
    State,
    Trajectories,
    adaptation_returns,
    check_episodes,
    navigation,
    reinforcement_problem,
    sound_returns,
    to_samples,
    trpo,
)
from maml_jax.reinforcement import advantages as advantages_lib
from maml_jax.reinforcement.advantages import credited, discounted_returns

KEY = jax.random.key(0)


def episodes(rewards, alive=None, nonfinite=None):
    """Makes recorded episodes with these rewards [H, E] and random observations."""
    shape = rewards.shape
    alive = jnp.ones(shape, bool) if alive is None else alive
    nonfinite = jnp.zeros(shape[1], bool) if nonfinite is None else nonfinite
    observations = jax.random.normal(jax.random.key(1), (*shape, 2), rewards.dtype)
    zeros = jnp.zeros((*shape, 1), rewards.dtype)
    distribution = Gaussian(zeros, zeros)
    return Trajectories(observations, zeros, rewards, alive, distribution, nonfinite)


@jax.jit
def advantages(rewards, discount, alive=None, nonfinite=None):
    """Computes advantages with and without baseline, and with a baseline but not normalised."""
    t = episodes(rewards, alive, nonfinite)
    ways = ({}, {"use_baseline": False}, {"normalize": False}, {"gae_lambda": 0.9})
    return [to_samples(t, Estimation(discount, **way)).advantages for way in ways]


DTYPES = (jnp.float32, jnp.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("horizon", [1, 1000])
def test_equal_returns_are_no_signal_and_small_differences_are(horizon, dtype):
    """For all baselines: the error of their fit to a constant reward is up to 4 %."""
    with jax.enable_x64(dtype == jnp.float64):
        uniform = jax.random.uniform(KEY, (horizon, 6), dtype)
        # The probabilities of logits sum to 1 within a few roundings.
        rounded = jnp.sum(jax.nn.softmax(jax.random.normal(KEY, (horizon, 6, 9), dtype)), -1)
        by_time = jnp.broadcast_to(uniform[:, :1], uniform.shape)
        assert horizon == 1 or jnp.any(rounded != 1.0)
        for scale, discount in itertools.product((1.0, 1e6, 1e-6, -1.0), (0.99, 1.0)):
            for same in (jnp.ones_like(uniform), rounded, by_time):
                for result in advantages(scale * same, discount):
                    np.testing.assert_array_equal(result, 0)
            for result in advantages(scale * (1.0 + 1e-4 * uniform), discount):
                assert result.dtype == dtype
                assert np.std(result) > 0
            normalized, plain, *_ = advantages(scale * (1.0 + 1e-4 * uniform), discount)
            np.testing.assert_allclose([np.std(normalized), np.std(plain)], 1.0, rtol=1e-3)


def test_differences_that_are_a_signal():
    ones, lengths = jnp.ones((5, 3)), jnp.array([5, 5, 3])
    alive = jnp.arange(5)[:, None] < lengths
    has_signal = jax.jit(advantages_lib.has_signal)
    assert not has_signal(ones, jnp.ones((5, 3), bool), 0.9)
    # A longer episode has a larger return.
    assert has_signal(jnp.where(alive, 1.0, 0.0), alive, 0.9)
    one = ones[:, :1]  # a single episode has nothing to compare with
    assert not has_signal(one, one > 0, 0.9)
    assert has_signal(one.at[2].set(1.001), one > 0, 0.9)
    late = jnp.zeros((5, 3)).at[0, 1].set(1e-3).at[4].set(1e6)  # below the rounding of the return
    assert not has_signal(late, jnp.ones((5, 3), bool), 1.0)
    early = jnp.zeros((5, 3)).at[4, 1].set(1e-3).at[0].set(1e6)
    assert has_signal(early, jnp.ones((5, 3), bool), 1.0)


def test_plain_returns_are_unchanged():
    """Without baseline and normalisation: dropping small ones would bias the gradient."""
    t = episodes(jnp.ones((3, 2)))
    plain = Estimation(1.0, use_baseline=False, normalize=False)
    result = jax.jit(lambda: to_samples(t, plain).advantages)()
    np.testing.assert_array_equal(result[:, 0], [3, 2, 1])


def test_explained_variance_does_not_depend_on_the_scale_of_rewards():
    rewards = jax.random.normal(KEY, (5, 4))
    estimate = jax.jit(lambda rewards: to_samples(episodes(rewards)))
    large, small = estimate(rewards), estimate(1e-6 * rewards)
    expected = large.metrics["explained_variance"]
    assert 0.1 < expected < 0.99
    np.testing.assert_allclose(small.metrics["explained_variance"], expected, rtol=1e-2)


def constant(env):
    step = lambda state, action: env.step(state, action)._replace(reward=jnp.ones(()))
    return env._replace(step=step)


def test_no_advantages_without_a_signal():
    """For a whole problem; test_meta_updates.py checks that there is then no step."""
    policy = gaussian_policy(2, 2, (4,))
    problem = reinforcement_problem(constant(navigation(horizon=4)), policy, num_episodes=3)
    task = jax.jit(problem.sample)(problem.init(KEY), KEY)
    for samples in task:
        np.testing.assert_array_equal(samples.advantages, 0)
        np.testing.assert_array_equal(samples.metrics["gradient_norm"], 0)


# Episodes with non-finite values


def test_the_reward_of_a_non_finite_step():
    rewards = jnp.array([[-1.0, 5.0, 1.0], [-3.0, 0.0, 1.0], [2.0, 0.0, 1.0], [2.0, 0.0, 1.0]])
    alive = jnp.array([[True] * 3, [True] * 3, [True, False, True], [True, False, True]])
    blown = jnp.array([False, True, False])
    result = credited(rewards, alive, blown, 0.5)
    np.testing.assert_array_equal(result[:, [0, 2]], rewards[:, [0, 2]])
    np.testing.assert_allclose(result[:, 1], [-3.0, -3.0 * (1.0 + 1.0 + 0.5 + 0.25), 0.0, 0.0])
    t = episodes(rewards, alive, blown)
    np.testing.assert_allclose(t.returns, [0.0, -3.0 * 5, 4.0])
    samples = jax.jit(to_samples)(t)
    np.testing.assert_allclose(samples.metrics["return"], (0.0 - 15.0 + 4.0) / 3, rtol=1e-6)
    gains = jnp.abs(rewards)  # the smallest value of continuing is then zero, at the end
    np.testing.assert_array_equal(credited(gains, alive, blown, 0.5)[:, 1], 0.0)


def test_a_non_finite_episode_is_never_better():
    """Compared with every finite episode, from every step: costs, gains, both; any discount."""
    rng = np.random.default_rng(0)
    worth = jax.jit(lambda *args: discounted_returns(credited(*args), args[-1]))
    for low, high, discount in itertools.product((-2.0, 0.5), (-0.1, 3.0), (0.0, 0.7, 1.0)):
        for _ in range(20):
            horizon, count = 6, 5
            lengths = rng.integers(1, horizon + 1, count)
            blown = rng.random(count) < 0.5
            alive = np.arange(horizon)[:, None] < lengths
            rewards = np.where(alive, rng.uniform(low, max(high, low), alive.shape), 0.0)
            rewards[lengths[blown] - 1, np.flatnonzero(blown)] = 0.0
            returns = np.asarray(worth(rewards, alive, blown, discount))
            for b, s in itertools.product(np.flatnonzero(blown), np.flatnonzero(~blown)):
                both = alive[:, b]  # also after the end of the finite episode, with value 0
                assert np.all(returns[both, b] <= returns[both, s] + 1e-5)
                last = lengths[b] - 1
                if rewards.min() < 0:
                    assert returns[last, b] < returns[last, s]


def test_a_task_without_rewards_has_no_return():
    """A return of 0, the empty sum, would be navigation's best."""
    zeros, all_blown = jnp.zeros((4, 3)), jnp.ones(3, bool)
    at_reset, at_once = jnp.zeros((4, 3), bool), jnp.zeros((4, 3), bool).at[0].set(True)
    for alive in (at_reset, at_once):
        t = episodes(zeros, alive, all_blown)
        assert np.isnan(t.returns).all()
        np.testing.assert_array_equal(jax.jit(to_samples)(t).advantages, 0)
    ended = episodes(zeros, at_reset)  # at the goal from the start
    np.testing.assert_array_equal(ended.returns, 0)


def explosive(kind):
    """Large actions give NaN: at once, where other actions cost 1, or after a large gain."""

    def state(reward, limit, armed):
        observation = jnp.where(jnp.isnan(reward), jnp.nan, jnp.ones(1))
        return State(observation, reward, jnp.zeros((), bool), (limit, armed))

    def step(before, action):
        limit, armed = before.inner
        large = action[0] > limit
        if kind == "cost":
            return state(jnp.where(large, jnp.nan, -1.0), limit, armed)
        reward = jnp.where(armed, jnp.nan, jnp.where(large, 100.0, 1.0))
        return state(reward, limit, armed | large)

    return Environment(
        sample_task=lambda key: jnp.ones(()),
        reset=lambda key, task: state(jnp.zeros(()), task, jnp.zeros((), bool)),
        step=step,
        num_observations=1,
        num_actions=1,
        horizon=5,
        task_features=lambda task: task[None],
    )


@pytest.mark.parametrize("kind", ["cost", pytest.param("gain", marks=pytest.mark.slow)])
def test_trpo_learns_to_avoid_non_finite_states(kind):
    policy = gaussian_policy(1, 1, (4,))
    problem = reinforcement_problem(explosive(kind), policy, num_episodes=20, num_inner_steps=0)
    update = trpo(problem, max_kl=0.05, conjugate_steps=4)
    mesh = task_mesh(4, jax.devices()[:1])
    train = make_train_fn(problem.sample, update, num_tasks=4, num_meta_steps=15, mesh=mesh)
    _, metrics = train(init(problem.init(KEY), update, 0))
    share = np.asarray(metrics["after"]["nonfinite"])
    assert share[0] > 0.4
    assert share[-3:].mean() < 0.15
    if kind == "cost":  # -6 for a non-finite episode, -5 for a finite one
        np.testing.assert_allclose(metrics["after"]["return"], -5.0 - share, rtol=1e-5)
    assert "% of the episodes after adaptation blew up" in check_episodes(metrics)


def test_a_warning_before_all_episodes_are_non_finite():
    def metrics(before, after):
        shares = {"before": before, "after": after}
        return {when: {"nonfinite": jnp.array([0.0, share])} for when, share in shares.items()}

    assert check_episodes(metrics(0.0, 0.04)) is None
    assert check_episodes(metrics(0.06, 0.07)).startswith("7 % of the episodes after adaptation")
    with pytest.raises(NonFiniteError, match="every episode before adaptation"):
        check_episodes(metrics(1.0, 0.5))


def test_an_evaluation_counts_non_finite_episodes():
    policy = gaussian_policy(1, 1, (4,))
    problem = reinforcement_problem(explosive("cost"), policy, num_episodes=20)
    evaluate = make_evaluate_fn(functools.partial(adaptation_returns, problem, num_updates=0))
    tasks = jnp.ones(2), jax.random.split(KEY, 2)
    result = evaluate(policy.init(KEY), tasks, 0.1).per_task
    assert np.all(result["nonfinite"] > 0)
    np.testing.assert_allclose(result["return"], -5.0 - result["nonfinite"], rtol=1e-5)
    # A task with half of its episodes non-finite has no return, rather than a misleading one.
    half = {"return": jnp.array([-3.0, 0.0, -1.0]), "nonfinite": jnp.array([0.0, 0.5, 0.1])}
    np.testing.assert_array_equal(sound_returns(half), [-3.0, np.nan, -1.0])
