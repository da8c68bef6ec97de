"""The navigation experiment, end to end at a small scale."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import load_model, navigation
from experiments.core import logbook, members, runner, tables
from experiments.core.config import ConfigError, public_fields
from experiments.meta_rl import config as config_lib
from experiments.meta_rl import evaluation
from experiments.navigation.figure import watch
from maml_jax.networks import gaussian_policy
from maml_jax.reinforcement import check_episodes

SMALL = {
    "methods": ("maml", "pretrained", "random", "oracle"),
    "horizon": 6,
    "meta_steps": 4,
    "num_tasks": 4,
    "num_episodes": 3,
    "hidden_sizes": (8,),
    "validate_every": 2,
    "validation_tasks": 4,
    "eval_tasks": 4,  # as many as for validation, to share its programs
    "eval_episodes": 3,
    "eval_updates": 1,
    "tuning_tasks": 4,
    "tuning_rates": (0.1, 0.5),
    "steps_per_call": 2,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "small"
    return workdir, runner.run(navigation.EXPERIMENT, workdir, navigation.Config(**SMALL))


def test_all_methods_are_evaluated_after_each_update(finished):
    workdir, result = finished
    for name in ("config.json", "metrics.jsonl", "results.json", "figure.png", "evaluation.npz"):
        assert (workdir / name).stat().st_size > 0
    steps = {}
    for row in result["rows"]:
        assert (row["setting"], row["metric"]) == ("2D navigation", "return")
        assert row["mean"] < 0
        assert row["num_tasks"] == 4
        steps.setdefault(row["method"], set()).add(row["gradient_steps"])
    assert steps == {name: {0} if name == "oracle" else {0, 1} for name in SMALL["methods"]}
    rates = {row["method"]: row.get("inner_lr") for row in result["rows"]}
    assert rates["maml"] == 0.1
    assert rates["oracle"] is None
    assert rates["pretrained"] in (0.1, 0.5)
    assert "random initialisation" in tables.group_table([result])


def test_diagnostics_are_logged(finished):
    entries = logbook.read_metrics(finished[0])
    assert {entry["stage"] for entry in entries} == set(SMALL["methods"]) - {"random"}
    for entry in entries:
        for when in ("before", "after"):
            for name in ("return", "explained_variance", "alive", "nonfinite"):
                assert np.isfinite(entry[f"{when}/{name}"]), name
        for name in ("kl", "accepted", "backtracks", "gradient_norm", "step_norm"):
            assert np.isfinite(entry[name]), name
    validated = [e["step"] for e in entries if e["stage"] == "maml" and "validation/return" in e]
    assert validated == [2, 4]


def test_a_finished_run_can_be_loaded(finished):
    run = runner.load(navigation.EXPERIMENT, finished[0])
    assert run.settings == navigation.Config(**SMALL)
    selection = run.states["maml"]
    assert np.isfinite(selection.best_score)
    assert int(selection.best_step) in (2, 4)


def test_policies_can_be_given_away(finished):
    """Bit for bit; they adapt to recorded episodes as in training."""
    run = runner.load(navigation.EXPERIMENT, finished[0])
    for method, state in run.states.items():
        model = load_model(finished[0] / "model" / f"{method}.json")
        jax.tree.map(np.testing.assert_array_equal, model.params, state.best_params)
        assert model.record["rows"]
    maml = load_model(finished[0] / "model" / "maml.json")
    task = jax.eval_shape(maml.problem.sample, maml.params, jax.random.key(0))
    support = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), task.support)
    adapted = maml.adapt(support)
    assert jax.tree.structure(adapted) == jax.tree.structure(maml.params)
    assert maml.record["network"]["num_observations"] == 2


def test_members_may_differ_in_step_sizes():
    """Traces and lowers without compiling: step sizes are arguments of the stages' programs."""
    config = navigation.Config(**{**SMALL, "methods": ("maml",)})
    swept = {"inner_lr": (0.1, 0.2), "max_kl": (0.01, 0.02)}
    everyone = members.make_members(config, 0, 1, swept)
    (stage,) = navigation.EXPERIMENT.stages(config)
    assert stage.check is check_episodes
    mesh = members.mesh_of(stage, len(everyone))
    program = members.make_program(navigation.EXPERIMENT, everyone, stage, 1, mesh)
    state = members.begin(stage, everyone).state
    assert program.lower(state, values=members.swept_values(everyone))


@pytest.mark.parametrize(("update", "name"), [("trpo", "meta_lr"), ("ppo", "max_kl")])
def test_values_without_effect_on_the_outer_step_make_no_members(update, name):
    settings = navigation.Config(**{**SMALL, "meta_update": update})
    message = f"--{name} takes one value with --meta_update={update}, .*received 0.1,0.2"
    with pytest.raises(ConfigError, match=message):
        members.make_members(settings, 0, swept={name: (0.1, 0.2)})


def test_first_order_has_a_separate_name():
    config = navigation.Config(**{**SMALL, "meta_gradient": "first_order"})
    assert config.trained == ("first_order", "pretrained", "random", "oracle")
    (stage, *_others) = navigation.EXPERIMENT.stages(config)
    assert stage.name == "first_order"
    problem = config_lib.make_problem(config, navigation.make_environment(config), "first_order")
    assert problem.mode == "first_order"
    twice = navigation.Config(meta_gradient="first_order")
    assert twice.trained == ("first_order", "pretrained", "random", "oracle")


def test_the_presets_equal_the_papers_settings():
    config = navigation.Config()
    assert (config.num_tasks, config.num_episodes, config.inner_steps) == (20, 20, 1)
    assert (config.inner_lr, config.max_kl) == (0.1, 0.01)
    assert (config.discount, config.gae_lambda) == (0.99, 1.0)
    assert (config.eval_tasks, config.eval_episodes, config.later_rate) == (40, 40, 0.5)
    assert config.hidden_sizes == (100, 100)
    assert len(public_fields(navigation.Config)) < 20


def test_other_updates_and_policies_are_made():
    for fields in (
        {"meta_update": "policy_gradient"},
        {"meta_update": "ppo", "inner_objective": "lvc"},
        {"policy": "recurrent", "feedback": True},
    ):
        config = navigation.Config(**fields)
        problem = config_lib.make_problem(config, navigation.make_environment(config), "maml")
        config_lib.make_meta_update(config, problem)
        assert problem.init(jax.random.key(0))


def test_step_sizes_of_the_evaluation():
    """Alpha of meta-training first, half of it afterwards."""
    rates = evaluation.update_rates(navigation.Config(), 0.1)
    np.testing.assert_allclose(rates, [0.1, 0.05, 0.05, 0.05])
    rates = evaluation.update_rates(navigation.Config(inner_steps=2), 0.1)
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.05, 0.05])
    assert evaluation.update_rates(navigation.Config(), 0.1, count=0).shape == (0,)


def test_incomparable_runs_have_different_settings():
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
    assert {"2D navigation", "2D navigation, squared distance"} < names


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="--reward must be one of distance, squared_distance"):
        navigation.Config(reward="speed")
    with pytest.raises(ConfigError, match="--inner_steps must be 1 or more"):
        navigation.Config(inner_steps=0)


def test_an_impossible_policy_is_an_error_message(monkeypatch):
    unfit = gaussian_policy(3, 2, (4,))
    monkeypatch.setattr(config_lib.Config, "make_policy", lambda config, env: unfit)
    env = navigation.make_environment(navigation.Config())
    with pytest.raises(ConfigError, match="does not take the environment's observations"):
        config_lib.make_problem(navigation.Config(), env, "maml")


def test_a_step_size_with_non_finite_episodes_is_not_selected():
    settings = navigation.Config(tuning_rates=(0.1, 1e30))

    def returns_of(params, tasks, key, rates):
        returns = [np.nan, 0.0] if float(rates[0]) > 1 else [-5.0, -4.0]
        return SimpleNamespace(returns=np.array(returns)[:, None])

    assert evaluation.tuned(settings, returns_of, None, None) == 0.1


def test_members_share_evaluation_programs():
    """Values that may be swept are arguments of the programs."""
    from experiments.meta_rl import returns

    config = navigation.Config(**SMALL)
    env, sees = navigation.make_environment(config), watch(config)
    before = returns._evaluate_fn.cache_info().currsize
    for rate in (0.3, 0.4):
        other = dataclasses.replace(config, inner_lr=rate, horizon=7)
        returns.make_returns_fn(other, env, sees, False, 1, 3)
    assert returns._evaluate_fn.cache_info().currsize == before + 1
