"""Episodes of one task: exactly E of them, each of at most H steps, in one fixed-length scan."""

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
    """E recorded episodes of one task, time first.

    Attributes:
        observations: before each step [H, E, O].
        actions: [H, E, A], or [H, E] if discrete.
        rewards: [H, E]; 0 for steps that were not taken, and for those that blew up.
        alive: whether the step was taken, bool [H, E]: True from the first step to the last one.
        distribution: that the actions were drawn from, leaves [H, E, ...].
        nonfinite: whether the episode blew up, bool [E]: the environment returned an observation or
            a reward that is not finite. The episode ends there, and counts as
            `advantages.credited` says.
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

        The sum of its rewards; for an episode that blew up H + 1 times the worst reward of the
        task's episodes, or 0 if that is less (`advantages.credited`). NaN where every episode blew
        up before it got a reward, so that there is nothing to go by.
        """
        none = jnp.all(self.nonfinite & (jnp.sum(self.alive, axis=0) <= 1))
        blown = (1 + self.rewards.shape[0]) * worst_reward(self.rewards)
        returns = jnp.where(self.nonfinite, blown, jnp.sum(self.rewards, axis=0))
        return jnp.where(none, jnp.nan, returns)


def rollout(
    env: Environment,
    policy: Policy,
    params: Params,
    task: PyTree,
    key: Array,
    num_episodes: int,
) -> Trajectories:
    """Plays E episodes of one task; nothing in the result can be differentiated.

    An episode that has ended stands still: its state no longer changes, so that nothing that comes
    after its end, finite or not, can reach another step.

    Args:
        env: the environment.
        policy: with or without memory; each episode has a memory of its own.
        params: of the policy.
        task: of the environment.
        key: PRNG key of these episodes.
        num_episodes: E.

    Raises:
        ValueError: a count below 1, a task that is not like those of the environment, or an action
            or a state that is not, as `check_environment`.
    """
    checks.check_counts(num_episodes=num_episodes)
    env = checked(env)
    expected = jax.eval_shape(env.sample_task, jax.random.key(0))
    checks.check_fits(
        "task", expected, task, "Tasks are what the environment's sample_task returns."
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
    """Whether observation and reward of each episode are finite: bool [E]."""
    return jnp.isfinite(state.reward) & jnp.all(jnp.isfinite(state.observation), axis=-1)


def _where(condition: Array, new: State, old: State) -> State:
    """The new state of the episodes for which the condition holds, the old one of the others."""

    def choose(a: Array, b: Array) -> Array:
        return jnp.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, new, old)
