"""Members of a run, seeds and swept values, leave the same files as separate runs."""

import contextlib
import dataclasses
import io
import json
import logging
from pathlib import Path

import jax
import numpy as np
import pytest
import toy_experiment as toy

from experiments import report, sinusoid
from experiments.core import checkpoints, handout, logbook, loop, members, runner
from experiments.core.config import ConfigError
from experiments.core.logbook import read_metrics
from maml_jax import NonFiniteError, member_mesh

GRID = {"num_seeds": 2, "swept": {"inner_lr": (0.1, 0.3)}}
FILES = {"config.json", "metrics.jsonl", "checkpoints", "tensorboard", "results.json", "figure.png"}


def go(workdir, experiment=toy.EXPERIMENT, settings=None, **options):
    settings = toy.Config() if settings is None else settings
    return runner.run(experiment, workdir, settings, checkpoint_every_s=0, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of four members: its results, output, compiled programs and calls of the stages."""
    workdir, printed, compiled = tmp_path_factory.mktemp("members") / "run", io.StringIO(), []
    watch = logging.Handler()
    watch.emit = lambda record: compiled.append(record.getMessage())
    logging.getLogger("jax").addHandler(watch)
    toy.EVENTS.clear()
    with contextlib.redirect_stdout(printed), jax.log_compiles():
        result = go(workdir, **GRID)
    logging.getLogger("jax").removeHandler(watch)
    programs = [m for m in compiled if "Finished XLA compilation" in m and "train_members" in m]
    return workdir, result, printed.getvalue(), programs, [*toy.EVENTS]


def outcome(workdir, experiment=toy.EXPERIMENT):
    """Returns the results of training without times: states, metrics, rows."""
    states = runner.load(experiment, workdir).states
    entries = [
        {k: v for k, v in entry.items() if k != "meta_steps_per_s"}
        for entry in read_metrics(workdir)
    ]
    rows = json.loads((workdir / "results.json").read_text())["rows"]
    return checkpoints.to_host(states), entries, rows


def assert_same_outcome(ours, theirs, rtol):
    for a, b in zip(ours, theirs, strict=True):
        jax.tree.map(
            lambda x, y: x == y if isinstance(x, str) else np.testing.assert_allclose(x, y, rtol),
            a,
            b,
        )


@pytest.mark.parametrize("label", ["seed=1,inner_lr=0.1", "seed=0,inner_lr=0.3"])
def test_a_member_equals_a_separate_run(finished, tmp_path, label):
    workdir, *_ = finished
    seed, rate = (float(part.partition("=")[2]) for part in label.split(","))
    result = go(tmp_path / "alone", settings=toy.Config(inner_lr=rate), seed=int(seed))
    ours = workdir / label
    assert {p.name for p in ours.iterdir()} >= FILES
    assert {p.name for p in ours.iterdir()} == {p.name for p in (tmp_path / "alone").iterdir()}
    assert_same_outcome(outcome(ours), outcome(tmp_path / "alone"), rtol=1e-5)
    written, theirs = (
        json.loads((d / "config.json").read_text()) for d in (ours, tmp_path / "alone")
    )
    assert written == theirs
    assert json.loads((ours / "results.json").read_text()).keys() == {*result, "together"}


def test_seeds_of_the_sinusoid_equal_separate_runs(tmp_path):
    """Each seed has separate arrays: the functions of the averaged networks."""
    settings = sinusoid.Config(
        methods=("maml", "averaged"),
        **{"meta_steps": 8, "steps_per_call": 4, "num_tasks": 4, "hidden_sizes": (8,)},
        **{"num_shots": (5,), "eval_steps": 2, "eval_tasks": 10, "validation_tasks": 4},
        **{"num_networks": 3, "network_steps": 2},
    )
    together = go(tmp_path / "both", sinusoid.EXPERIMENT, settings, num_seeds=2)
    alone = go(tmp_path / "alone", sinusoid.EXPERIMENT, settings, seed=1)
    for ours, theirs in zip(together["rows"], alone["rows"], strict=True):
        np.testing.assert_allclose(ours["per_seed"][1], theirs["mean"], rtol=1e-4)
    means = {row["mean"] for row in together["rows"]}
    assert len(means) == len(together["rows"])
    assert (tmp_path / "both" / "figure.png").stat().st_size > 0


def test_the_summary_pools_seeds_and_keeps_values_apart(finished):
    workdir, result, *_ = finished
    assert result == json.loads((workdir / "results.json").read_text())
    assert result["config"]["inner_lr"] == [0.1, 0.3]
    assert result["config"]["num_seeds"] == 2
    assert result["meta_steps"] == 4 * 2 * 20
    assert {row["setting"] for row in result["rows"]} == {
        "inner_lr=0.1: line",
        "inner_lr=0.3: line",
    }
    runs = {
        label: json.loads((workdir / label / "results.json").read_text())
        for label in result["members"]
    }
    for row in result["rows"]:
        value = row["setting"].partition(":")[0]
        means = [
            other["mean"]
            for seed in (0, 1)
            for other in runs[f"seed={seed},{value}"]["rows"]
            if all(other[key] == row[key] for key in ("method", "gradient_steps", "metric"))
        ]
        assert row["per_seed"] == means
        np.testing.assert_allclose(row["mean"], np.mean(means))
    assert (workdir / "figure.png").stat().st_size > 0


def test_report_reads_the_members_or_else_the_summary(finished):
    workdir, result, *_ = finished
    runs = report.find_runs([workdir])
    assert len(runs) == 4
    assert sorted(len(group) for group in report.group_runs(runs)) == [2, 2]
    assert report.find_runs([workdir / "results.json"]) == [result]
    for run in runs:
        assert run["together"]["members"] == 4
        share = run["together"]["train_s"] / 4
        np.testing.assert_allclose(run["wall_clock_s"]["train"], share, atol=1e-3)
        np.testing.assert_allclose(result["wall_clock_s"]["train"], 4 * share, atol=1e-2)


def test_the_best_is_marked_by_validation(finished):
    _, result, printed, *_ = finished
    scores = {label: member["validation"] for label, member in result["members"].items()}
    assert len(set(scores.values())) == 4
    marked = [line for line in printed.splitlines() if "best by validation" in line]
    assert [line.split()[0] for line in marked] == [max(scores, key=scores.get)]
    assert all(member["gradient_steps"] == 1 for member in result["members"].values())


def test_one_program_trains_all_members_and_places_data_once(finished):
    *_, programs, events = finished
    assert len(programs) == 2, programs  # one for each stage
    assert events == ["before training", "data on {'members': 4, 'tasks': 2}", "prepare"]


def test_a_repeated_command_reports_that_the_run_is_done(finished, capsys):
    workdir, result, *_ = finished
    go(workdir / "seed=1,inner_lr=0.3", settings=toy.Config(inner_lr=0.3), seed=1)
    assert "seed=1,inner_lr=0.3 is done; its results" in capsys.readouterr().out
    assert go(workdir, **GRID) == result
    output = capsys.readouterr().out
    assert "is done" in output
    assert sum(line.startswith("seed=") for line in output.splitlines()) == 4


def test_other_members_are_another_run_and_modes_need_one_member(finished):
    workdir, *_ = finished
    with pytest.raises(runner.RunError, match=r"inner_lr=0\.1,0\.3, the command says 0\.1"):
        go(workdir, num_seeds=2)
    with pytest.raises(runner.RunError, match=r"several members; name one.*seed=0,inner_lr=0\.1"):
        runner.load(toy.EXPERIMENT, workdir)


@pytest.mark.parametrize("at", ["training", "handing out"])
def test_a_killed_and_resumed_run_is_equal_bit_for_bit(finished, tmp_path, monkeypatch, at):
    module, name, call = {
        "training": (loop, "summarize_members", 3),
        "handing out": (handout, "_main_row", 2),
    }[at]
    calls, original = [], getattr(module, name)

    def dying(*args):
        calls.append(args)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, dying)
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path, **GRID)
    assert not (tmp_path / "results.json").exists()
    result = go(tmp_path, **GRID)
    assert result["rows"] == finished[1]["rows"]
    for label in result["members"]:
        ours, theirs = outcome(tmp_path / label), outcome(finished[0] / label)
        assert checkpoints.digest(ours[0]) == checkpoints.digest(theirs[0])
        assert ours[1:] == theirs[1:]
        assert "together" in json.loads((tmp_path / label / "results.json").read_text())


def test_a_diverging_member_does_not_affect_the_others(finished, tmp_path, capsys):
    result = go(tmp_path, swept={"inner_lr": (0.1, 1e30)})
    output = capsys.readouterr()
    assert "warning: seed=0,inner_lr=1e+30 stays at step 0" in output.err
    assert output.err.count("warning") == 2  # once for each stage, not at every dispatch
    assert "diverged in training, after meta-step 0" in output.out
    good, bad = (tmp_path / label for label in result["members"])
    assert_same_outcome(outcome(good), outcome(finished[0] / good.name), rtol=1e-5)
    assert {row["setting"] for row in result["rows"]} == {"inner_lr=0.1: line"}
    assert not (bad / "results.json").exists()
    assert len(report.find_runs([tmp_path])) == 1
    assert f"note: {bad}: diverged after meta-step 0;" in capsys.readouterr().err
    with pytest.raises(NonFiniteError, match="not finite at meta-step 0"):
        go(bad, settings=toy.Config(inner_lr=1e30))


def test_a_members_directory_of_another_run_is_refused_before_training(tmp_path):
    go(tmp_path / "seed=1", settings=toy.Config(meta_steps=5), seed=1)
    with pytest.raises(runner.RunError, match=r"seed=1 holds a run with another configuration"):
        go(tmp_path, num_seeds=2)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["seed=1"]


def test_the_run_stops_if_all_members_diverge(tmp_path):
    with pytest.raises(NonFiniteError, match=r"no member of the run is left.*meta-step 0"):
        go(tmp_path, swept={"inner_lr": (1e30, 1e31)})


def test_divergence_of_all_members_in_different_stages_leaves_no_results(tmp_path):
    def stages(config):
        other = dataclasses.replace(config, inner_lr=1e29 / config.inner_lr)
        return [toy.make_stages(config)[0], toy.make_stages(other)[1]]

    experiment = dataclasses.replace(toy.EXPERIMENT, stages=stages)
    message = r"no member of the run is left; they diverged: seed=0,inner_lr=0.1 after meta-step 0,"
    for _ in range(2):  # trained, then loaded from its checkpoints
        with pytest.raises(NonFiniteError, match=message):
            go(tmp_path, experiment, swept={"inner_lr": (0.1, 1e30)})
    assert not (tmp_path / "results.json").exists()


def test_members_in_sequence_or_as_a_batch(finished, tmp_path, monkeypatch):
    """Two members on each device, in sequence."""
    devices = jax.devices()[:2]
    monkeypatch.setattr(members, "member_mesh", lambda *counts: member_mesh(*counts, devices))
    go(tmp_path, settings=toy.Config(one_by_one=True, meta_steps=5), **GRID)
    label = "seed=1,inner_lr=0.3"
    ours, theirs = read_metrics(tmp_path / label), read_metrics(finished[0] / label)
    np.testing.assert_allclose(ours[0]["loss"], theirs[0]["loss"], rtol=1e-5)


def test_a_warning_names_its_member(tmp_path, capsys):
    go(tmp_path, settings=toy.Config(meta_steps=5), swept={"meta_lr": (0.1, 50.0)})
    output = capsys.readouterr().out
    assert "MAML (seed=0,meta_lr=50.0): far out" in output
    assert "meta_lr=0.1): far out" not in output


def test_without_a_validation_score_the_last_parameters_are_selected(tmp_path, capsys):
    def stages(config):
        first, second = toy.make_stages(config)
        return [dataclasses.replace(first, score=lambda params: np.nan), second]

    experiment = dataclasses.replace(toy.EXPERIMENT, stages=stages)
    go(tmp_path, experiment)
    output = capsys.readouterr().out
    assert output.count("MAML: the return in validation is NaN after meta-step") == 2
    assert output.count("MAML: no validation gave a return; the parameters of the last") == 1
    chosen = runner.load(experiment, tmp_path).states["maml"]
    assert chosen.best_step == 20
    np.testing.assert_array_equal(chosen.best_params["w"], chosen.state.params["w"])


def test_metrics_name_their_member():
    entries = [
        {"stage": "maml", "step": 5, "meta_steps_per_s": 1.0, "loss": 2.0, "a,b=1/loss": 3.0}
    ]
    assert logbook.of_member(entries, "a,b=1") == [
        {"stage": "maml", "step": 5, "meta_steps_per_s": 1.0, "loss": 3.0}
    ]
    assert logbook.of_member(entries, "a,b=2") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"swept": {"inner_lr": (0.1, -1.0)}}, "--inner_lr must be above 0; received -1.0"),
        ({"swept": {"inner_lr": (0.1, 0.1)}}, "--inner_lr must name each value once"),
        ({"seed": 999_999, "num_seeds": 2}, "from 0 to 999999; the last would be 1000000"),
        ({"num_seeds": 0}, "--num_seeds must be 1 or more; received 0"),
    ],
)
def test_refusals(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        go(tmp_path / "run", **options)
    assert not Path(tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("num_tasks", "count", "cores", "devices"),
    [(25, 1, 2, 1), (24, 1, 2, 2), (24, 1, 1, 1), (25, 2, 2, 2), (25, 3, 2, 1), (24, 3, 8, 6)],
)
def test_a_sinusoid_uses_as_many_cores_as_it_has_work_for(num_tasks, count, cores, devices):
    config = sinusoid.Config(num_tasks=num_tasks)
    assert sinusoid.cpu_devices(config, count, cores) == devices
    assert member_mesh(count, num_tasks, jax.devices()[:devices]).size == devices
