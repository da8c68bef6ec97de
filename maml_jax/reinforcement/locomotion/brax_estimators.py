"""Brax's policy-gradient estimators, behind the interfaces of `maml_jax.reinforcement`.

Each stands where one of ours does: `brax_advantages` in `Estimation`, `tanh_gaussian_policy` and
`squashed` for a policy with bounded actions, `brax_ppo_loss` as a problem's outer loss.
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
    """Advantages by `brax.training`; arguments as `advantages.generalized_advantages`.

    Brax's differ from the textbook's: the lambda return of the following state takes the place of
    its value, `r + discount * v_lambda(s') - v(s)`, which is the same only for `gae_lambda` 1.
    """
    following = jnp.concatenate([alive[1:], alive[-1:]])
    advantages = ppo_losses.compute_gae(
        truncation=jnp.zeros_like(rewards),
        termination=(~following).astype(rewards.dtype),
        rewards=rewards,
        values=jnp.where(alive, values, 0.0),
        bootstrap_value=jnp.zeros_like(values[0]),
        lambda_=gae_lambda,  # type: ignore[arg-type]
        discount=discount,
    )[1]
    return jnp.where(alive, advantages, 0.0)


class NormalTanh(NamedTuple):
    """Brax's normal distribution followed by tanh; an action is what goes into the tanh.

    Attributes:
        parameters: means, then what the softplus turns into deviations [..., 2 A].
    """

    parameters: Array

    @property
    def brax(self) -> NormalTanhDistribution:
        """Brax's object, which holds no numbers."""
        return NormalTanhDistribution(event_size=self.parameters.shape[-1] // 2)

    @property
    def before_tanh(self) -> Gaussian:
        """The normal distribution."""
        normal = self.brax.create_dist(self.parameters)
        return Gaussian(normal.loc, jnp.log(normal.scale))

    def sample(self, key: Array) -> Array:
        """An action before the tanh [..., A]."""
        return self.brax.sample_no_postprocessing(self.parameters, key)

    def log_prob(self, actions: Array) -> Array:
        """Log-density of what comes out of the tanh, nats [...]."""
        return self.brax.log_prob(self.parameters, actions)

    def kl(self, other: NormalTanh) -> Array:
        """KL(self || other), nats [...]; the tanh does not change it."""
        return self.before_tanh.kl(other.before_tanh)

    def entropy(self) -> Array:
        """Entropy before the tanh, nats [...]."""
        return self.before_tanh.entropy()


def tanh_gaussian_policy(
    num_observations: int,
    num_actions: int,
    hidden_sizes: Sequence[int] = (100, 100),
    *,
    activation: Callable[[Array], Array] = jax.nn.relu,
    initializer: str = "glorot_uniform",
) -> Policy:
    """An MLP whose outputs are mean and deviation of Brax's `NormalTanh`; with `squashed`."""
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
    """The environment behind a tanh: for policies whose actions are those before it."""

    def step(state: State, action: Array) -> State:
        return env.step(state, jnp.tanh(action))

    return env._replace(step=step)


class _Network(NamedTuple):
    """What Brax's loss asks of a network."""

    apply: Callable[..., Array]


class _Networks(NamedTuple):
    parametric_action_distribution: NormalTanhDistribution
    policy_network: _Network
    value_network: _Network


class _Params(NamedTuple):
    policy: Array
    value: tuple[()]


def brax_ppo_loss(policy: Policy, clip: float = 0.3, entropy_cost: float = 0.0) -> LossFn:
    """Brax's clipped loss with its entropy bonus, as the outer loss of a problem.

    Our advantages are handed to it as rewards, with a value function of 0 and no discount, so that
    they are not estimated anew; steps that were not taken are left out of its mean.

    Args:
        policy: from `tanh_gaussian_policy`.
        clip: epsilon of the likelihood ratio.
        entropy_cost: weight of the entropy, 0 or more, which Brax estimates from noise of a fixed
            key, and averages over all steps, those that were not taken included.

    Returns:
        A loss with the metrics of `surrogate`.

    Raises:
        ValueError: a number out of its range.
    """
    ours = surrogate(policy, clip)
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
        return value, ours(params, samples)[1]

    return loss


def _transition(samples: Samples, distribution: NormalTanh, alive: Array, share: Array) -> Any:
    """Recorded episodes as Brax has them: episodes first; ratios of 1 where no step was taken."""
    from brax.training.types import Transition

    advantages = samples.advantages * alive / jnp.maximum(share, 1e-8)
    zeros = jnp.zeros_like(advantages)
    now = jax.lax.stop_gradient(distribution.log_prob(samples.actions))
    behaviour = jnp.where(alive > 0, samples.distribution.log_prob(samples.actions), now)
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
