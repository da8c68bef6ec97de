"""Rollouts: E episodes of one task, of at most H steps each, in one scan of fixed length."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from maml_jax import checks
from maml_jax.networks import Policy
from maml_jax.reinforcement.advantages import worst_reward
from maml_jax.reinforcement.checks import checked
from maml_jax.reinforcement.environment import Environment, State
from maml_jax.types import Array, Params, PyTree


class Trajectories(NamedTuple):
    """E recorded episodes of one task, time axis first.

    Attributes:
        observations: observations before each step [H, E, O].
        actions: actions [H, E, A], or [H, E] if discrete.
        rewards: rewards [H, E]; 0 after an episode's end, and for a step that blew up.
        alive: mask of the steps taken, bool [H, E]: True up to the last step of an episode.
        distribution: distribution that the actions were drawn from, leaves [H, E, ...].
        nonfinite: whether the episode blew up, bool [E]: the environment returned a non-finite
            observation or reward. Such an episode ends there; `advantages.credited` sets its
            rewards.

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.networks import Gaussian
        >>> from maml_jax.reinforcement import Trajectories
        >>> zeros = jnp.zeros((2, 2, 1))  # [H, E, A]
        >>> rewards = jnp.array([[-1.0, -2.0], [-1.5, 0.0]])
        >>> alive = jnp.array([[True, True], [True, False]])
        >>> nonfinite = jnp.zeros(2, bool)
        >>> t = Trajectories(zeros, zeros, rewards, alive, Gaussian(zeros, zeros), nonfinite)
        >>> t.returns.tolist()
        [-2.5, -2.0]
    """

    observations: Array
    actions: Array
    rewards: Array
    alive: Array
    distribution: Any
    nonfinite: Array

    @property
    def returns(self) -> Array:
        """Undiscounted return of each episode [E].

        An episode that blew up gets a penalty: H + 1 times the worst reward of the task's episodes
        or 0, whichever is lower (`advantages.credited`). All returns are NaN if every episode blew
        up before its first reward.
        """
        no_rewards = jnp.all(self.nonfinite & (jnp.sum(self.alive, axis=0) <= 1))
        penalty = (1 + self.rewards.shape[0]) * worst_reward(self.rewards)
        returns = jnp.where(self.nonfinite, penalty, jnp.sum(self.rewards, axis=0))
        return jnp.where(no_rewards, jnp.nan, returns)


def rollout(
    env: Environment,
    policy: Policy,
    params: Params,
    task: PyTree,
    key: Array,
    num_episodes: int,
) -> Trajectories:
    """Plays E episodes of one task, without derivatives.

    The state of an episode stays constant after its end: no value computed there, finite or not,
    reaches a recorded step.

    Args:
        env: the environment.
        policy: a policy with or without memory; each episode has a separate memory.
        params: parameters of the policy.
        task: a task of the environment.
        key: PRNG key of the episodes.
        num_episodes: E.

    Returns:
        The recorded episodes; gradients stop there.

    Raises:
        ValueError: a count below 1, a task unlike those of `sample_task`, or an error of
            `check_environment`.
        TypeError: a count is not an integer, or an error of `check_environment`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from maml_jax.networks import gaussian_policy
        >>> from maml_jax.reinforcement import navigation, rollout
        >>> env, policy = navigation(horizon=3), gaussian_policy(2, 2, hidden_sizes=())
        >>> @jax.jit
        ... def play(goal, key):
        ...     return rollout(env, policy, policy.init(key), goal, key, num_episodes=2)
        >>> trajectories = play(jnp.array([0.3, 0.4]), jax.random.key(0))
        >>> trajectories.observations.shape, trajectories.rewards.shape  # [H, E, O] and [H, E]
        ((3, 2, 2), (3, 2))
    """
    checks.check_counts(num_episodes=num_episodes)
    env = checked(env)
    expected = jax.eval_shape(env.sample_task, jax.random.key(0))
    checks.check_fits(
        "task", expected, task, "Pass a task like those of the environment's sample_task."
    )
    params = jax.lax.stop_gradient(params)
    reset_key, action_key = jax.random.split(key)
    states = jax.vmap(env.reset, (0, None))(jax.random.split(reset_key, num_episodes), task)
    memory = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (num_episodes, *jnp.shape(x))), policy.start()
    )
    act, step = jax.vmap(policy.act, (None, 0, 0)), jax.vmap(env.step)

    def body(carry, step_key):
        state, memory, alive, nonfinite = carry
        distribution, memory = act(params, state.observation, memory)
        actions = distribution.sample(step_key)
        after = step(state, actions)
        finite = _finite(after)
        rewards = jnp.where(alive & finite, after.reward, 0.0)
        going = alive & finite & ~after.done
        moved = alive & finite
        recorded = (state.observation, actions, rewards, alive, distribution)
        nonfinite = nonfinite | (alive & ~finite)
        return (_where(moved, after, state), memory, going, nonfinite), recorded

    sound = _finite(states)
    states = states._replace(observation=jnp.where(sound[:, None], states.observation, 0.0))
    carry = (states, memory, sound & ~states.done, ~sound)
    steps = jax.random.split(action_key, env.horizon)
    (_, _, _, nonfinite), recorded = jax.lax.scan(body, carry, steps)
    return jax.lax.stop_gradient(Trajectories(*recorded, nonfinite=nonfinite))


def _finite(state: State) -> Array:
    """Tests whether the observation and reward of each episode are finite, bool [E]."""
    return jnp.isfinite(state.reward) & jnp.all(jnp.isfinite(state.observation), axis=-1)


def _where(condition: Array, new: State, old: State) -> State:
    """Selects the new state of episodes where the condition holds, and the old state elsewhere."""

    def choose(a: Array, b: Array) -> Array:
        return jnp.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, new, old)
