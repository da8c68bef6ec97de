"""Policies: networks that map observations to distributions of actions.

Rollouts call `act`, for one time step of one episode. Estimators call `unroll`, for all time steps
of recorded episodes. Both must return the same distributions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from maml_jax import checks
from maml_jax.kernels.products import dot_general
from maml_jax.networks.distributions import Categorical, Distribution, Gaussian
from maml_jax.networks.mlp import Network, mlp
from maml_jax.types import Array, Params, PyTree

STD_FLOOR = 1e-6  # the original code's value, in units of the action


class Policy(NamedTuple):
    """A policy as four pure functions, with or without memory.

    Attributes:
        init: `init(key) -> params`.
        start: `start() -> memory`, any pytree: the memory before the first step of an episode; `()`
            for a policy without memory.
        act: `act(params, observation, memory) -> (distribution, memory)` for one time step:
            observation [O], a distribution without batch axes.
        unroll: `unroll(params, observations) -> distribution` for whole episodes: observations
            [H, E, O], a distribution with leading axes [H, E].

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.networks import Gaussian, Policy
        >>> policy = Policy(
        ...     init=lambda key: jnp.zeros(2),
        ...     start=lambda: (),
        ...     act=lambda params, x, memory: (Gaussian(params * x, jnp.zeros(2)), memory),
        ...     unroll=lambda params, x: Gaussian(params * x, jnp.zeros(2)),
        ... )
        >>> distribution, memory = policy.act(jnp.ones(2), jnp.array([1.0, 3.0]), policy.start())
        >>> distribution.mean.tolist()
        [1.0, 3.0]
    """

    init: Callable[[Array], Params]
    start: Callable[[], PyTree]
    act: Callable[[Params, Array, PyTree], tuple[Any, PyTree]]
    unroll: Callable[[Params, Array], Any]


def memoryless_policy(
    init: Callable[[Array], Params], distribution: Callable[[Params, Array], Distribution]
) -> Policy:
    """Makes a policy whose actions depend on the current observation alone.

    Args:
        init: `init(key) -> params`.
        distribution: `distribution(params, observations) -> Distribution`, any leading axes.

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.networks import Categorical, memoryless_policy
        >>> policy = memoryless_policy(
        ...     init=lambda key: jnp.zeros((3, 4)),
        ...     distribution=lambda params, observations: Categorical(observations @ params),
        ... )
        >>> policy.unroll(jnp.zeros((3, 4)), jnp.ones((10, 2, 3))).logits.shape  # [H, E, A]
        (10, 2, 4)
    """
    return Policy(
        init,
        lambda: (),
        lambda params, observation, memory: (distribution(params, observation), memory),
        distribution,
    )


def gaussian_policy(
    num_observations: int,
    num_actions: int,
    hidden_sizes: Sequence[int] = (100, 100),
    *,
    activation: Callable[[Array], Array] = nn.relu,
    initializer: str = "glorot_uniform",
    initial_std: float = 1.0,
) -> Policy:
    """Builds the paper's policy (section 5.3): an MLP for the mean, a parameter for the deviation.

    The logarithm of the standard deviation does not depend on the observation. The inner loop
    adapts it like all parameters. `STD_FLOOR` bounds the deviation from below, as in the original
    code.

    Args:
        num_observations: O.
        num_actions: A.
        hidden_sizes: units of each hidden layer.
        activation: follows each hidden layer.
        initializer: of the weights, a name in `networks.mlp.INITIALIZERS`.
        initial_std: initial standard deviation, in units of the action.

    Raises:
        ValueError: a size below 1, an unknown initializer, or an `initial_std` that is not finite
            or not above `STD_FLOOR`.
        TypeError: `hidden_sizes` is not a sequence of integers.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from maml_jax.networks import gaussian_policy
        >>> policy = gaussian_policy(num_observations=3, num_actions=2, hidden_sizes=(4,))
        >>> params = policy.init(jax.random.key(0))
        >>> distribution, _ = policy.act(params, jnp.ones(3), policy.start())
        >>> distribution.mean.shape, distribution.log_std.tolist()
        ((2,), [0.0, 0.0])
    """
    network = _network(
        num_observations, num_actions, hidden_sizes, activation=activation, initializer=initializer
    )
    log_std = _initial_log_std(num_actions, initial_std)

    def init(key: Array) -> Params:
        return {"mean": network.init(key), "log_std": log_std}

    def distribution(params: Params, observations: Array) -> Gaussian:
        return _gaussian(network.apply(params["mean"], observations), params["log_std"])

    return memoryless_policy(init, distribution)


def categorical_policy(
    num_observations: int,
    num_actions: int,
    hidden_sizes: Sequence[int] = (100, 100),
    *,
    activation: Callable[[Array], Array] = nn.relu,
    initializer: str = "glorot_uniform",
) -> Policy:
    """Builds a policy over A discrete actions, with an MLP for the logits.

    Arguments and errors are those of `gaussian_policy`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from maml_jax.networks import categorical_policy
        >>> policy = categorical_policy(num_observations=3, num_actions=4, hidden_sizes=())
        >>> params = policy.init(jax.random.key(0))
        >>> distribution, _ = policy.act(params, jnp.ones(3), policy.start())
        >>> distribution.logits.shape
        (4,)
    """
    network = _network(
        num_observations, num_actions, hidden_sizes, activation=activation, initializer=initializer
    )
    return memoryless_policy(network.init, lambda p, x: Categorical(network.apply(p, x)))


def recurrent_policy(
    num_observations: int,
    num_actions: int,
    num_units: int = 64,
    *,
    initial_std: float = 1.0,
) -> Policy:
    """Builds a gated recurrent policy (Cho et al. 2014), for partially observed environments.

    The mean is linear in the memory; the deviation is a parameter, as in `gaussian_policy`.

    Args:
        num_observations: O.
        num_actions: A.
        num_units: size of the memory.
        initial_std: initial standard deviation, in units of the action.

    Raises:
        ValueError: a size below 1, or an `initial_std` that is not finite or not above `STD_FLOOR`.
        TypeError: a size that is not an integer.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from maml_jax.networks import recurrent_policy
        >>> policy = recurrent_policy(num_observations=3, num_actions=2, num_units=4)
        >>> params = jax.eval_shape(policy.init, jax.random.key(0))  # shapes without compiling
        >>> params["cell"]["hn"]["kernel"].shape
        (4, 4)
        >>> jax.eval_shape(policy.unroll, params, jnp.ones((10, 5, 3))).mean.shape  # [H, E, A]
        (10, 5, 2)
    """
    checks.check_counts(
        num_observations=num_observations, num_actions=num_actions, num_units=num_units
    )
    cell = nn.GRUCell(num_units)
    head = nn.Dense(num_actions, dot_general=dot_general)
    log_std = _initial_log_std(num_actions, initial_std)

    def init(key: Array) -> Params:
        cell_key, head_key = jax.random.split(key)
        memory = jnp.zeros((1, num_units))
        return {
            "cell": cell.init(cell_key, memory, jnp.zeros((1, num_observations)))["params"],
            "head": head.init(head_key, memory)["params"],
            "log_std": log_std,
        }

    def act(params: Params, observation: Array, memory: Array) -> tuple[Gaussian, Array]:
        memory, _ = cell.apply({"params": params["cell"]}, memory, observation)
        mean: Any = head.apply({"params": params["head"]}, memory)
        return _gaussian(mean, params["log_std"]), memory

    def start() -> Array:
        return jnp.zeros((num_units,))

    def unroll(params: Params, observations: Array) -> Gaussian:
        memory = jnp.zeros((*observations.shape[1:-1], num_units), observations.dtype)

        def body(memory, observation):
            memory, _ = cell.apply({"params": params["cell"]}, memory, observation)
            return memory, memory

        _, memories = jax.lax.scan(body, memory, observations)
        mean: Any = head.apply({"params": params["head"]}, memories)
        return _gaussian(mean, params["log_std"])

    return Policy(init, start, act, unroll)


def _network(
    num_inputs: int, num_outputs: int, hidden_sizes: Sequence[int], **options: Any
) -> Network:
    if isinstance(hidden_sizes, (int, float)):
        raise TypeError(
            "hidden_sizes must be a sequence with the size of each hidden layer, such as "
            f"({hidden_sizes},) for one layer; received {hidden_sizes}."
        )
    return mlp(num_inputs, num_outputs, hidden_sizes, **options)


def _initial_log_std(num_actions: int, initial_std: float) -> Array:
    if not STD_FLOOR < initial_std < math.inf:
        raise ValueError(
            f"initial_std must be above {STD_FLOOR} and finite; received {initial_std}."
        )
    return jnp.full((num_actions,), jnp.log(initial_std), jnp.result_type(float))


def _gaussian(mean: Array, log_std: Array) -> Gaussian:
    floored = jnp.maximum(log_std, jnp.log(STD_FLOOR))
    return Gaussian(mean, jnp.broadcast_to(floored, mean.shape))
