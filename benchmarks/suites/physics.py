"""Times the robots' physics and measures its deviation from MuJoCo's engine.

On a CPU each core is one JAX device with one thread, as in the experiments.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from benchmarks.harness import SPLIT, Row, rotating, sample_times, variants
from maml_jax import task_mesh
from maml_jax.mesh import on_mesh
from maml_jax.reinforcement import locomotion as lib
from maml_jax.reinforcement.locomotion import mujoco_physics
from maml_jax.types import Array

ENVIRONMENTS = 800  # a meta-batch: 40 tasks of 20 episodes
LEAST = 2  # samples of a call that takes seconds
SOLVERS = (lib.Solver(1, 4), lib.Solver(2, 4), lib.Solver(4, 8), lib.Solver(4, 8, "feet"))
STEPS, STARTS = 100, 20  # for the comparison with MuJoCo's engine
FEW = 4  # starts for the accurate solver, which takes minutes on a CPU and is not timed


def physics_suite() -> Iterator[Row]:
    """Measures steps a second and deviation from MuJoCo's engine for each robot and solver."""
    for robot in ("half_cheetah", "ant"):
        for solver in SOLVERS:
            yield _physics_row(robot, solver)
        yield _physics_row(robot, lib.ACCURATE, FEW)


def _physics_row(robot: str, solver: lib.Solver, starts: int = STARTS) -> Row:
    physics = lib.make_physics(robot, solver=solver)
    one_step, apart, further = _deviation(robot, physics, starts)
    return {
        "name": f"{robot}, {solver.iterations} x {solver.ls_iterations}, {solver.contacts}",
        "steps_per_s": None if solver == lib.ACCURATE else raw_speed(physics),
        "step_error_median": float(np.median(one_step)),
        "step_error_99": float(np.quantile(one_step, 0.99)),
        "apart_after_100_m_or_rad": float(np.median(apart)),
        "further_m": float(np.mean(further)),
        "further_spread_m": float(np.std(further)),
    }


def raw_speed(physics: lib.Physics, num_steps: int = 50) -> float:
    """Measures control steps a second of the physics alone: random actions, nothing recorded.

    Args:
        physics: of a robot.
        num_steps: control steps of each of the `ENVIRONMENTS`.
    """
    mesh = task_mesh(ENVIRONMENTS)

    def play(keys: Array) -> Any:
        inner, _ = jax.vmap(physics.reset)(keys)

        def body(inner: Any, key: Array) -> tuple[Any, Array]:
            shape = (keys.shape[0], physics.num_actions)
            inner, motion = jax.vmap(physics.step)(inner, jax.random.normal(key, shape))
            return inner, jnp.sum(motion.velocity)

        return jax.lax.scan(body, inner, jax.random.split(keys[0], num_steps))[1][None]

    run = jax.jit(on_mesh(play, mesh, SPLIT, SPLIT))
    keys = variants((jax.random.split(jax.random.key(0), ENVIRONMENTS),))
    times = sample_times(rotating(run, keys), 4.0, LEAST)
    return ENVIRONMENTS * num_steps / float(np.median(times))


def _deviation(
    robot: str, physics: lib.Physics, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compares the physics with MuJoCo's engine and its accurate solver, at random actions.

    Returns:
        The largest error of a velocity after one step from each of the engine's states; after 100
        steps from each start, the largest difference of a coordinate in metres or radians, and the
        difference of the forward positions in metres.
    """
    model = getattr(mujoco_physics, f"{robot}_model")(lib.ACCURATE)
    starts, _ = jax.jit(jax.vmap(physics.reset))(jax.random.split(jax.random.key(1), count))
    shape = (count, STEPS, physics.num_actions)
    actions = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    played = []
    for i in range(count):
        data = mujoco.MjData(model)
        data.qpos[:], data.qvel[:] = starts.qpos[i], starts.qvel[i]
        states = [(data.qpos.copy(), data.qvel.copy(), data.qacc_warmstart.copy())]
        for action in actions[i]:
            data.ctrl[:] = action
            mujoco.mj_step(model, data)
            states.append((data.qpos.copy(), data.qvel.copy(), data.qacc_warmstart.copy()))
        played.append([np.stack(x) for x in zip(*states, strict=True)])
    qpos, qvel, warm = (np.stack(x) for x in zip(*played, strict=True))
    step = jax.jit(jax.vmap(physics.step))
    flat = [
        jnp.asarray(x[:, :-1].reshape(-1, x.shape[-1]), jnp.float32) for x in (qpos, qvel, warm)
    ]
    after, _ = step(type(starts)(*flat), actions.reshape(-1, shape[-1]))
    one_step = np.abs(np.asarray(after.qvel) - qvel[:, 1:].reshape(-1, qvel.shape[-1])).max(1)
    inner = starts
    for at in range(STEPS):
        inner, _ = step(inner, actions[:, at])
    apart = np.abs(np.asarray(inner.qpos) - qpos[:, -1])
    return one_step, apart.max(1), np.asarray(inner.qpos)[:, 0] - qpos[:, -1, 0]
