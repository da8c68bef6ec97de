"""Robots and task families of `maml_jax.reinforcement.locomotion`, as data.

Imports neither Brax nor MuJoCo.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from maml_jax.types import Array

PHYSICS = ("paper", "brax")
BACKENDS = ("spring", "generalized", "positional", "mjx")  # Brax's


class Solver(NamedTuple):
    """Settings of the paper's physics: iterations of the constraint solver, and contacts.

    Attributes:
        iterations: most iterations of Newton's method.
        ls_iterations: most iterations of each of its line searches.
        contacts: parts that touch the ground: "all" (the original model files), or "feet" (Brax's;
            for the cheetah feet, thighs and head).

    Example:
        >>> from maml_jax.reinforcement.locomotion import STANDARD
        >>> STANDARD._replace(contacts="feet")
        Solver(iterations=4, ls_iterations=8, contacts='feet')
    """

    iterations: int
    ls_iterations: int
    contacts: str = "all"


# Deviations from MuJoCo's engine and speeds are in benchmarks/README.md.
STANDARD = Solver(iterations=4, ls_iterations=8)
ACCURATE = Solver(iterations=100, ls_iterations=50)
CONTACTS = ("all", "feet")


class Robot(NamedTuple):
    """A robot: its model, cost and camera.

    Attributes:
        model: its model file in Brax's assets.
        brax_name: its name in Brax's registry.
        control_cost: weight of the sum of squared actions in the cost of a step (the paper's).
        velocity_column: for each physics, index of the root's forward velocity (metres a second)
            in an observation.
        picture_width: width of a picture, metres.
        azimuth, elevation: angles of the camera, radians.

    Example:
        >>> from maml_jax.reinforcement.locomotion import ROBOTS
        >>> ROBOTS["half_cheetah"].control_cost
        0.05
    """

    model: str
    brax_name: str
    control_cost: float
    velocity_column: Mapping[str, int]
    picture_width: float
    azimuth: float
    elevation: float


ROBOTS = {
    "half_cheetah": Robot(
        "half_cheetah.xml", "halfcheetah", 0.05, {"paper": 8, "brax": 8}, 2.6, 0.0, 0.0
    ),
    "ant": Robot("ant.xml", "ant", 0.005, {"paper": 15, "brax": 13}, 3.2, -0.5, 0.45),
}


class Family(NamedTuple):
    """A family of tasks: a robot, a distribution of goals, and a reward.

    Attributes:
        robot: a name in `ROBOTS`.
        goal: "velocity", metres a second, or "direction", 1 or -1.
        sample_goal: `sample_goal(key) -> goal`, a float.
        gain: `gain(velocity, goal)`, reward of a step before costs; velocity in metres a second.
        example_goal: a typical goal, for films.

    Example:
        >>> from maml_jax.reinforcement.locomotion import FAMILIES
        >>> family = FAMILIES["cheetah_velocity"]
        >>> float(family.gain(1.5, 2.0))
        -0.5
    """

    robot: str
    goal: str
    sample_goal: Callable[[Array], Array]
    gain: Callable[[Array, Array], Array]
    example_goal: float


def _speeds(highest: float) -> Callable[[Array], Array]:
    return lambda key: jax.random.uniform(key, (), maxval=highest)


def _sign(key: Array) -> Array:
    return jnp.where(jax.random.bernoulli(key), 1.0, -1.0)


# The ant gets 0.05 a step for survival. Its velocity tasks add 1, so that falling early does not
# pay (the original code: "make it happy, not suicidal").
FAMILIES = {
    "cheetah_direction": Family(
        "half_cheetah", "direction", _sign, lambda v, g: g * v, example_goal=-1.0
    ),
    "cheetah_velocity": Family(
        "half_cheetah", "velocity", _speeds(2.0), lambda v, g: -jnp.abs(v - g), example_goal=1.0
    ),
    "ant_direction": Family(
        "ant", "direction", _sign, lambda v, g: 0.05 + g * v, example_goal=-1.0
    ),
    "ant_velocity": Family(
        "ant", "velocity", _speeds(3.0), lambda v, g: 1.05 - jnp.abs(v - g), example_goal=1.5
    ),
}
TASKS = tuple(FAMILIES)
