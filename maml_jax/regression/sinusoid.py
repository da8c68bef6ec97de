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
    """The parameters of one sinusoid.

    Attributes:
        amplitude: scalar; the paper's tasks draw it uniformly from [0.1, 5.0].
        phase: scalar, radians; the paper's tasks draw it uniformly from [0, pi].

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.regression import Sinusoid
        >>> from maml_jax.regression.sinusoid import examples
        >>> sinusoid = Sinusoid(amplitude=jnp.array(2.0), phase=jnp.array(0.0))
        >>> batch = examples(sinusoid, inputs=jnp.array([[0.0], [jnp.pi / 2]]))
        >>> batch.targets.round(3).tolist()
        [[0.0], [2.0]]
    """

    amplitude: Array
    phase: Array


def sample_sinusoid(key: Array) -> Sinusoid:
    """Draws a sinusoid from the paper's distribution."""
    return sample_points(key, 0)[0]


def sample_points(key: Array, num_points: int) -> tuple[Sinusoid, Array]:
    """Draws a sinusoid and its inputs [num_points, 1], radians.

    One call to the generator draws all numbers: splitting a key for each costs more than drawing.
    """
    drawn = jax.random.uniform(key, (2 + num_points,))
    sinusoid = Sinusoid(_scale(drawn[0], AMPLITUDES), _scale(drawn[1], PHASES))
    return sinusoid, _scale(drawn[2:, None], INPUTS)


def _scale(unit: Array, bounds: tuple[float, float]) -> Array:
    return bounds[0] + (bounds[1] - bounds[0]) * unit


def sample_inputs(key: Array, num_points: int) -> Array:
    """Draws inputs [num_points, 1], radians, uniformly from [-5, 5]."""
    return jax.random.uniform(key, (num_points, 1), minval=INPUTS[0], maxval=INPUTS[1])


def grid_inputs(num_points: int) -> Array:
    """Returns inputs [num_points, 1], radians, evenly spaced from -5 to 5."""
    return jnp.linspace(*INPUTS, num_points)[:, None]


def examples(sinusoid: Sinusoid, inputs: Array, informed: bool = False) -> Examples:
    """Evaluates a sinusoid at inputs.

    Args:
        sinusoid: amplitude and phase.
        inputs: [K, 1], radians.
        informed: whether to append amplitude and phase to each input, for the oracle baseline.

    Returns:
        Inputs [K, 1], or [K, 3] if `informed`, and targets [K, 1].
    """
    targets = sinusoid.amplitude * jnp.sin(inputs - sinusoid.phase)
    if informed:
        parameters = jnp.broadcast_to(jnp.stack(sinusoid), (inputs.shape[0], 2))
        inputs = jnp.concatenate([inputs, parameters], axis=1)
    return Examples(inputs, targets)


def sinusoid_problem(
    network: Network, num_support: int, num_query: int, informed: bool = False
) -> Problem:
    """Builds the sinusoid regression problem of the paper's section 5.1.

    Args:
        network: maps 1 input to 1 output; 3 inputs to 1 output if `informed`.
        num_support: K, points of the inner loss.
        num_query: Q, other points of the same sinusoid, for the outer loss.
        informed: whether to append amplitude and phase to each input, for the oracle baseline.

    Returns:
        A problem whose tasks hold `Examples` [K, 1] and [Q, 1]. Both losses are the mean squared
        error.

    Raises:
        ValueError: a count below 1.
        TypeError: a count that is not an integer.

    Example:
        >>> import jax
        >>> from maml_jax.networks import mlp
        >>> from maml_jax.regression import sinusoid_problem
        >>> problem = sinusoid_problem(mlp(1, 1), num_support=5, num_query=10)
        >>> task = problem.sample(None, jax.random.key(0))  # supervised: needs no parameters
        >>> task.support.inputs.shape, task.query.targets.shape
        ((5, 1), (10, 1))
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
    """Sinusoids with support inputs, shared by all methods and all K of a comparison.

    Attributes:
        sinusoids: leaves [T].
        inputs: [T, largest K, 1], radians; a K-shot task uses the first K.
    """

    sinusoids: Sinusoid
    inputs: Array


def sample_fixed_tasks(key: Array, num_tasks: int, max_support: int) -> FixedTasks:
    """Draws T validation or test sinusoids with `max_support` inputs each, the largest K."""
    checks.check_counts(num_tasks=num_tasks, max_support=max_support)
    keys = jax.random.split(key, num_tasks)
    return FixedTasks(*jax.vmap(lambda k: sample_points(k, max_support))(keys))


def few_shot_tasks(
    tests: FixedTasks, num_support: int, num_query: int, informed: bool = False
) -> Task:
    """Makes K-shot tasks [T] whose query is an even grid of inputs.

    The original code evaluates on K random points. The grid has nearly the same expected error and
    no sampling noise.

    Args:
        tests: sinusoids and support inputs.
        num_support: K.
        num_query: Q, points of the grid.
        informed: as in `sinusoid_problem`.

    Raises:
        ValueError: `num_support` exceeds the number of inputs drawn for each sinusoid.
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
