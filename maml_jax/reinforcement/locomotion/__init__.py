"""Locomotion: half-cheetah and ant run at a goal speed or in a goal direction (section 5.3).

Needs the `rl` extra. No other package of the library imports brax, mujoco or mjx.
"""

from __future__ import annotations

import jax.numpy as jnp

from maml_jax import checks
from maml_jax.kernels.factorizations import factorized_at_once, in_pieces
from maml_jax.reinforcement.environment import Environment, State, check_continuous
from maml_jax.reinforcement.locomotion.quiet import quiet_imports
from maml_jax.types import Array

try:
    with quiet_imports():
        from maml_jax.reinforcement.locomotion import brax_physics, mujoco_physics
        from maml_jax.reinforcement.locomotion.brax_estimators import (
            NormalTanh,
            brax_advantages,
            brax_ppo_loss,
            squashed,
            tanh_gaussian_policy,
        )
except ImportError as error:
    raise ImportError(
        f"locomotion needs Brax and MuJoCo ({error}). Install them with: pip install "
        "'maml-jax[rl]' (in a checkout: pip install -c constraints.txt '.[rl]')"
    ) from error

from maml_jax.reinforcement.locomotion.physics import LARGEST, Motion, Physics
from maml_jax.reinforcement.locomotion.shapes import Capsules, capsules
from maml_jax.reinforcement.robots import (
    ACCURATE,
    BACKENDS,
    CONTACTS,
    FAMILIES,
    PHYSICS,
    ROBOTS,
    STANDARD,
    TASKS,
    Family,
    Robot,
    Solver,
)

CPU_AT_ONCE = 200  # most robots in a batch, so that it fits into a CPU's caches


def make_physics(
    robot: str, physics: str = "paper", *, solver: Solver = STANDARD, backend: str = "spring"
) -> Physics:
    """Makes a robot in the paper's physics or in Brax's.

    Args:
        robot: a name in `ROBOTS`.
        physics: "paper" for MuJoCo's dynamics at the original time step; "brax" for Brax's model.
        solver: settings of the paper's physics.
        backend: backend of Brax's physics, a name in `BACKENDS`.

    Raises:
        ValueError: an unknown name, or a count below 1.
        TypeError: `solver` is not a `Solver`, or a count is not an integer.

    Example:
        >>> from maml_jax.reinforcement.locomotion import make_physics
        >>> cheetah = make_physics("half_cheetah")
        >>> cheetah.num_observations, cheetah.num_actions, cheetah.timestep
        (20, 6, 0.01)
    """
    checks.check_choice(robot, tuple(ROBOTS), "robot")
    checks.check_choice(physics, PHYSICS, "physics")
    if physics == "paper":
        if not isinstance(solver, Solver):
            raise TypeError(f"solver must be a locomotion.Solver; received {solver!r}.")
        checks.check_choice(solver.contacts, CONTACTS, "contacts")
        checks.check_counts(iterations=solver.iterations, ls_iterations=solver.ls_iterations)
        return _in_pieces(getattr(mujoco_physics, robot)(solver), 1)
    checks.check_choice(backend, BACKENDS, "backend")
    brax_robot = brax_physics.brax_robot(ROBOTS[robot], backend)
    if backend == "mjx":
        return _in_pieces(brax_robot, 1)
    if backend == "generalized":  # inverts the mass matrix at a reset
        return _in_pieces(brax_robot, brax_robot.model.nv)
    return brax_robot  # the other backends do not factorise matrices


def _in_pieces(physics: Physics, right_sides: int) -> Physics:
    """Limits the batch of robots on a CPU, for safe factorisations and for its caches."""
    at_most = min(CPU_AT_ONCE, factorized_at_once(physics.model.nv, right_sides))
    reset, step = (in_pieces(fn, at_most) for fn in (physics.reset, physics.step))
    return physics._replace(reset=reset, step=step)


def locomotion(
    task: str,
    physics: str = "paper",
    *,
    solver: Solver = STANDARD,
    backend: str = "spring",
    horizon: int = 200,
) -> Environment:
    """Makes a locomotion environment; its task is the goal: a speed in metres a second, or a sign.

    Clips actions to [-1, 1] before the simulation and before the control cost. A state that is not
    finite, or exceeds `LARGEST`, becomes an observation of NaN: the rollout ends the episode as one
    that blew up.

    Args:
        task: a name in `TASKS`.
        physics: "paper" or "brax", see `make_physics`.
        solver: settings of the paper's physics.
        backend: backend of Brax's physics, a name in `BACKENDS`.
        horizon: H, time steps.

    Raises:
        ValueError: an unknown name, or a count below 1.
        TypeError: `solver` is not a `Solver`, or a count is not an integer.

    Example:
        >>> import jax
        >>> from maml_jax.reinforcement.locomotion import locomotion
        >>> env = locomotion("cheetah_velocity", horizon=100)
        >>> env.num_observations, env.num_actions, env.horizon
        (20, 6, 100)
        >>> 0.0 <= float(env.sample_task(jax.random.key(0))) < 2.0  # metres a second
        True
    """
    checks.check_choice(task, TASKS, "task")
    checks.check_counts(horizon=horizon)
    family = FAMILIES[task]
    body = make_physics(family.robot, physics, solver=solver, backend=backend)

    def state_of(inner, motion: Motion, goal: Array, reward: Array) -> State:
        observation = jnp.where(motion.sound, motion.observation, jnp.nan)
        return State(observation, reward, motion.fallen, (inner, goal))

    def reset(key: Array, goal: Array) -> State:
        inner, motion = body.reset(key)
        return state_of(inner, motion, goal, jnp.zeros(()))

    def step(state: State, action: Array) -> State:
        check_continuous(action, body.num_actions)
        inner, goal = state.inner
        inner, motion = body.step(inner, action)
        return state_of(inner, motion, goal, family.gain(motion.velocity, goal) - motion.cost)

    return Environment(
        family.sample_goal,
        reset,
        step,
        num_observations=body.num_observations,
        num_actions=body.num_actions,
        horizon=horizon,
        task_features=lambda goal: goal[None],
    )


__all__ = [
    "ACCURATE",
    "BACKENDS",
    "FAMILIES",
    "LARGEST",
    "PHYSICS",
    "ROBOTS",
    "STANDARD",
    "TASKS",
    "Capsules",
    "Family",
    "Motion",
    "NormalTanh",
    "Physics",
    "Robot",
    "Solver",
    "brax_advantages",
    "brax_ppo_loss",
    "capsules",
    "locomotion",
    "make_physics",
    "squashed",
    "tanh_gaussian_policy",
]
