# mujoco's compiled module has no types.
# pyright: reportAttributeAccessIssue=false

"""Brax's half-cheetah and ant: its models, time steps and observations, on any of its backends.

Returns do not compare with those of the paper's physics: the cheetah's time step is five times as
long, and the spring and positional backends change gears and masses.
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
    """Makes a robot of Brax's registry, without Brax's episode and auto-reset wrappers.

    Args:
        robot: half-cheetah (17 observations, 6 actions) or ant (27 observations, 8 actions).
        backend: "spring", "generalized", "positional" or "mjx".
    """
    with quiet():
        env: Any = envs.get_environment(robot.brax_name, backend=backend)
        model = mujoco.MjModel.from_xml_path(str(ASSETS / robot.model))

    def observe(state: Any, cost: Array) -> tuple[Any, Motion]:
        pose, speed = state.pipeline_state.q, state.pipeline_state.qd
        largest = jnp.maximum(jnp.max(jnp.abs(pose)), jnp.max(jnp.abs(speed)))
        velocity = state.metrics["x_velocity"]
        return state, Motion(state.obs, velocity, cost, state.done > 0, largest < LARGEST)

    def reset(key: Array) -> tuple[Any, Motion]:
        return observe(env.reset(key), jnp.zeros(()))

    def step(state: Any, action: Array) -> tuple[Any, Motion]:
        action = jnp.clip(action, -1.0, 1.0)
        return observe(env.step(state, action), robot.control_cost * jnp.sum(action**2))

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
