"""Locomotion: the physics against MuJoCo itself, the rewards, Brax's estimators, and a run."""

import functools
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("brax", reason="locomotion needs the rl extra")

import mujoco

from experiments import films
from experiments import locomotion as experiment
from experiments.core import runner
from experiments.core.config import ConfigError
from maml_jax import init
from maml_jax.networks import Gaussian, gaussian_policy
from maml_jax.reinforcement import (
    State,
    check_environment,
    gradient_steps,
    informed,
    make_iterate_fn,
    reinforcement_problem,
    rollout,
    trpo,
)
from maml_jax.reinforcement import locomotion as lib
from maml_jax.reinforcement.advantages import fit_baseline, generalized_advantages
from maml_jax.reinforcement.locomotion import mujoco_physics
from maml_jax.reinforcement.objectives import Samples, surrogate_of

ROOT = Path(__file__).resolve().parents[1]
KEY = jax.random.key(0)
STEPS, EPISODES, STARTS = 100, 6, 400


@pytest.fixture(scope="module")
def robots():
    """Each robot in the paper's physics, and 100 steps of 6 episodes from random actions.

    And, in the same program, 400 starts, and one step from two heights at rest and from two speeds
    that are none.
    """
    found = {}
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
        found[name] = physics, actions, play(KEY, actions)
    return found


@functools.cache
def exact_model(name):
    return getattr(mujoco_physics, f"{name}_model")(lib.ACCURATE)


def engine(name, inner, action):
    """MuJoCo's own engine, with the same model and an exact solver, one step after a state."""
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
def test_the_papers_physics_is_mujocos(robots, name):
    """One step from each state of 100 random actions.

    But for the ant where a leg that touches the ground stands within 37 degrees of upright: within
    30, mjx turns the friction pyramid's axes, along which friction is larger, and a leg moves.
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
    assert touching > 100
    assert np.median(errors) < 1e-5
    assert np.quantile(errors, 0.9) < 1e-3
    assert np.median(others or [0.0]) < 0.2


def test_a_cheetahs_path_is_mujocos(robots):
    """100 random actions, from the same start."""
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
def test_observations_and_costs_are_those_of_mujocos_data(robots, name):
    physics, actions, (_, first, inners, motions) = robots[name]
    model = physics.model
    data = mujoco.MjData(model)
    assert first.observation.shape == (STARTS, physics.num_observations)
    np.testing.assert_array_equal(first.cost, 0)
    for step, episode in [(0, 0), (40, 1), (99, 2)]:
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


def test_models_have_the_original_time_steps_and_noise(robots):
    steps = {"half_cheetah": (0.01, "mjINT_EULER", 20, 6), "ant": (0.02, "mjINT_RK4", 41, 8)}
    for name, (timestep, integrator, observations, actions) in steps.items():
        physics, _, (starts, *_rest) = robots[name]
        assert physics.timestep == physics.model.opt.timestep == timestep
        assert physics.model.opt.integrator == getattr(mujoco.mjtIntegrator, integrator)
        assert (physics.num_observations, physics.num_actions) == (observations, actions)
        np.testing.assert_allclose(np.std(starts.qvel), 0.1, rtol=0.05)
        joints = starts.qpos[:, -physics.num_actions :]
        np.testing.assert_allclose(np.std(joints, axis=0).mean(), 0.01, rtol=0.1)
    cheetah, ant = robots["half_cheetah"][0].model, robots["ant"][0].model
    assert np.sum(cheetah.geom_contype) == cheetah.ngeom - 1  # all of the robot, on the floor
    assert np.sum(ant.geom_contype) == ant.ngeom - 5  # but for Brax's massless feet
    np.testing.assert_allclose(ant.geom_margin[1:], 0.01)  # but for the floor's


def test_the_ant_falls_and_the_cheetah_does_not(robots):
    for name, expected in (("half_cheetah", [False, False]), ("ant", [True, True])):
        _, _, (_, first, _, motions) = robots[name]
        assert not first.fallen.any()
        np.testing.assert_array_equal(motions.fallen[0, EPISODES : EPISODES + 2], expected)
        assert not motions.fallen[0, :EPISODES].any()


@pytest.mark.parametrize("name", ["half_cheetah", "ant"])
def test_states_beyond_all_bounds_are_not_sound(robots, name):
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


def test_a_step_is_worth_its_gain_less_its_cost(monkeypatch):
    """With a robot whose velocity and cost are its action, and that blows up beyond 5."""

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
        policy = gaussian_policy(env.num_observations, env.num_actions, (4,))
        check_environment(env, policy)
        check_environment(informed(env))
        assert env.horizon == 200


def factorizations(jaxpr):
    """Operations of each batch of factorisations and of triangular solves in a jaxpr."""
    for equation in jaxpr.eqns:
        shape = equation.invars[0].aval.shape if equation.invars else ()
        if equation.primitive.name == "cholesky":
            yield np.prod(shape[:-2]) * shape[-1] ** 3 / 3
        elif equation.primitive.name == "triangular_solve":
            yield np.prod(equation.outvars[0].aval.shape) * shape[-1]
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
        ):
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                yield from factorizations(getattr(value, "jaxpr", value))


@pytest.mark.parametrize(
    ("physics", "backend"),
    [
        ("paper", "spring"),
        ("brax", "generalized"),
        pytest.param("brax", "mjx", marks=pytest.mark.slow),
    ],
)
def test_factorisations_are_too_small_to_be_handed_out(physics, backend):
    """Where jaxlib (0.10) hands a batch to its threads and waits for them on the same threads."""
    made = lib.make_physics("ant", physics, backend=backend)
    inner, _ = jax.eval_shape(made.reset, jax.random.key(0))
    many = lambda x: jax.ShapeDtypeStruct((20, 20, *x.shape), x.dtype)
    states, actions = jax.tree.map(many, (inner, jnp.zeros(made.num_actions)))
    keys = jax.eval_shape(lambda key: jax.random.split(key, (20, 20)), KEY)
    costs = []
    for fn, args in ((made.reset, (keys,)), (made.step, (states, actions))):
        costs += factorizations(jax.make_jaxpr(jax.vmap(jax.vmap(fn)))(*args).jaxpr)
    assert costs
    assert max(costs) < 200_000


def test_the_baselines_factorisations_are_too_small_to_be_handed_out():
    """20 tasks and five ridges; a matrix that is larger by itself is one at a time."""
    fit = jax.vmap(lambda o, r: fit_baseline(o, r, jnp.ones((4, 2), bool)))
    for observations, largest in ((20, 200_000), (41, 86**3 / 3)):
        shapes = jnp.zeros((20, 4, 2, observations)), jnp.zeros((20, 4, 2))
        assert 0 < max(factorizations(jax.make_jaxpr(fit)(*shapes).jaxpr)) <= largest


def test_names_that_nobody_knows():
    with pytest.raises(ValueError, match=r"task must be one of.*cheetah_direction.*'dog'"):
        lib.locomotion("dog")
    with pytest.raises(ValueError, match=r"physics must be one of 'paper', 'brax'; received"):
        lib.locomotion("ant_velocity", "moon")
    with pytest.raises(ValueError, match=r"backend must be one of 'spring'.*'bullet'"):
        lib.locomotion("ant_velocity", "brax", backend="bullet")
    with pytest.raises(ValueError, match=r"contacts must be one of 'all', 'feet'; received 'none'"):
        lib.locomotion("ant_velocity", solver=lib.Solver(1, 4, "none"))
    with pytest.raises(ConfigError, match="--task must be one of"):
        experiment.Config(task="dog")
    with pytest.raises(ConfigError, match=r"--backend must be one of.*'bullet'"):
        experiment.Config(backend="bullet")


def test_a_flag_that_would_do_nothing_is_refused():
    with pytest.raises(ConfigError, match="--backend belongs to --physics=brax"):
        experiment.Config(backend="generalized")
    for name, value in {
        "solver_iterations": 1,
        "line_search_iterations": 2,
        "contacts": "feet",
    }.items():
        with pytest.raises(ConfigError, match=f"--{name} belongs to --physics=paper"):
            experiment.Config(**{"physics": "brax", name: value})


def test_an_explosion_stays_in_its_episode():
    """A robot whose state is beyond all bounds ends its episode; the rest is learned from."""
    env = lib.locomotion("cheetah_direction", "brax", horizon=3)

    def explosive(key, goal):
        state = env.reset(key, goal)
        brax_state, goal = state.inner
        speed = jnp.where(jax.random.bernoulli(key, 0.5), 1e9, 1.0)
        moved = brax_state.pipeline_state
        fast = moved.xd_i.replace(vel=moved.xd_i.vel * speed + (speed > 1) * speed)
        moved = moved.replace(xd_i=fast)
        return state._replace(inner=(brax_state.replace(pipeline_state=moved), goal))

    wild = env._replace(reset=explosive)
    policy = gaussian_policy(env.num_observations, env.num_actions, (4,))
    problem = reinforcement_problem(wild, policy, num_episodes=4)
    update = trpo(problem)
    state = init(policy.init(KEY), update, 0)
    state, metrics = make_iterate_fn(problem, update, num_tasks=2)(state)
    assert 0 < float(metrics["before"]["nonfinite"][0]) < 1
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state.params))


COMMAND_WITHOUT_BRAX = """
import sys
sys.modules["brax"] = None
from experiments import locomotion
from experiments.core import command
command.main(locomotion.EXPERIMENT)
"""


def test_an_install_without_brax_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['brax'] = None\n"
        "import maml_jax.reinforcement\n"
        "from maml_jax.reinforcement import locomotion"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert re.search(r"ImportError: locomotion needs Brax.*maml-jax\[rl\]", done.stderr)
    line = [sys.executable, "-c", COMMAND_WITHOUT_BRAX, f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: locomotion needs Brax")
    assert "Traceback" not in done.stderr


def test_importing_is_quiet():
    code = (
        "from maml_jax.reinforcement import locomotion as l\n"
        "for robot in ('ant', 'half_cheetah'): l.make_physics(robot); l.make_physics(robot, 'brax')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# Brax's estimators agree with ours where both compute the same thing.


def made_up_samples(key, distribution, num_steps=7, num_episodes=5):
    a, b, c = jax.random.split(key, 3)
    lengths = jax.random.randint(a, (num_episodes,), 2, num_steps + 1)
    alive = jnp.arange(num_steps)[:, None] < lengths
    advantages = jnp.where(alive, jax.random.normal(b, alive.shape), 0.0)
    actions = distribution.sample(c)
    return Samples(jnp.zeros((*alive.shape, 1)), actions, advantages, alive, distribution, {})


def test_brax_advantages_are_ours_for_whole_returns():
    a, b, c, d = jax.random.split(KEY, 4)
    lengths = jnp.array([7, 3, 5, 1])
    alive = jnp.arange(7)[:, None] < lengths
    rewards = jnp.where(alive, jax.random.normal(a, (7, 4)), 0.0)
    values, last = jax.random.normal(b, (7, 4)), jax.random.normal(c, (4,))
    for last_values in (None, last):
        ours = generalized_advantages(rewards, values, alive, 0.9, 1.0, last_values)
        theirs = lib.brax_advantages(rewards, values, alive, 0.9, 1.0, last_values)
        np.testing.assert_allclose(theirs, ours, atol=1e-5)
    ours = generalized_advantages(rewards, values, alive, 0.9, 0.5)
    theirs = lib.brax_advantages(rewards, values, alive, 0.9, 0.5)
    assert np.max(np.abs(theirs - ours)) > 0.1  # another estimator, as its docstring says


def test_brax_distribution_is_a_gaussian_before_the_tanh():
    parameters = jax.random.normal(KEY, (7, 5, 6))
    other = lib.NormalTanh(parameters + 0.1)
    tanh = lib.NormalTanh(parameters)
    deviations = jax.nn.softplus(parameters[..., 3:]) + 0.001
    gaussian = Gaussian(parameters[..., :3], jnp.log(deviations))
    actions = tanh.sample(jax.random.key(1))
    jacobian = jnp.sum(jnp.log1p(-(jnp.tanh(actions) ** 2)), -1)
    np.testing.assert_allclose(
        tanh.log_prob(actions), gaussian.log_prob(actions) - jacobian, atol=2e-3
    )
    np.testing.assert_allclose(tanh.kl(other), gaussian.kl(other.before_tanh), rtol=1e-5)
    assert np.all(tanh.kl(tanh) == 0)


def test_brax_ppo_loss_is_our_clipped_surrogate():
    old = lib.NormalTanh(jax.random.normal(KEY, (7, 5, 6)))
    samples = made_up_samples(jax.random.key(1), old)
    new = lib.NormalTanh(old.parameters + 0.3 * jax.random.normal(jax.random.key(2), (7, 5, 6)))
    loss = lib.brax_ppo_loss(clip=0.2)

    def ours(parameters):
        return surrogate_of(lib.NormalTanh(parameters), samples, 0.2)[0]

    def theirs(parameters):
        return loss(lib.NormalTanh(parameters), samples)[0]

    np.testing.assert_allclose(theirs(new.parameters), ours(new.parameters), rtol=1e-5)
    np.testing.assert_allclose(
        jax.grad(theirs)(new.parameters), jax.grad(ours)(new.parameters), atol=1e-6
    )
    far = jnp.where(samples.alive[..., None], new.parameters, 1e4)  # ratios that overflow
    gradient = jax.grad(theirs)(far)
    assert np.all(np.isfinite(gradient))
    assert not np.any(gradient[~samples.alive])
    dear = lib.brax_ppo_loss(clip=0.2, entropy_cost=0.1)
    assert dear(new, samples)[0] != theirs(new.parameters)


def test_brax_estimators_drive_an_iteration():
    def sample_task(key):
        return jax.random.normal(key, (1,))

    def reset(key, task):
        return State(jnp.zeros(1), jnp.zeros(()), jnp.zeros((), bool), task)

    def step(state, action):
        assert action.shape == (1,)
        return state._replace(reward=-jnp.sum((action - state.inner) ** 2))

    env = lib.squashed(
        lib.locomotion("cheetah_direction", "brax")._replace(
            sample_task=sample_task,
            reset=reset,
            step=step,
            num_observations=1,
            num_actions=1,
            horizon=3,
            task_features=lambda t: t,
        )
    )
    policy = lib.tanh_gaussian_policy(1, 1, (4,))
    seen = rollout(env, policy, policy.init(KEY), jnp.zeros(1), KEY, 20)
    assert float(jnp.max(-seen.rewards)) <= 1.0  # the tanh bounds what acts
    problem = reinforcement_problem(env, policy, num_episodes=5)
    update = gradient_steps(
        problem, optax.adam(1e-2), num_epochs=2, loss=lib.brax_ppo_loss(entropy_cost=1e-3)
    )
    state = init(policy.init(KEY), update, 0)
    before = state.params
    after, metrics = make_iterate_fn(problem, update, num_tasks=2)(jax.tree.map(jnp.copy, state))
    assert np.isfinite(metrics["surrogate_after"]).all()
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), before, after.params)
    assert max(jax.tree.leaves(moved)) > 0


# The experiment.

SMALL = {
    "physics": "brax",
    "horizon": 5,
    "methods": ("maml",),  # each one compiles the physics again; navigation's tests run them all
    "meta_steps": 2,
    "num_tasks": 2,
    "num_episodes": 3,
    "hidden_sizes": (4,),
    "validate_every": 1,
    "validation_tasks": 2,
    "eval_tasks": 4,
    "eval_episodes": 2,
    "eval_updates": 1,
    "tuning_tasks": 4,  # as for the evaluation, whose program it shares
    "tuning_rates": (0.1,),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "small"
    settings = experiment.Config(**SMALL)
    return workdir, runner.run(experiment.EXPERIMENT, workdir, settings)


def test_a_run_from_end_to_end(finished):
    workdir, found = finished
    for name in ("results.json", "figure.png", "evaluation.npz"):
        assert (workdir / name).stat().st_size > 0
    names = {row["setting"] for row in found["rows"]}
    assert names == {"cheetah direction, Brax spring, horizon 5"}
    assert {row["method"] for row in found["rows"]} == {"maml"}
    assert np.load(workdir / "evaluation.npz")["speeds/maml"].shape == (4, 2)


def test_a_run_can_be_seen(finished, capsys):
    workdir, _ = finished
    films.render(runner.load(experiment.EXPERIMENT, workdir), "1", "0,1")
    text = (workdir / "film.html").read_text()
    assert "http" not in text.replace("http-equiv", "")  # works offline
    assert "DATA" not in text.split("<script>")[1].split("\n")[2]
    from PIL import Image

    with Image.open(workdir / "film.gif") as picture:
        assert picture.n_frames >= 3
    assert "after 1 update" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--film_goal must be -1 or 1"):
        films.render(runner.load(experiment.EXPERIMENT, workdir), "0.5", "0,1")
    with pytest.raises(ConfigError, match="--film_goal must be a finite number; received 'nan'"):
        films.render(runner.load(experiment.EXPERIMENT, workdir), "nan", "0,1")
    with pytest.raises(ConfigError, match="--film_updates"):
        films.render(runner.load(experiment.EXPERIMENT, workdir), "", "one")


def test_a_film_ends_where_the_episode_blows_up():
    """The third of five steps gives an observation that is not finite."""

    def state(time):
        observation = jnp.where(time > 2, jnp.nan, jnp.ones(1))
        return State(observation, jnp.zeros(()), jnp.zeros((), bool), (time,))

    env = SimpleNamespace(
        reset=lambda key, goal: state(jnp.zeros(())),
        step=lambda before, action: state(before.inner[0] + 1.0),
        horizon=5,
    )
    policy = gaussian_policy(1, 1, (2,))
    play = films._player(env, policy, jnp.zeros(()), lambda time: time[None])
    poses, taken = play(policy.init(KEY))
    assert poses[:, 0].tolist() == [0, 1, 2, 2, 2, 2]
    assert taken == 2


def test_settings_of_the_original_runs_depend_on_the_task():
    usual = experiment.Config()
    assert (usual.solver_iterations, usual.line_search_iterations) == lib.STANDARD[:2]
    direction = experiment.Config()
    assert experiment.setting(direction) == "cheetah direction"
    other = experiment.Config(physics="brax", backend="mjx", estimators="brax", feedback=True)
    assert experiment.setting(other) == (
        "cheetah direction, Brax mjx, Brax's estimators, action and reward seen"
    )
    short = experiment.Config(solver_iterations=1, contacts="feet", horizon=50)
    assert experiment.setting(short) == (
        "cheetah direction, solver 1 x 8, feet touch the ground, horizon 50"
    )
    assert (direction.meta_steps, direction.num_episodes, direction.max_kl) == (100, 20, 0.02)
    ant = experiment.Config(task="ant_direction", num_episodes=7)
    assert (ant.meta_steps, ant.num_episodes, ant.later_rate) == (575, 7, 0.01)
    with pytest.raises(ConfigError, match="--estimators=brax needs --policy=mlp"):
        experiment.Config(estimators="brax", policy="recurrent")
