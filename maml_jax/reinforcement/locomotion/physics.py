"""What locomotion asks of a physics: a robot that is reset and stepped, whatever its task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import brax

from maml_jax.types import Array, PyTree

ASSETS = Path(brax.__file__).parent / "envs" / "assets"  # the robots' models
LARGEST = 1e3  # of positions (metres, radians) and velocities; beyond it, the physics has blown up


class Motion(NamedTuple):
    """What a robot did in one time step, and what it sees now.

    Attributes:
        observation: [O].
        velocity: forward, metres a second.
        cost: of the control and of contacts, at least 0.
        fallen: whether the episode ends, a bool.
        sound: whether the state is finite and below `LARGEST`, a bool.
    """

    observation: Array
    velocity: Array
    cost: Array
    fallen: Array
    sound: Array


class Physics(NamedTuple):
    """A robot and its world.

    Attributes:
        reset: `reset(key) -> (inner, Motion)`, inner whatever the next step needs.
        step: `step(inner, action) -> (inner, Motion)`, action [A] in [-1, 1], clipped there.
        num_observations: O.
        num_actions: A.
        timestep: seconds between two actions.
        pose: `pose(inner) -> qpos`, generalised coordinates in MuJoCo's order, for pictures.
        model: MuJoCo's model of the robot, for pictures.
    """

    reset: Callable[[Array], tuple[PyTree, Motion]]
    step: Callable[[PyTree, Array], tuple[PyTree, Motion]]
    num_observations: int
    num_actions: int
    timestep: float
    pose: Callable[[PyTree], Array]
    model: Any
