"""The interface of a physics: resets and steps a robot, for any task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import brax

from maml_jax.types import Array, PyTree

ASSETS = Path(brax.__file__).parent / "envs" / "assets"  # the robots' models
LARGEST = 1e3  # bound on sound positions (metres, radians) and velocities (a second)


class Motion(NamedTuple):
    """The outcome of one time step of a robot.

    Attributes:
        observation: new observation [O].
        velocity: forward velocity, metres a second.
        cost: control cost of the step, 0 or more.
        fallen: whether the robot fell, which ends the episode; a bool scalar.
        sound: whether the state is finite and below `LARGEST`, a bool scalar.

    Example:
        >>> import jax
        >>> from maml_jax.reinforcement.locomotion import make_physics
        >>> ant = make_physics("ant")
        >>> inner, motion = jax.eval_shape(ant.reset, jax.random.key(0))
        >>> motion.observation.shape, motion.velocity.shape
        ((41,), ())
    """

    observation: Array
    velocity: Array
    cost: Array
    fallen: Array
    sound: Array


class Physics(NamedTuple):
    """A simulated robot, from `make_physics`.

    Attributes:
        reset: `reset(key) -> (inner, Motion)`, `inner` the state of the simulation.
        step: `step(inner, action) -> (inner, Motion)`, action [A] clipped to [-1, 1].
        num_observations: O.
        num_actions: A.
        timestep: duration of an action, seconds.
        pose: `pose(inner) -> qpos`, generalised coordinates in MuJoCo's order, for pictures.
        model: MuJoCo's model of the robot, for pictures.

    Example:
        >>> from maml_jax.reinforcement.locomotion import make_physics
        >>> ant = make_physics("ant")
        >>> ant.num_observations, ant.num_actions, ant.timestep
        (41, 8, 0.02)
    """

    reset: Callable[[Array], tuple[PyTree, Motion]]
    step: Callable[[PyTree, Array], tuple[PyTree, Motion]]
    num_observations: int
    num_actions: int
    timestep: float
    pose: Callable[[PyTree], Array]
    model: Any
