"""Brax's policy-gradient estimators with the interfaces of `maml_jax.reinforcement`.

Use `brax_advantages` in `Estimation`, `tanh_gaussian_policy` with `squashed` for bounded actions,
and `brax_ppo_loss` as the outer loss of a problem.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from brax.training.agents.ppo import losses as ppo_losses
from brax.training.distribution import NormalTanhDistribution

from maml_jax.networks import Gaussian, Policy, memoryless_policy, mlp
from maml_jax.reinforcement.checks import check_number
from maml_jax.reinforcement.environment import Environment, State
from maml_jax.reinforcement.objectives import Samples, surrogate
from maml_jax.types import Array, LossFn, Params


def brax_advantages(
    rewards: Array, values: Array, alive: Array, discount: float, gae_lambda: float
) -> Array:
    """Estimates advantages by `brax.training`, as the `advantages` of an `Estimation`.

    Brax's advantages are `r + discount * v_lambda(s') - v(s)`: the lambda return of the next state
    replaces its value. They equal `advantages.generalized_advantages` only for `gae_lambda` 1.

    Args:
        rewards: [H, E], 0 after an episode's end.
        values: value of the state before each step [H, E].
        alive: mask of the steps taken, bool [H, E].
        discount: gamma, from 0 to 1.
        gae_lambda: lambda, from 0 to 1.

    Returns:
        Advantages [H, E], 0 after an episode's end.

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.reinforcement.locomotion import brax_advantages
        >>> rewards, alive = jnp.ones((2, 1)), jnp.ones((2, 1), bool)
        >>> brax_advantages(rewards, jnp.zeros((2, 1)), alive, 0.5, 1.0).tolist()
        [[1.5], [1.0]]
    """
    next_alive = jnp.concatenate([alive[1:], alive[-1:]])
    advantages = ppo_losses.compute_gae(
        truncation=jnp.zeros_like(rewards),
        termination=(~next_alive).astype(rewards.dtype),
        rewards=rewards,
        values=jnp.where(alive, values, 0.0),
        bootstrap_value=jnp.zeros_like(values[0]),
        lambda_=gae_lambda,  # type: ignore[arg-type]
        discount=discount,
    )[1]
    return jnp.where(alive, advantages, 0.0)


class NormalTanh(NamedTuple):
    """Brax's normal distribution with a tanh; its actions are the values before the tanh.

    Attributes:
        parameters: means, then standard deviations before their softplus [..., 2 A].

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from maml_jax.reinforcement.locomotion import NormalTanh
        >>> distribution = NormalTanh(jnp.zeros((3, 4)))
        >>> actions = distribution.sample(jax.random.key(0))
        >>> actions.shape, distribution.log_prob(actions).shape
        ((3, 2), (3,))
    """

    parameters: Array

    @property
    def brax(self) -> NormalTanhDistribution:
        """Brax's distribution object, without parameters."""
        return NormalTanhDistribution(event_size=self.parameters.shape[-1] // 2)

    @property
    def before_tanh(self) -> Gaussian:
        """The normal distribution before the tanh."""
        normal = self.brax.create_dist(self.parameters)
        return Gaussian(normal.loc, jnp.log(normal.scale))

    def sample(self, key: Array) -> Array:
        """Draws actions before the tanh [..., A]."""
        return self.brax.sample_no_postprocessing(self.parameters, key)

    def log_prob(self, actions: Array) -> Array:
        """Returns the log-density of the actions after the tanh, nats [...]."""
        return self.brax.log_prob(self.parameters, actions)

    def kl(self, other: NormalTanh) -> Array:
        """Returns KL(self || other), nats [...]; the tanh does not change it."""
        return self.before_tanh.kl(other.before_tanh)

    def entropy(self) -> Array:
        """Returns the entropy before the tanh, nats [...]."""
        return self.before_tanh.entropy()


def tanh_gaussian_policy(
    num_observations: int,
    num_actions: int,
    hidden_sizes: Sequence[int] = (100, 100),
    *,
    activation: Callable[[Array], Array] = jax.nn.relu,
    initializer: str = "glorot_uniform",
) -> Policy:
    """Makes an MLP policy with `NormalTanh` actions, for an environment from `squashed`.

    Args:
        num_observations: O.
        num_actions: A.
        hidden_sizes: units of each hidden layer.
        activation: activation after each hidden layer.
        initializer: initializer of the weights, a name in `networks.mlp.INITIALIZERS`.

    Raises:
        ValueError: a size below 1, or an unknown initializer.
        TypeError: a size is not an integer, or `hidden_sizes` is not a sequence.

    Example:
        >>> from maml_jax.reinforcement import check_environment, navigation
        >>> from maml_jax.reinforcement.locomotion import squashed, tanh_gaussian_policy
        >>> policy = tanh_gaussian_policy(2, 2, hidden_sizes=(4,))
        >>> check_environment(squashed(navigation()), policy)
    """
    network = mlp(
        num_observations,
        2 * num_actions,
        hidden_sizes,
        activation=activation,
        initializer=initializer,
    )

    def distribution(params: Params, observations: Array) -> NormalTanh:
        return NormalTanh(network.apply(params, observations))

    return memoryless_policy(network.init, distribution)


def squashed(env: Environment) -> Environment:
    """Applies tanh to the actions of an environment, for policies that act before the tanh.

    Args:
        env: an environment with continuous actions.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from maml_jax.reinforcement import navigation
        >>> from maml_jax.reinforcement.locomotion import squashed
        >>> env = squashed(navigation())
        >>> state = env.reset(jax.random.key(0), jnp.zeros(2))
        >>> state = env.step(state, jnp.array([0.5, -0.5]))  # moves 0.1 tanh(0.5) units
        >>> [round(x, 3) for x in state.observation.tolist()]
        [0.046, -0.046]
    """

    def step(state: State, action: Array) -> State:
        return env.step(state, jnp.tanh(action))

    return env._replace(step=step)


class _Network(NamedTuple):
    """A network with the interface of Brax's loss."""

    apply: Callable[..., Array]


class _Networks(NamedTuple):
    parametric_action_distribution: NormalTanhDistribution
    policy_network: _Network
    value_network: _Network


class _Params(NamedTuple):
    policy: Array
    value: tuple[()]


def brax_ppo_loss(policy: Policy, clip: float = 0.3, entropy_cost: float = 0.0) -> LossFn:
    """Makes Brax's clipped PPO loss with its entropy bonus, as the outer loss of a problem.

    Passes the samples' advantages as rewards, with values of 0 and no discount, so that Brax does
    not estimate them again. Its clipped mean excludes steps after an episode's end.

    Args:
        policy: a policy from `tanh_gaussian_policy`.
        clip: epsilon of the clipped likelihood ratio.
        entropy_cost: weight of the entropy, 0 or more. Brax estimates the entropy with noise from a
            fixed key, and averages it over all H steps.

    Returns:
        `loss(params, samples) -> (scalar, metrics)` with the metrics of `surrogate`.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> from maml_jax.reinforcement import navigation, reinforcement_problem
        >>> from maml_jax.reinforcement.locomotion import (
        ...     brax_ppo_loss, squashed, tanh_gaussian_policy
        ... )
        >>> env, policy = squashed(navigation()), tanh_gaussian_policy(2, 2, hidden_sizes=(4,))
        >>> loss = brax_ppo_loss(policy, clip=0.2, entropy_cost=1e-3)
        >>> problem = reinforcement_problem(env, policy, num_episodes=2, outer_loss=loss)
        >>> problem.outer_loss is loss
        True
    """
    plain_loss = surrogate(policy, clip)
    check_number(
        "entropy_cost", entropy_cost, "of 0 or more and finite", lambda x: 0 <= x < math.inf
    )

    def loss(params: Params, samples: Samples) -> tuple[Array, Mapping[str, Any]]:
        distribution: NormalTanh = policy.unroll(params, samples.observations)
        alive = samples.alive.astype(samples.advantages.dtype)
        share = jnp.mean(alive)
        networks: Any = _Networks(
            distribution.brax,
            _Network(lambda normalizer, parameters, observations: parameters),
            _Network(
                lambda normalizer, parameters, observations: jnp.zeros(observations.shape[:-1])
            ),
        )
        value, _ = ppo_losses.compute_ppo_loss(
            _Params(distribution.parameters, ()),  # type: ignore[arg-type]
            None,
            _transition(samples, distribution, alive, share),
            jax.random.key(0),
            networks,
            entropy_cost=entropy_cost,
            discounting=0.0,
            gae_lambda=0.0,
            clipping_epsilon=clip,
            normalize_advantage=False,
            vf_coefficient=0.0,
        )
        return value, plain_loss(params, samples)[1]

    return loss


def _transition(samples: Samples, distribution: NormalTanh, alive: Array, share: Array) -> Any:
    """Converts samples to Brax's format: episode axis first, ratios of 1 after an episode's end."""
    from brax.training.types import Transition

    advantages = samples.advantages * alive / jnp.maximum(share, 1e-8)
    zeros = jnp.zeros_like(advantages)
    current = jax.lax.stop_gradient(distribution.log_prob(samples.actions))
    behaviour = jnp.where(alive > 0, samples.distribution.log_prob(samples.actions), current)
    data: Any = Transition(
        observation=samples.observations,
        action=samples.actions,
        reward=advantages,
        discount=zeros,
        next_observation=samples.observations,
        extras={  # type: ignore[arg-type]
            "state_extras": {"truncation": zeros},
            "policy_extras": {
                "raw_action": samples.actions,
                "log_prob": behaviour,
                "distribution_params": samples.distribution.parameters,
            },
        },
    )
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), data)
