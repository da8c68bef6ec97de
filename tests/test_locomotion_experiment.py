"""The locomotion experiment: its settings, a small run, and films."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("brax", reason="locomotion needs the rl extra")

from experiments import locomotion as experiment
from experiments.core import runner
from experiments.core.config import ConfigError, public_fields
from experiments.locomotion import config as config_lib
from experiments.locomotion import render
from experiments.meta_rl.config import make_problem
from maml_jax.networks import gaussian_policy
from maml_jax.reinforcement import Environment, State
from maml_jax.reinforcement import locomotion as lib

ROOT = Path(__file__).resolve().parents[1]
KEY = jax.random.key(0)
SMALL = {
    "physics": "brax_spring",
    "horizon": 4,
    "methods": ("maml",),  # each compiles the physics again; navigation's tests run all of them
    "meta_steps": 2,
    "num_tasks": 2,
    "num_episodes": 2,
    "hidden_sizes": (4,),
    "validate_every": 1,
    "validation_tasks": 2,
    "eval_tasks": 2,  # as many as for validation, to share its program
    "eval_episodes": 2,
    "eval_updates": 1,
}


def light_robot(*names, **options):
    """Makes a robot whose coordinates are the time, for runs that compile fast."""

    def look(time, cost):
        return time, lib.Motion(jnp.full(17, 0.1) * time, time, cost, time < 0, time < 100)

    def step(time, action):
        return look(time + 1.0, 0.05 * jnp.sum(action**2))

    pose = lambda time: jnp.full(9, time)
    return lib.Physics(lambda key: look(jnp.zeros(()), 0.0), step, 17, 6, 0.05, pose, None)


@pytest.fixture
def robot(request, monkeypatch):
    """The real robot or a light replacement."""
    if request.param == "light":
        monkeypatch.setattr(lib, "make_physics", light_robot)
    config_lib._environment.cache_clear()
    yield
    config_lib._environment.cache_clear()


@pytest.mark.parametrize(
    "robot", ["light", pytest.param("real", marks=pytest.mark.slow)], indirect=True
)
def test_a_run_from_end_to_end(tmp_path, robot):
    workdir = tmp_path / "small"
    result = runner.run(experiment.EXPERIMENT, workdir, experiment.Config(**SMALL))
    for name in ("results.json", "figure.png", "evaluation.npz"):
        assert (workdir / name).stat().st_size > 0
    names = {row["setting"] for row in result["rows"]}
    assert names == {"cheetah direction, Brax spring, horizon 4"}
    assert {row["method"] for row in result["rows"]} == {"maml"}
    assert np.load(workdir / "evaluation.npz")["speeds/maml"].shape == (2, 2)


# Films


def toy(config):
    """Makes a robot that moves 0.01 m a step under any action, for films that compile fast."""
    model = lib.make_physics("half_cheetah", "brax").model

    def state(time, goal):
        pose = jnp.zeros(model.nq).at[0].set(0.01 * time)
        return State(jnp.ones(1), goal, jnp.zeros((), bool), ((time, pose), goal))

    env = Environment(
        sample_task=lambda key: jnp.ones(()),
        reset=lambda key, goal: state(jnp.zeros(()), goal),
        step=lambda before, action: state(before.inner[0][0] + 1.0, before.inner[1]),
        num_observations=1,
        num_actions=1,
        horizon=config.horizon,
        task_features=lambda goal: goal[None],
    )
    return env, SimpleNamespace(pose=lambda inner: inner[1], timestep=0.05, model=model)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run of the toy, as `--mode=render` receives it."""
    config = experiment.Config(**SMALL)
    env, physics = toy(config)
    monkeypatch.setattr(render, "make_environment", lambda config: env)
    monkeypatch.setattr(render, "make_physics", lambda config: physics)
    params = make_problem(config, env, "maml").init(KEY)
    return SimpleNamespace(settings=config, params={"maml": params}, workdir=tmp_path)


def test_films(run, capsys):
    render.render(run, "1", "0,1")
    text = (run.workdir / "film.html").read_text()
    assert "http" not in text.replace("http-equiv", "")  # works offline
    assert "DATA" not in text.split("<script>")[1].split("\n")[2]
    from PIL import Image

    with Image.open(run.workdir / "film.gif") as picture:
        assert picture.n_frames >= 3
    assert "after 1 update: +0.20 m/s on average\n" in capsys.readouterr().out


def test_impossible_films_are_refused(run):
    for goal, updates, message in (
        ("0.5", "0,1", "--film_goal must be -1 or 1"),
        ("nan", "0,1", "--film_goal must be a finite number; received 'nan'"),
        ("", "one", "--film_updates must be 1 to 4 numbers of updates"),
        ("", "1,1", "--film_updates must be 1 to 4 numbers of updates"),
    ):
        with pytest.raises(ConfigError, match=message):
            render.render(run, goal, updates)
    run.params = {"pretrained": run.params["maml"]}
    with pytest.raises(ConfigError, match="no policy that adapts"):
        render.render(run, "", "0")


def test_robots_have_the_poses_for_films():
    """Traces without compiling."""
    config = experiment.Config(**{**SMALL, "feedback": True})
    robot = config_lib.make_physics(config)
    problem = make_problem(config, experiment.make_environment(config), "maml")
    play = render.make_player(problem.env, problem.policy, 1.0, robot.pose)
    poses, _ = jax.eval_shape(play, jax.eval_shape(problem.init, KEY))
    assert poses.shape == (config.horizon + 1, robot.model.nq)


def test_a_film_ends_at_a_non_finite_observation():
    """The third of five steps gives a non-finite observation."""

    def state(time):
        observation = jnp.where(time > 2, jnp.nan, jnp.ones(1))
        return State(observation, jnp.zeros(()), jnp.zeros((), bool), (time,))

    env = SimpleNamespace(
        reset=lambda key, goal: state(jnp.zeros(())),
        step=lambda before, action: state(before.inner[0] + 1.0),
        horizon=5,
    )
    policy = gaussian_policy(1, 1, (2,))
    play = render.make_player(env, policy, 0.0, lambda time: time[None])
    poses, taken = play(policy.init(KEY))
    assert poses[:, 0].tolist() == [0, 1, 2, 2, 2, 2]
    assert taken == 2


# Settings


def test_settings_of_the_original_runs_depend_on_the_task():
    usual = experiment.Config()
    assert (usual.solver_iterations, usual.line_search_iterations) == lib.STANDARD[:2]
    assert experiment.setting(usual) == "cheetah direction"
    other = experiment.Config(physics="brax_mjx", estimators="brax", feedback=True)
    assert experiment.setting(other) == (
        "cheetah direction, Brax mjx, Brax's estimators, action and reward seen"
    )
    short = experiment.Config(solver_iterations=1, contacts="feet", horizon=50)
    assert experiment.setting(short) == (
        "cheetah direction, solver 1 x 8, feet touch the ground, horizon 50"
    )
    assert (usual.meta_steps, usual.num_episodes, usual.max_kl) == (100, 20, 0.02)
    ant = experiment.Config(task="ant_direction", num_episodes=7)
    assert (ant.meta_steps, ant.num_episodes, ant.later_rate) == (575, 7, 0.01)
    assert dataclasses.replace(ant, max_kl=0.5).max_kl == 0.5
    assert len(public_fields(experiment.Config)) < 22


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="--estimators=brax needs --policy=mlp"):
        experiment.Config(estimators="brax", policy="recurrent")
    with pytest.raises(ConfigError, match="--task must be one of"):
        experiment.Config(task="dog")
    with pytest.raises(ConfigError, match=r"--physics must be one of paper, brax_spring.*'brax'"):
        experiment.Config(physics="brax")


COMMAND_WITHOUT_BRAX = """
import sys
sys.modules["brax"] = None
from experiments import locomotion
from experiments.core import command
command.main(locomotion.EXPERIMENT)
"""


def test_a_command_without_brax_names_the_extra(tmp_path):
    line = [sys.executable, "-c", COMMAND_WITHOUT_BRAX, f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: locomotion needs Brax")
    assert "Traceback" not in done.stderr
