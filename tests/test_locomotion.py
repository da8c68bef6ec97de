"""Locomotion: the physics against MuJoCo's engine, and the rewards."""

import functools
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("brax", reason="locomotion needs the rl extra")

import mujoco

from maml_jax.networks import gaussian_policy
from maml_jax.reinforcement import check_environment
from maml_jax.reinforcement import locomotion as lib
from maml_jax.reinforcement.locomotion import mujoco_physics

KEY = jax.random.key(0)
STEPS, EPISODES, STARTS = 60, 4, 400


@pytest.fixture(scope="module")
def robots():
    """Each robot in the paper's physics, with some episodes of random actions.

    The same program computes 400 starts, and steps at rest from two heights and from two speeds
    that are not sound.
    """
    played = {}
    for name in ("half_cheetah", "ant"):
        physics = lib.make_physics(name)

        @jax.jit
        def play(key, actions, physics=physics):
            starts, first = jax.vmap(physics.reset)(jax.random.split(key, STARTS))
            begin = jax.tree.map(lambda x: x[: EPISODES + 4], starts)
            at = 2 if physics.num_actions == 8 else 1
            heights = jnp.array([0.1, 1.5])
            begin = begin._replace(
                qpos=begin.qpos.at[EPISODES : EPISODES + 2, at].set(heights),
                qvel=begin.qvel.at[EPISODES + 2 :, at].set(jnp.array([2e3, jnp.nan])),
            )

            def body(inner, action):
                action = jnp.concatenate([action, jnp.zeros((4, physics.num_actions))])
                after, motion = jax.vmap(physics.step)(inner, action)
                return after, (after, motion)

            _, (inners, motions) = jax.lax.scan(body, begin, actions)
            return starts, first, inners, motions

        actions = jax.random.uniform(
            jax.random.key(1), (STEPS, EPISODES, physics.num_actions), minval=-1.5, maxval=1.5
        )
        played[name] = physics, actions, play(KEY, actions)
    return played


@functools.cache
def exact_model(name):
    return getattr(mujoco_physics, f"{name}_model")(lib.ACCURATE)


def engine(name, inner, action):
    """Steps MuJoCo's engine once from a state, with the same model and an accurate solver."""
    model = exact_model(name)
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:], data.qacc_warmstart[:] = inner.qpos, inner.qvel, inner.warmstart
    data.ctrl[:] = np.clip(action, -1, 1)
    mujoco.mj_forward(model, data)
    upright = any(
        abs(data.geom_xmat[contact.geom[1]][8]) > 0.8 for contact in data.contact[: data.ncon]
    )
    mujoco.mj_step(model, data)
    return data.qpos, data.qvel, upright, data.ncon


@pytest.mark.parametrize("name", ["half_cheetah", "ant"])
def test_the_papers_physics_agrees_with_mujoco(robots, name):
    """Compares one step from each state that random actions reach.

    The tolerance is larger if an ant's leg that touches the ground is within 37 degrees of upright:
    within 30 degrees, mjx turns the friction pyramid's axes, along which friction is larger, and
    the leg moves during a step.
    """
    _, actions, (_, _, inners, _) = robots[name]
    errors, others, touching = [], [], 0
    for episode in range(EPISODES):
        for step in range(STEPS - 1):
            state = jax.tree.map(lambda x, s=step, e=episode: np.asarray(x[s, e], float), inners)
            qpos, qvel, upright, contacts = engine(name, state, actions[step + 1, episode])
            error = max(
                np.abs(inners.qpos[step + 1, episode] - qpos).max(),
                np.abs(inners.qvel[step + 1, episode] - qvel).max(),
            )
            (others if upright and name == "ant" else errors).append(error)
            touching += contacts > 0
    assert touching > STEPS * EPISODES / 6
    assert np.median(errors) < 1e-5
    assert np.quantile(errors, 0.9) < 1e-3
    assert np.median(others or [0.0]) < 0.2


def test_a_cheetahs_path_agrees_with_mujoco(robots):
    """Both play the same random actions from the same start."""
    _, actions, (start, _, inners, _) = robots["half_cheetah"]
    model = exact_model("half_cheetah")
    for episode in range(EPISODES):
        data = mujoco.MjData(model)
        data.qpos[:], data.qvel[:] = start.qpos[episode], start.qvel[episode]
        deviation = []
        for step, action in enumerate(np.asarray(actions[:, episode])):
            data.ctrl[:] = np.clip(action, -1, 1)
            mujoco.mj_step(model, data)
            deviation.append(np.abs(np.asarray(inners.qpos[step, episode]) - data.qpos).max())
        assert max(deviation[:10]) < 1e-5
        assert np.median(deviation) < 1e-3


@pytest.mark.parametrize("name", ["half_cheetah", "ant"])
def test_observations_and_costs_agree_with_mujocos_data(robots, name):
    physics, actions, (_, first, inners, motions) = robots[name]
    model = physics.model
    data = mujoco.MjData(model)
    assert first.observation.shape == (STARTS, physics.num_observations)
    np.testing.assert_array_equal(first.cost, 0)
    for step, episode in [(0, 0), (40, 1), (STEPS - 1, 2)]:
        data.qpos[:], data.qvel[:] = inners.qpos[step, episode], inners.qvel[step, episode]
        mujoco.mj_fwdPosition(model, data)
        mujoco.mj_fwdVelocity(model, data)
        mujoco.mj_subtreeVel(model, data)
        torso = model.body("torso").id
        centre = data.subtree_com[torso]
        if name == "half_cheetah":
            expected = np.concatenate([data.qpos[1:], data.qvel, centre])
            price = 0.05
        else:
            expected = np.concatenate([data.qpos, data.qvel, data.xmat[torso], centre])
            price = 0.005
        np.testing.assert_allclose(motions.observation[step, episode], expected, atol=2e-5)
        speed = data.subtree_linvel[torso][0]
        np.testing.assert_allclose(motions.velocity[step, episode], speed, atol=2e-4)
        clipped = np.clip(actions[step, episode], -1, 1)
        np.testing.assert_allclose(
            motions.cost[step, episode], price * np.sum(clipped**2), rtol=1e-5
        )


def test_models_have_the_original_time_steps_and_initial_noise(robots):
    steps = {"half_cheetah": (0.01, "mjINT_EULER", 20, 6), "ant": (0.02, "mjINT_RK4", 41, 8)}
    for name, (timestep, integrator, observations, actions) in steps.items():
        physics, _, (starts, *_rest) = robots[name]
        assert physics.timestep == physics.model.opt.timestep == timestep
        assert physics.model.opt.integrator == getattr(mujoco.mjtIntegrator, integrator)
        assert (physics.num_observations, physics.num_actions) == (observations, actions)
        assert physics.pose(starts) is starts.qpos
        np.testing.assert_allclose(np.std(starts.qvel), 0.1, rtol=0.05)
        joints = starts.qpos[:, -physics.num_actions :]
        np.testing.assert_allclose(np.std(joints, axis=0).mean(), 0.01, rtol=0.1)
    cheetah, ant = robots["half_cheetah"][0].model, robots["ant"][0].model
    assert np.sum(cheetah.geom_contype) == cheetah.ngeom - 1  # the whole robot touches the floor
    assert np.sum(ant.geom_contype) == ant.ngeom - 5  # except Brax's massless feet
    np.testing.assert_allclose(ant.geom_margin[1:], 0.01)  # except the floor's


def test_the_ant_falls_and_the_cheetah_does_not(robots):
    for name, expected in (("half_cheetah", [False, False]), ("ant", [True, True])):
        _, _, (_, first, _, motions) = robots[name]
        assert not first.fallen.any()
        np.testing.assert_array_equal(motions.fallen[0, EPISODES : EPISODES + 2], expected)
        assert not motions.fallen[0, :EPISODES].any()


@pytest.mark.parametrize("name", ["half_cheetah", "ant"])
def test_extreme_states_are_not_sound(robots, name):
    _, _, (_, first, _, motions) = robots[name]
    assert first.sound.all()
    assert motions.sound[:, : EPISODES + 1].all()
    assert not motions.sound[0, EPISODES + 2 :].any()


@pytest.mark.parametrize("task", lib.TASKS)
def test_tasks_and_their_rewards(task):
    family = lib.FAMILIES[task]
    goals = np.asarray(jax.vmap(family.sample_goal)(jax.random.split(KEY, 2_000)))
    if task.endswith("direction"):
        assert set(goals) == {-1.0, 1.0}
        assert abs(goals.mean()) < 0.1
    else:
        highest = 2 if task.startswith("cheetah") else 3
        assert 0 <= goals.min() < goals.max() < highest
        assert abs(goals.mean() - highest / 2) < 0.1
    forward, backward = {
        "cheetah_velocity": (-0.5, -2.5),
        "cheetah_direction": (1.5, -1.5),
        "ant_velocity": (0.55, -1.45),
        "ant_direction": (1.55, -1.45),
    }[task]
    assert float(family.gain(jnp.asarray(1.5), jnp.asarray(1.0))) == pytest.approx(forward)
    assert float(family.gain(jnp.asarray(1.5), jnp.asarray(-1.0))) == pytest.approx(backward)


def test_the_reward_is_the_gain_minus_the_cost(monkeypatch):
    """The robot's velocity and cost are its actions; beyond 5 its state is not sound."""

    def step(inner, action):
        motion = lib.Motion(jnp.ones(1), action[0], action[1], action[0] > 2, action[0] < 5)
        return inner, motion

    def reset(key):
        return jnp.zeros(()), step(jnp.zeros(()), jnp.zeros(2))[1]

    robot = lib.Physics(reset, step, 1, 2, 0.01, lambda inner: inner, None)
    monkeypatch.setattr(lib, "make_physics", lambda *names, **options: robot)
    env = lib.locomotion("cheetah_direction")
    begun = env.reset(KEY, jnp.asarray(-1.0))
    assert begun.reward == 0.0
    one = env.step(begun, jnp.array([1.5, 0.25]))
    assert (float(one.reward), bool(one.done)) == (-1.75, False)
    assert env.step(one, jnp.array([3.0, 0.0])).done
    assert np.isnan(env.step(one, jnp.array([6.0, 0.0])).observation).all()


@pytest.mark.parametrize("backend", ["paper", *lib.BACKENDS])
def test_every_physics_makes_sound_environments(backend):
    physics, options = ("paper", {}) if backend == "paper" else ("brax", {"backend": backend})
    for task in ("cheetah_velocity", "ant_direction"):
        env = lib.locomotion(task, physics, **options)
        check_environment(env, gaussian_policy(env.num_observations, env.num_actions, (4,)))
        assert env.horizon == 200


def test_unknown_names():
    with pytest.raises(ValueError, match=r"task must be one of.*cheetah_direction.*'dog'"):
        lib.locomotion("dog")
    with pytest.raises(ValueError, match=r"physics must be one of 'paper', 'brax'; received"):
        lib.locomotion("ant_velocity", "moon")
    with pytest.raises(ValueError, match=r"backend must be one of 'spring'.*'bullet'"):
        lib.locomotion("ant_velocity", "brax", backend="bullet")
    with pytest.raises(ValueError, match=r"contacts must be one of 'all', 'feet'; received 'none'"):
        lib.locomotion("ant_velocity", solver=lib.Solver(1, 4, "none"))


@pytest.mark.parametrize("name", ["half_cheetah", "ant"])
def test_velocities_are_in_the_robots_columns(robots, name):
    """The root's velocity in the paper's physics; Brax omits other coordinates before it."""
    physics, _, (_, _, inners, motions) = robots[name]
    column = lib.ROBOTS[name].velocity_column
    np.testing.assert_array_equal(
        motions.observation[:, :EPISODES, column["paper"]], inners.qvel[:, :EPISODES, 0]
    )
    left_out = {"half_cheetah": 1, "ant": 2}[name]
    assert column["brax"] == physics.model.nq - left_out


def test_an_install_without_brax_names_the_extra():
    code = (
        "import sys; sys.modules['brax'] = None\n"
        "import maml_jax.reinforcement\n"
        "from maml_jax.reinforcement import locomotion"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert re.search(r"ImportError: locomotion needs Brax.*maml-jax\[rl\]", done.stderr)


def test_importing_is_quiet():
    code = (
        "from maml_jax.reinforcement import locomotion as l\n"
        "for robot in ('ant', 'half_cheetah'): l.make_physics(robot); l.make_physics(robot, 'brax')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
