"""The navigation experiment, end to end on a small scale."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import navigation, report
from experiments.core import logbook, runner
from experiments.core.config import ConfigError
from experiments.meta_rl import config as config_lib
from experiments.meta_rl import evaluation, stages
from experiments.meta_rl.config import METHODS
from maml_jax import NonFiniteError
from maml_jax.networks import gaussian_policy

SMALL = {
    "horizon": 6,
    "meta_steps": 4,
    "num_tasks": 4,
    "num_episodes": 4,
    "hidden_sizes": (8,),
    "validate_every": 2,
    "validation_tasks": 2,
    "eval_tasks": 4,
    "eval_episodes": 3,
    "eval_updates": 2,
    "tuning_tasks": 2,
    "tuning_rates": (0.1, 0.5),
    "steps_per_call": 2,
    "num_seeds": 2,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "small"
    return workdir, runner.run(navigation.EXPERIMENT, workdir, navigation.Config(**SMALL))


def test_all_methods_are_judged_after_each_update(finished):
    workdir, found = finished
    for name in ("config.json", "metrics.jsonl", "results.json", "figure.png", "evaluation.npz"):
        assert (workdir / name).stat().st_size > 0
    steps = {}
    for row in found["rows"]:
        assert (row["setting"], row["metric"]) == ("2D navigation", "return")
        assert row["mean"] < 0
        assert row["num_tasks"] == 4
        assert len(row["per_seed"]) == 2
        steps.setdefault(row["method"], set()).add(row["gradient_steps"])
    adapted = {0, 1, 2}
    assert steps == {**dict.fromkeys(METHODS, adapted), "oracle": {0}}
    rates = {row["method"]: row.get("inner_lr") for row in found["rows"]}
    assert rates["maml"] == rates["first_order"] == [0.1, 0.1]
    assert rates["oracle"] is None
    assert set(rates["pretrained"]) <= {0.1, 0.5}
    assert "random initialisation" in tables.group_table([found])


def test_diagnostics_are_logged(finished):
    entries = logbook.read_metrics(finished[0])
    assert {entry["stage"] for entry in entries} == set(METHODS) - {"random"}
    for entry in entries:
        for when in ("before", "after"):
            for name in ("return", "explained_variance", "alive", "nonfinite"):
                assert np.isfinite(entry[f"{when}/{name}"]), name
        for name in ("kl", "accepted", "backtracks", "gradient_norm", "step_norm"):
            assert np.isfinite(entry[name]), name
    validated = [e["step"] for e in entries if e["stage"] == "maml" and "validation/return" in e]
    assert validated == [2, 4]


def test_seeds_differ_and_the_best_of_each_is_kept(finished):
    workdir, _ = finished
    run = runner.load(navigation.EXPERIMENT, workdir)
    selection = run.states["maml"]
    first, second = stages.unstack(selection.best_params, 2)
    assert not np.allclose(first["mean"]["Dense_0"]["kernel"], second["mean"]["Dense_0"]["kernel"])
    assert np.isfinite(selection.best_score).all()
    assert set(np.asarray(selection.best_step).tolist()) <= {2, 4}


def test_a_stopped_run_goes_on_bit_for_bit(monkeypatch, capsys):
    monkeypatch.setattr(stages, "check_episodes", lambda metrics: "7 % of the episodes blew up")
    config = navigation.Config(**{**SMALL, "methods": ("maml",), "num_seeds": 1})
    (stage,) = stages.make_stages(config, 0, navigation.make_environment(config))
    advance = stage.make_advance(2)
    through, _ = advance(advance(stage.init())[0])
    assert "MAML: 7 % of the episodes blew up" in capsys.readouterr().out
    half, _ = stage.make_advance(2)(stage.init())
    kept = jax.tree.map(lambda x: x.copy(), half)  # as a checkpoint would
    resumed, _ = stage.make_advance(2)(kept)
    for a, b in zip(jax.tree.leaves(through.params), jax.tree.leaves(resumed.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_two_rewards_are_named_apart():
    assert navigation.setting(navigation.Config()) == "2D navigation"
    squared = navigation.Config(reward="squared_distance")
    assert navigation.setting(squared) == "2D navigation, squared distance"


def test_the_presets_are_the_papers():
    config = navigation.Config()
    assert (config.num_tasks, config.num_episodes, config.inner_steps) == (20, 20, 1)
    assert (config.inner_lr, config.max_kl, config.discount, config.gae_lambda) == (
        0.1,
        0.01,
        0.99,
        1.0,
    )
    assert (config.eval_tasks, config.eval_episodes, config.later_rate) == (40, 40, 0.5)
    assert config.hidden_sizes == (100, 100)


def test_other_updates_and_policies_are_made():
    env = navigation.make_environment(navigation.Config())
    for fields in (
        {"meta_update": "policy_gradient"},
        {"meta_update": "ppo", "inner_objective": "lvc"},
        {"policy": "recurrent", "feedback": True},
    ):
        config = navigation.Config(**fields)
        seen = stages.environment_of(config, env, told=False)
        problem = config_lib.make_problem(config, seen, "maml")
        config_lib.make_meta_update(config, problem)
        assert problem.init(jax.random.key(0))


def test_step_sizes_of_the_evaluation():
    """Alpha as in meta-training, half of it afterwards; none for who is not adapted."""
    rates = evaluation.update_rates(navigation.Config(), 0.1)
    np.testing.assert_allclose(rates, [0.1, 0.05, 0.05, 0.05])
    rates = evaluation.update_rates(navigation.Config(inner_steps=2), 0.1)
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.05, 0.05])
    assert evaluation.update_rates(navigation.Config(), None).shape == (0,)


def test_rewards_that_are_nan_from_the_first_step_stop_a_run():
    config = navigation.Config(**SMALL)
    env = navigation.make_environment(config)
    broken = env._replace(
        step=lambda state, action: env.step(state, action)._replace(reward=jnp.full((), jnp.nan))
    )
    stage = next(s for s in stages.make_stages(config, 0, broken) if s.name == "maml")
    with pytest.raises(
        NonFiniteError, match=r"every episode before adaptation.*reward that is NaN"
    ):
        stage.make_advance(1)(stage.init())


def test_runs_that_may_not_be_compared_have_other_settings():
    names = {
        navigation.setting(navigation.Config(**fields))
        for fields in (
            {},
            {"reward": "squared_distance"},
            {"policy": "recurrent"},
            {"feedback": True},
        )
    }
    assert len(names) == 4
    assert "2D navigation" in names


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="--reward must be one of distance, squared_distance"):
        navigation.Config(reward="speed")
    with pytest.raises(ConfigError, match="--inner_steps must be 1 or more"):
        navigation.Config(inner_steps=0)


def test_a_policy_that_does_not_fit_is_a_sentence(monkeypatch):
    unfit = gaussian_policy(3, 2, (4,))
    monkeypatch.setattr(config_lib.Config, "make_policy", lambda config, env: unfit)
    env = navigation.make_environment(navigation.Config())
    with pytest.raises(ConfigError, match="does not take the environment's observations"):
        config_lib.make_problem(navigation.Config(), env, "maml")


def test_a_configuration_survives_its_json(finished):
    run = runner.load(navigation.EXPERIMENT, finished[0])
    assert run.settings == navigation.Config(**SMALL)
    assert dataclasses.asdict(run.settings)["hidden_sizes"] == (8,)


def judged(returns, nonfinite):
    """What `make_evaluate_fn` returns, as far as it is read; one update."""
    column = lambda values: jnp.array(values, float)[:, None]
    found = {"return": column(returns), "nonfinite": column(nonfinite)}
    return SimpleNamespace(evaluation=SimpleNamespace(per_task=found))


def test_episodes_that_blow_up_do_not_pass_for_returns():
    """A task of which half blew up has none: what they count as says nothing of the others."""
    found = stages.returns_by_task(judged([-3.0, 0.0, -1.0], [0.0, 1.0, 0.1]))
    np.testing.assert_array_equal(found[:, 0], [-3.0, np.nan, -1.0])


def test_a_step_size_with_which_episodes_blow_up_is_not_chosen():
    settings = navigation.Config(tuning_rates=(0.1, 1e30))

    def judge(params, tasks, key, rates):
        wild = float(rates[0]) > 1
        return judged([0.0, 0.0], [1.0, 0.5]) if wild else judged([-5.0, -4.0], [0.0, 0.0])

    assert evaluation._tuned(settings, judge, None, None) == 0.1
