"""The robots of `maml_jax.reinforcement.locomotion`, and what its tasks ask of them.

Facts alone: needs neither Brax nor MuJoCo.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from maml_jax.types import Array

PHYSICS = ("paper", "brax")
BACKENDS = ("spring", "generalized", "positional", "mjx")  # of Brax


class Solver(NamedTuple):
    """The paper's physics: precision of contact and joint-limit forces, and what makes contact.

    Attributes:
        iterations: of Newton's method, at most.
        ls_iterations: of each of its line searches, at most.
        contacts: "all" geometry touches the ground, as in the original files, or "feet" alone (for
            the cheetah: feet, thighs and head), as Brax has it.
    """

    iterations: int
    ls_iterations: int
    contacts: str = "all"


# Deviations from MuJoCo's engine, and speeds: benchmarks/README.md.
STANDARD = Solver(iterations=4, ls_iterations=8)
ACCURATE = Solver(iterations=100, ls_iterations=50)
CONTACTS = ("all", "feet")


class Robot(NamedTuple):
    """A robot.

    Attributes:
        model: file of its model, as Brax ships it.
        brax_name: in Brax's registry.
        control_cost: of the squared actions, the paper's.
        velocity_column: by physics, where an observation holds the root's forward velocity, metres
            a second.
        picture_width: metres that a picture of it shows.
        azimuth, elevation: radians, from where a picture shows it.
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
    """A robot, and what its tasks ask of it.

    Attributes:
        robot: a name in `ROBOTS`.
        goal: "velocity", metres a second, or "direction", 1 or -1.
        sample_goal: `sample_goal(key) -> goal`, a float.
        gain: `gain(velocity, goal)`, reward of a step before costs; velocity in metres a second.
        example_goal: a middling one, for a film.
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


# Survival is worth 0.05 a step to the ant; its velocity tasks add 1 ("make it happy, not suicidal",
# says the original code), so that falling early does not pay.
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
