"""Locomotion: what the physics costs, how exact it is, and where a meta-iteration's time goes.

On a CPU each core is one JAX device with one thread, as the experiments run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jax.sharding import PartitionSpec

from benchmarks.harness import rotating, sample_times, variants
from benchmarks.reinforcement import INNER_LR, SUBSAMPLE, Case, phases, time_iteration
from maml_jax import task_mesh
from maml_jax.batching import TASK_AXIS
from maml_jax.networks import gaussian_policy
from maml_jax.reinforcement import locomotion as lib
from maml_jax.reinforcement import reinforcement_problem
from maml_jax.reinforcement.locomotion import mujoco_physics
from maml_jax.types import Array

TASKS, EPISODES, HORIZON = 40, 20, 200
ENVIRONMENTS = TASKS * EPISODES
LEAST = 2  # samples of what takes seconds
SOLVERS = (lib.Solver(1, 4), lib.Solver(2, 4), lib.Solver(4, 8), lib.Solver(4, 8, "feet"))
STEPS, STARTS = 100, 20  # of the comparison with MuJoCo's own engine
FEW = 4  # starts, of a solver that takes minutes on a CPU and is not timed


def physics_suite() -> Iterator[dict[str, Any]]:
    """Steps a second and deviation from MuJoCo's engine, for each robot and solver."""
    for robot in ("half_cheetah", "ant"):
        for solver in SOLVERS:
            yield _physics_row(robot, solver)
        yield _physics_row(robot, lib.ACCURATE, FEW)


def _physics_row(robot: str, solver: lib.Solver, starts: int = STARTS) -> dict[str, Any]:
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
    """Control steps a second of the physics alone: random actions, nothing recorded."""
    mesh = task_mesh(ENVIRONMENTS)
    split = PartitionSpec(TASK_AXIS)

    def play(keys: Array) -> Any:
        inner, _ = jax.vmap(physics.reset)(keys)

        def body(inner: Any, key: Array) -> tuple[Any, Array]:
            shape = (keys.shape[0], physics.num_actions)
            inner, motion = jax.vmap(physics.step)(inner, jax.random.normal(key, shape))
            return inner, jnp.sum(motion.velocity)

        return jax.lax.scan(body, inner, jax.random.split(keys[0], num_steps))[1][None]

    run = jax.jit(jax.shard_map(play, mesh=mesh, in_specs=split, out_specs=split, check_vma=False))
    keys = variants((jax.random.split(jax.random.key(0), ENVIRONMENTS),))
    times = sample_times(rotating(run, keys), 4.0, LEAST)
    return ENVIRONMENTS * num_steps / float(np.median(times))


def _deviation(
    robot: str, physics: lib.Physics, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """From MuJoCo's own engine with an exact solver, at random actions.

    Returns:
        Largest error of a velocity after one step, from the engine's states; distance of the
        states after 100 steps from the same start; how much further forward the robot is then.
    """
    model = getattr(mujoco_physics, f"{robot}_model")(lib.ACCURATE)
    starts, _ = jax.jit(jax.vmap(physics.reset))(jax.random.split(jax.random.key(1), count))
    shape = (count, STEPS, physics.num_actions)
    actions = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    told = []
    for i in range(count):
        data = mujoco.MjData(model)
        data.qpos[:], data.qvel[:] = starts.qpos[i], starts.qvel[i]
        seen = [(data.qpos.copy(), data.qvel.copy(), data.qacc_warmstart.copy())]
        for action in actions[i]:
            data.ctrl[:] = action
            mujoco.mj_step(model, data)
            seen.append((data.qpos.copy(), data.qvel.copy(), data.qacc_warmstart.copy()))
        told.append([np.stack(x) for x in zip(*seen, strict=True)])
    qpos, qvel, warm = (np.stack(x) for x in zip(*told, strict=True))
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


def make_case(task: str, physics: str) -> Case:
    """A family of tasks as it is meta-trained."""
    env = lib.locomotion(task, physics, horizon=HORIZON)
    policy = gaussian_policy(env.num_observations, env.num_actions)
    problem = reinforcement_problem(env, policy, num_episodes=EPISODES, inner_lr=INNER_LR)
    return Case(f"{task}, {physics}", env, problem, TASKS, EPISODES)


def locomotion_suite(families: Sequence[str] = lib.TASKS) -> Iterator[dict[str, Any]]:
    """The whole rollout against the raw physics, then each meta-iteration's phases.

    Args:
        families: of tasks, each in both physics.
    """
    for task, physics in itertools.product(families, ("paper", "brax")):
        case = make_case(task, physics)
        raw = raw_speed(lib.make_physics(lib.FAMILIES[task].robot, physics), HORIZON)
        for row in phases(case, LEAST):
            if row["name"].endswith(": rollout"):
                speed = ENVIRONMENTS * HORIZON / row["median_ms"] * 1e3
                row.update(steps_per_s=speed, raw_steps_per_s=raw, share_of_raw=speed / raw)
            yield row
        yield time_iteration(f"{case.name}: meta-iteration", case, SUBSAMPLE, LEAST)


__all__ = ["locomotion_suite", "make_case", "physics_suite"]
