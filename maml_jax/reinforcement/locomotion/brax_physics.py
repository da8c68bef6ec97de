# mujoco's compiled half has no types.
# pyright: reportAttributeAccessIssue=false

"""Brax's own half-cheetah and ant: its models, time step and observations, on any of its back ends.

Five times as long a step as the paper's (cheetah), and on the spring and positional back ends other
gears and masses: returns are not comparable with those of the paper's physics.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import mujoco
from brax import envs

from maml_jax.reinforcement.locomotion.physics import ASSETS, LARGEST, Motion, Physics
from maml_jax.reinforcement.locomotion.quiet import quiet
from maml_jax.reinforcement.robots import Robot
from maml_jax.types import Array


def brax_robot(robot: Robot, backend: str) -> Physics:
    """A robot of Brax's registry, without its episode and auto-reset wrappers.

    Args:
        robot: the half-cheetah (17 observations, 6 actions) or the ant (27, 8).
        backend: "spring", "generalized", "positional" or "mjx".
    """
    with quiet():
        env: Any = envs.get_environment(robot.brax_name, backend=backend)
        model = mujoco.MjModel.from_xml_path(str(ASSETS / robot.model))

    def look(state: Any, cost: Array) -> tuple[Any, Motion]:
        pose, speed = state.pipeline_state.q, state.pipeline_state.qd
        largest = jnp.maximum(jnp.max(jnp.abs(pose)), jnp.max(jnp.abs(speed)))
        velocity = state.metrics["x_velocity"]
        return state, Motion(state.obs, velocity, cost, state.done > 0, largest < LARGEST)

    def reset(key: Array) -> tuple[Any, Motion]:
        return look(env.reset(key), jnp.zeros(()))

    def step(state: Any, action: Array) -> tuple[Any, Motion]:
        action = jnp.clip(action, -1.0, 1.0)
        return look(env.step(state, action), robot.control_cost * jnp.sum(action**2))

    size = jax.eval_shape(reset, jax.random.key(0))[1].observation.shape[0]
    return Physics(
        reset,
        step,
        size,
        env.action_size,
        float(env.dt),
        lambda state: state.pipeline_state.q,
        model,
    )
