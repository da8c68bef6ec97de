# mujoco's compiled module has no types.
# pyright: reportAttributeAccessIssue=false

"""The paper's physics: MuJoCo's dynamics at the original time step, by its JAX port (mjx).

The half-cheetah and the ant come from the model files in Brax; the settings that Brax changed are
reset to those of the original code. One action lasts one simulation step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
from mujoco import mjx

from maml_jax.reinforcement.locomotion.physics import ASSETS, LARGEST, Motion, Physics
from maml_jax.reinforcement.locomotion.quiet import quiet
from maml_jax.reinforcement.robots import ROBOTS, Solver
from maml_jax.types import Array

POSITION_NOISE, VELOCITY_NOISE = 0.01, 0.1  # standard deviations at reset, generalised coordinates
ANT_HEIGHTS = (0.2, 1.0)  # heights of the torso, metres, outside which an episode ends


class _Inner(NamedTuple):
    qpos: Array
    qvel: Array
    warmstart: Array


def half_cheetah_model(solver: Solver) -> mujoco.MjModel:
    """Compiles the original half-cheetah: a step of 0.01 s."""
    spec = _shipped("half_cheetah")
    spec.option.timestep = 0.01
    if solver.contacts == "all":
        for geom in _robot_geoms(spec):
            geom.contype = 1
    return _compiled(spec, solver)


def ant_model(solver: Solver) -> mujoco.MjModel:
    """Compiles the original ant: a step of 0.02 s, Runge-Kutta 4, a contact margin of 0.01 m."""
    spec = _shipped("ant")
    spec.option.timestep = 0.02
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_RK4
    for geom in spec.geoms:
        # The floor has no margin: versions and engines differ in whether they add the margins of
        # two geoms in contact or take the larger one.
        geom.margin = 0.0 if geom.name == "floor" else 0.01
        geom.solimp[:3] = (0.8, 0.8, 0.01)
    if solver.contacts == "all":
        for geom in _robot_geoms(spec):
            # Brax's feet are massless spheres at the ends of the ankles' capsules.
            geom.contype = 0 if geom.mass == 0.0 else 1
    return _compiled(spec, solver)


def half_cheetah(solver: Solver) -> Physics:
    """Makes the half-cheetah: 20 observations, 6 actions; it never falls."""
    model = half_cheetah_model(solver)

    def observation(data: mjx.Data) -> Array:
        return jnp.concatenate([data.qpos[1:], data.qvel, data.subtree_com[1]])

    def fallen(data: mjx.Data) -> Array:
        return jnp.zeros((), bool)

    return _physics(
        model, jnp.zeros(model.nq), observation, fallen, ROBOTS["half_cheetah"].control_cost
    )


def ant(solver: Solver) -> Physics:
    """Makes the ant: 41 observations, 8 actions; no observation or cost of contact forces."""
    model = ant_model(solver)
    low, high = ANT_HEIGHTS

    def observation(data: mjx.Data) -> Array:
        rotation = jnp.ravel(data.xmat[1])
        return jnp.concatenate([data.qpos, data.qvel, rotation, data.subtree_com[1]])

    def fallen(data: mjx.Data) -> Array:
        return (data.qpos[2] < low) | (data.qpos[2] > high)

    start = jnp.asarray(model.numeric("init_qpos").data, jnp.float32)
    return _physics(model, start, observation, fallen, ROBOTS["ant"].control_cost)


def _physics(
    model: mujoco.MjModel, start: Array, observation: Any, fallen: Any, control_cost: float
) -> Physics:
    """Makes a robot from its model, first pose, observation, end of an episode and control cost."""
    world = mjx.put_model(model)
    blank = mjx.make_data(world)
    mass = jnp.asarray(model.body_mass[1:], jnp.float32)
    share = mass / jnp.sum(mass)

    def observe(inner: _Inner, cost: Array) -> tuple[_Inner, Motion]:
        data = blank.replace(qpos=inner.qpos, qvel=inner.qvel)
        data = mjx.com_vel(world, mjx.com_pos(world, mjx.kinematics(world, data)))
        spin, speed = data.cvel[1:, :3], data.cvel[1:, 3:]
        arm = data.xipos[1:] - data.subtree_com[1]
        velocity = share @ (speed + jnp.cross(spin, arm))[:, 0]
        largest = jnp.maximum(jnp.max(jnp.abs(inner.qpos)), jnp.max(jnp.abs(inner.qvel)))
        sound = largest < LARGEST
        return inner, Motion(observation(data), velocity, cost, fallen(data), sound)

    def reset(key: Array) -> tuple[_Inner, Motion]:
        position_key, velocity_key = jax.random.split(key)
        qpos = start + POSITION_NOISE * jax.random.normal(position_key, start.shape)
        qvel = VELOCITY_NOISE * jax.random.normal(velocity_key, (model.nv,))
        if model.jnt_type[0] == mujoco.mjtJoint.mjJNT_FREE:
            quaternion = qpos[3:7]
            qpos = qpos.at[3:7].set(quaternion / jnp.linalg.norm(quaternion))
        return observe(_Inner(qpos, qvel, jnp.zeros((model.nv,))), jnp.zeros(()))

    def step(inner: _Inner, action: Array) -> tuple[_Inner, Motion]:
        action = jnp.clip(action, -1.0, 1.0)
        data = blank.replace(
            qpos=inner.qpos, qvel=inner.qvel, qacc_warmstart=inner.warmstart, ctrl=action
        )
        data = mjx.step(world, data)
        after = _Inner(data.qpos, data.qvel, data.qacc_warmstart)
        return observe(after, control_cost * jnp.sum(action**2))

    size = jax.eval_shape(reset, jax.random.key(0))[1].observation.shape[0]
    return Physics(reset, step, size, model.nu, model.opt.timestep, lambda inner: inner.qpos, model)


def _shipped(robot: str) -> Any:
    return mujoco.MjSpec.from_file(str(ASSETS / ROBOTS[robot].model))


def _robot_geoms(spec: Any) -> list[Any]:
    return [geom for geom in spec.geoms if geom.name != "floor"]


def _compiled(spec: Any, solver: Solver) -> mujoco.MjModel:
    spec.option.solver = mujoco.mjtSolver.mjSOL_NEWTON
    spec.option.iterations = solver.iterations
    spec.option.ls_iterations = solver.ls_iterations
    with quiet():
        return spec.compile()
