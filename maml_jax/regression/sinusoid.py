"""Sinusoid tasks: y = amplitude * sin(x - phase) (paper section 5.1)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from maml_jax import checks
from maml_jax.networks import Network
from maml_jax.regression.losses import Examples, mean_squared_error
from maml_jax.types import Array, Params, Problem, Task

AMPLITUDES = (0.1, 5.0)
PHASES = (0.0, jnp.pi)  # radians
INPUTS = (-5.0, 5.0)  # radians


class Sinusoid(NamedTuple):
    """One function of the family.

    Attributes:
        amplitude: scalar, uniform on [0.1, 5.0].
        phase: scalar, radians, uniform on [0, pi].
    """

    amplitude: Array
    phase: Array


def sample_sinusoid(key: Array) -> Sinusoid:
    """Draws a function from the paper's distribution."""
    return sample_points(key, 0)[0]


def sample_points(key: Array, num_points: int) -> tuple[Sinusoid, Array]:
    """Draws a function and inputs [num_points, 1] for it.

    All numbers come from one call to the generator: a key for each would cost more than the draws.
    """
    drawn = jax.random.uniform(key, (2 + num_points,))
    sinusoid = Sinusoid(_scale(drawn[0], AMPLITUDES), _scale(drawn[1], PHASES))
    return sinusoid, _scale(drawn[2:, None], INPUTS)


def _scale(unit: Array, bounds: tuple[float, float]) -> Array:
    return bounds[0] + (bounds[1] - bounds[0]) * unit


def sample_inputs(key: Array, num_points: int) -> Array:
    """Inputs [num_points, 1], uniform on [-5, 5]."""
    return jax.random.uniform(key, (num_points, 1), minval=INPUTS[0], maxval=INPUTS[1])


def grid_inputs(num_points: int) -> Array:
    """Inputs [num_points, 1], evenly spaced from -5 to 5."""
    return jnp.linspace(*INPUTS, num_points)[:, None]


def examples(sinusoid: Sinusoid, inputs: Array, informed: bool = False) -> Examples:
    """The function at some inputs.

    Args:
        sinusoid: the function.
        inputs: [K, 1], radians.
        informed: whether amplitude and phase become second and third input, for the oracle.
    """
    targets = sinusoid.amplitude * jnp.sin(inputs - sinusoid.phase)
    if informed:
        parameters = jnp.broadcast_to(jnp.stack(sinusoid), (inputs.shape[0], 2))
        inputs = jnp.concatenate([inputs, parameters], axis=1)
    return Examples(inputs, targets)


def sinusoid_problem(
    network: Network, num_support: int, num_query: int, informed: bool = False
) -> Problem:
    """Few-shot regression of sinusoids.

    Args:
        network: from 1 input to 1 output; from 3 inputs if `informed`.
        num_support: K, points to adapt on.
        num_query: Q, other points of the same function, for the outer loss.
        informed: whether inputs carry amplitude and phase, for the oracle.
    """
    checks.check_counts(num_support=num_support, num_query=num_query)
    loss = mean_squared_error(network.apply)

    def sample(params: Params, key: Array) -> Task:
        del params  # supervised tasks do not depend on the learner
        sinusoid, inputs = sample_points(key, num_support + num_query)
        points = examples(sinusoid, inputs, informed)
        return Task(
            jax.tree.map(lambda x: x[:num_support], points),
            jax.tree.map(lambda x: x[num_support:], points),
        )

    return Problem(network.init, sample, loss, loss)


class FixedTasks(NamedTuple):
    """A fixed set of functions with the points to adapt on, the same for every method and K.

    Attributes:
        sinusoids: the functions, leaves [T].
        inputs: [T, largest K, 1]; a K-shot task uses the first K.
    """

    sinusoids: Sinusoid
    inputs: Array


def sample_fixed_tasks(key: Array, num_tasks: int, max_support: int) -> FixedTasks:
    """Draws test (or validation) functions; `max_support` is the largest K to be asked for."""
    checks.check_counts(num_tasks=num_tasks, max_support=max_support)
    keys = jax.random.split(key, num_tasks)
    return FixedTasks(*jax.vmap(lambda k: sample_points(k, max_support))(keys))


def few_shot_tasks(
    tests: FixedTasks, num_support: int, num_query: int, informed: bool = False
) -> Task:
    """K-shot tasks [T] with an even grid of inputs as query, which has no sampling noise.

    The original code evaluates on K random points instead: the same expected error, more noise.

    Raises:
        ValueError: `num_support` is more than the tests were drawn for.
    """
    checks.check_counts(num_support=num_support, num_query=num_query)
    drawn = tests.inputs.shape[1]
    if num_support > drawn:
        raise ValueError(f"num_support must be at most the {drawn} drawn; received {num_support}.")
    grid = grid_inputs(num_query)
    return Task(
        jax.vmap(lambda s, x: examples(s, x, informed))(
            tests.sinusoids, tests.inputs[:, :num_support]
        ),
        jax.vmap(lambda s: examples(s, grid, informed))(tests.sinusoids),
    )
