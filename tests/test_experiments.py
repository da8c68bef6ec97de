"""The runner and the sinusoid, end to end and in process, on small settings."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from conftest import PATIENCE_S

from experiments import load_model, report, sinusoid
from experiments.core import (
    checkpoints,
    config,
    logbook,
    loop,
    results,
    runner,
    settings_flags,
    tables,
)
from experiments.core import command as command_line
from experiments.sinusoid import user_points

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "methods": ("maml", "pretrained", "oracle"),
    "meta_steps": 60,
    "num_tasks": 4,
    "hidden_sizes": (8,),
    "num_shots": (5,),
    "eval_steps": 2,
    "eval_tasks": 10,
    "validation_tasks": 4,
    "steps_per_call": 20,
    "initializer": "he_normal",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small finished run: its directory and results."""
    workdir = tmp_path_factory.mktemp("runs") / "small"
    result = runner.run(sinusoid.EXPERIMENT, workdir, sinusoid.Config(**SMALL), preset="quick")
    return workdir, result


class TestRun:
    def test_writes_all_files(self, finished):
        workdir, result = finished
        for name in ("config.json", "metrics.jsonl", "results.json", "figure.png"):
            assert (workdir / name).stat().st_size > 0
        assert list((workdir / "checkpoints" / "maml").iterdir())
        assert list((workdir / "tensorboard").iterdir())
        assert result == json.loads((workdir / "results.json").read_text())

    def test_results_have_the_common_form(self, finished):
        _, result = finished
        assert result["experiment"] == "sinusoid"
        assert result["meta_steps"] == 3 * 60
        assert set(result["environment"]) == {"device", "jax", "python", "commit"}
        assert set(result["wall_clock_s"]) == {"compile", "train", "evaluate"}
        methods = {row["method"] for row in result["rows"]}
        assert methods == {"maml", "pretrained", "oracle"}
        for row in result["rows"]:
            assert set(results.ROW_KEYS) <= set(row)
            assert row["num_tasks"] == 10
            assert row["metric"] == "mse"
            assert row["method"] != "maml" or row["inner_lr"] == sinusoid.Config().inner_lr
        steps = [r["gradient_steps"] for r in result["rows"] if r["method"] == "maml"]
        assert steps == [0, 1, 2]

    def test_metrics_have_one_line_a_dispatch(self, finished):
        entries = logbook.read_metrics(finished[0])
        assert [(e["stage"], e["step"]) for e in entries[:3]] == [
            ("maml", 20),
            ("maml", 40),
            ("maml", 60),
        ]
        assert entries[0]["loss"] > 0

    def test_models_can_be_given_away(self, finished):
        """Bit for bit."""
        states = runner.load(sinusoid.EXPERIMENT, finished[0]).states
        written = {path.stem for path in (finished[0] / "model").glob("*.safetensors")}
        assert written == set(states) == {"maml", "pretrained", "oracle"}
        for method, state in states.items():
            model = load_model(finished[0] / "model" / f"{method}.json")
            jax.tree.map(np.testing.assert_array_equal, model.params, state.best_params)
            assert model.record["meta_step"] == 60
            assert {row["method"] for row in model.record["rows"]} == {method}
            assert model.record["environment"] == finished[1]["environment"]

    def test_a_repeated_command_reports_that_the_run_is_done(self, finished, capsys):
        workdir, result = finished
        again = runner.run(sinusoid.EXPERIMENT, workdir, sinusoid.Config(**SMALL), preset="quick")
        assert again == result
        assert "is done" in capsys.readouterr().out

    def test_stages_start_in_order_and_a_stop_between_two_takes_effect(
        self, finished, tmp_path, monkeypatch
    ):
        """Stops in the last dispatch of the first stage; the resumed run gives the same results."""
        stop, recorded = contextlib.nullcontext(types.SimpleNamespace(signal=0)), []
        monkeypatch.setattr(runner, "StopRequest", lambda: stop)

        def watched(stage):
            def start(key):
                recorded.append(f"{stage.name} starts")
                return stage.init(key)

            return dataclasses.replace(stage, init=start)

        advance = loop._Advance.__call__

        def dispatch(self, selection, step, count):
            recorded.append(self._stage.name)
            stop.enter_result.signal = signal.SIGTERM if recorded.count("maml") == 3 else 0
            return advance(self, selection, step, count)

        monkeypatch.setattr(loop._Advance, "__call__", dispatch)
        stages = lambda config: [watched(s) for s in sinusoid.EXPERIMENT.stages(config)]
        experiment = dataclasses.replace(sinusoid.EXPERIMENT, stages=stages)
        settings = sinusoid.Config(**{**SMALL, "methods": ("maml", "pretrained")})
        with pytest.raises(loop.StoppedError, match="at step 0 of stage pretrained"):
            runner.run(experiment, tmp_path / "run", settings)
        assert recorded == [
            *2 * ["maml starts"],
            *3 * ["maml"],
        ]  # traced for its size, then computed
        stop.enter_result.signal = 0
        recorded.clear()
        runner.run(experiment, tmp_path / "run", settings)
        assert recorded == ["maml starts", *2 * ["pretrained starts"], *3 * ["pretrained"]]
        ours = runner.load(experiment, tmp_path / "run").states
        theirs = runner.load(sinusoid.EXPERIMENT, finished[0]).states
        for name, state in ours.items():
            assert checkpoints.digest(checkpoints.to_host(state)) == checkpoints.digest(
                checkpoints.to_host(theirs[name])
            )

    def test_another_configuration_is_refused(self, finished):
        workdir, _ = finished
        other = sinusoid.Config(**{**SMALL, "inner_lr": 0.5})
        with pytest.raises(runner.RunError, match=r"inner_lr=0\.001, the command says 0\.5"):
            runner.run(sinusoid.EXPERIMENT, workdir, other)
        with pytest.raises(runner.RunError, match="seed=0, the command says 1"):
            runner.run(sinusoid.EXPERIMENT, workdir, sinusoid.Config(**SMALL), seed=1)

    def test_a_second_run_on_the_directory_is_refused(self, finished):
        import filelock

        workdir, _ = finished
        with (
            filelock.FileLock(workdir / ".lock"),
            pytest.raises(runner.RunError, match="another process is running"),
        ):
            runner.run(sinusoid.EXPERIMENT, workdir, sinusoid.Config(**SMALL))

    def test_all_methods(self, tmp_path):
        """Trains each briefly; first order is a method, or the mode of MAML."""
        fields = {**SMALL, "methods": sinusoid.METHODS, "meta_steps": 4, "steps_per_call": 5}
        settings = sinusoid.Config(**fields, network_steps=4, num_networks=3)
        result = runner.run(sinusoid.EXPERIMENT, tmp_path / "run", settings)
        assert {row["method"] for row in result["rows"]} == set(sinusoid.METHODS)
        averaged = load_model(tmp_path / "run" / "model" / "averaged.json")
        networks = runner.load(sinusoid.EXPERIMENT, tmp_path / "run").params["averaged"]
        mean = jax.tree.map(lambda x: x.mean(axis=0), networks)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), averaged.params, mean)
        alone = sinusoid.Config(**{**fields, "methods": ("maml",), "meta_gradient": "first_order"})
        same = runner.run(sinusoid.EXPERIMENT, tmp_path / "alone", alone)["rows"]
        assert same == [row for row in result["rows"] if row["method"] == "first_order"]

    def test_a_loss_that_is_not_finite_stops_the_run(self, tmp_path):
        settings = sinusoid.Config(**{**SMALL, "methods": ("maml",), "inner_lr": 1e30})
        with pytest.raises(FloatingPointError, match="not finite at meta-step 0"):
            runner.run(sinusoid.EXPERIMENT, tmp_path / "run", settings)
        assert not (tmp_path / "run" / "results.json").exists()

    def test_a_trace_of_the_meta_steps_is_written(self, tmp_path, capsys):
        settings = sinusoid.Config(**{**SMALL, "methods": ("maml",)})
        runner.run(sinusoid.EXPERIMENT, tmp_path / "run", settings, profile=tmp_path / "trace")
        written = [path.name for path in (tmp_path / "trace" / "maml").rglob("*")]
        assert any(name.endswith(".xplane.pb") for name in written)  # TensorBoard
        assert "perfetto_trace.json.gz" in written
        output = capsys.readouterr().out
        assert re.search(r"first 20 meta-steps [\d.]+ s after the start, [\d.]+ s", output)

    @pytest.mark.parametrize(
        "error",
        [
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"),
            MemoryError("Unable to allocate 9 GiB"),
            OverflowError("Python int too large to convert to C long"),
        ],
    )
    def test_running_out_of_memory_is_an_error_message(self, capsys, error):
        def action():
            raise error

        assert command_line._ending(action) == 3
        text = capsys.readouterr().err
        assert "has not enough memory. Checkpoints are kept" in text
        assert f"({error})" in text

    def test_a_state_larger_than_memory_is_refused_before_training(self, tmp_path):
        settings = sinusoid.Config(**{**SMALL, "hidden_sizes": (10**9, 10**9)})
        with pytest.raises(MemoryError, match="the state of stage maml needs 12,000,000,"):
            runner.run(sinusoid.EXPERIMENT, tmp_path / "run", settings)

    def test_workdir_that_is_a_file(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(runner.RunError, match="is not a directory"):
            runner.run(sinusoid.EXPERIMENT, tmp_path / "file", sinusoid.Config(**SMALL))


class TestReport:
    def test_the_table_has_the_papers_numbers_beside_ours(self, finished):
        text = tables.run_table(finished[1])
        assert "0.67" in text
        assert "MAML" in text
        assert "oracle" in text

    def test_command(self, finished, tmp_path):
        """On a terminal without ±, into missing folders, with a run named twice."""
        workdir, _ = finished
        figure = tmp_path / "new" / "folder" / "curves.png"
        command = [
            *(sys.executable, "-m", "experiments.report"),
            *(str(workdir), str(workdir), f"--figure={figure}"),
        ]
        plain = {**os.environ, "PYTHONIOENCODING": "ascii"}
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True, env=plain
        )
        assert re.search(r"K=5  MAML .* [\d.]+ \+/-[\d.]+", done.stdout)
        assert "skipped 1 run(s) whose settings and seed another run has already" in done.stderr
        assert figure.stat().st_size > 0

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("figure.pdf", "must be a file, NAME.png"),
            ("folder.png", "must be a file, NAME.png"),
            ("file/figure.png", "file is not a folder"),
            ("file/deeper/figure.png", "is not a folder"),
            ("~no_such_user/figure.png", "no home folder is known for '~no_such_user'"),
        ],
    )
    def test_figures_that_cannot_be_drawn(self, finished, tmp_path, monkeypatch, name, message):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "file").touch()
        (tmp_path / "folder.png").mkdir()
        with pytest.raises(config.ConfigError, match=message):
            report._report([finished[0]], name)

    @pytest.mark.parametrize("key", ["method", "setting", "metric", "experiment", "preset"])
    def test_texts_of_a_file_are_no_mathematics(self, finished, tmp_path, key):
        """A results.json may be anybody's; mathematics that cannot be parsed ends a figure."""
        from experiments.core import report_figure

        _, found = finished
        text = r"$\frac{$"
        row = {**found["rows"][0], key: text}
        report_figure.compare_runs(tmp_path / "figure.png", [[{**found, "rows": [row], key: text}]])
        assert (tmp_path / "figure.png").stat().st_size > 0

    def test_runs_of_different_settings_are_not_pooled(self, finished):
        _, result = finished
        other = {**result, "config": {**result["config"], "meta_steps": 1}}
        seed = {**result, "seed": 1}
        groups = report.group_runs([result, other, seed, result])  # one run named twice
        assert sorted(len(g) for g in groups) == [1, 2]
        pooled = results.pool([result, seed])
        assert pooled[("maml", "K=5", 1, "mse")]["num_seeds"] == 2

    def test_no_results(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no results"):
            report.find_runs([tmp_path])


class TestConfig:
    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("inner_lr", 0.0, "--inner_lr must be above 0; received 0.0"),
            ("inner_lr", float("nan"), "--inner_lr must be a finite number above 0; received nan"),
            ("inner_lr", 1e39, "--inner_lr must be a finite number above 0"),  # not in float32
            ("inner_lr", 1e-60, "--inner_lr must be above 0; received 1e-60"),  # 0 in float32
            ("l2_coefficient", float("inf"), "must be a finite number 0 or more; received inf"),
            ("num_shots", (5, 5), "--num_shots must name each value once; received 5,5"),
            ("methods", ("maml", "maml"), "--methods must name each value once"),
            (
                "num_tasks",
                10**10,
                "--num_tasks must be at most 2147483647, the largest int32; received 10000000000.",
            ),
            ("num_tasks", -(10**10), "--num_tasks must be 1 or more; received -10000000000"),
            ("hidden_sizes", (10**20,), "--hidden_sizes must be at most 2147483647"),
            ("num_tasks", 0, "--num_tasks must be 1 or more; received 0"),
            ("num_shots", (5, 0), "--num_shots must be 1 or more; received 0"),
            ("num_shots", (), "--num_shots must name at least one"),
            ("methods", ("mann",), "--methods must be one of maml, .*received 'mann'"),
            ("initializer", "zeros", "--initializer must be one of he_normal, truncated_normal"),
        ],
    )
    def test_impossible_values(self, field, value, message):
        with pytest.raises(config.ConfigError, match=message):
            sinusoid.Config(**{field: value})

    def test_layers_may_have_equal_sizes(self):
        assert sinusoid.Config(hidden_sizes=(8, 8)).hidden_sizes == (8, 8)

    @pytest.mark.parametrize("rates", [(0.1, 0.10), (0.1, 0.1 + 1e-12), (0.1, float("nan"))])
    def test_lists_of_rates(self, rates):
        @dataclasses.dataclass(frozen=True)
        class Config:
            rates: tuple[float, ...] = config.option((0.1,), "Rates.", above=0)

        with pytest.raises(config.ConfigError, match="--rates must"):
            config.check_fields(Config(rates))

    def test_first_order_is_trained_once(self):
        trained = sinusoid.Config(meta_gradient="first_order").trained
        assert trained == tuple(name for name in sinusoid.METHODS if name != "maml")

    def test_internal_settings_have_no_flag(self):
        values = flags.FlagValues()
        with pytest.MonkeyPatch.context() as patch:
            define = lambda kind: lambda *args, **kw: kind(*args, flag_values=values)
            for name in ("boolean", "integer", "float", "list", "string", "multi_string"):
                kind = getattr(flags, f"DEFINE_{name}")
                patch.setattr(settings_flags.flags, f"DEFINE_{name}", define(kind))
            settings_flags.define_flags(sinusoid.Config, sinusoid.PRESETS, "")
        assert "eval_points" not in values
        assert len(list(config.public_fields(sinusoid.Config))) <= 16
        values(["command", "--inner_lr=0.001,0.01", "--num_shots=5", "--set=eval_points=7"])
        given, swept = settings_flags.overrides_from_flags(sinusoid.Config, values)
        assert given == {"inner_lr": 0.001, "num_shots": (5,), "eval_points": 7}
        assert swept == {"inner_lr": (0.001, 0.01)}

    @pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
    def test_flags_that_are_not_settings_must_be_finite(self, value):
        values = flags.FlagValues()
        flags.DEFINE_float("seconds", 1.0, "", flag_values=values)
        flags.DEFINE_string("other", None, "", flag_values=values)
        values(["command", f"--seconds={value}"])
        with pytest.raises(config.ConfigError, match="--seconds must be a finite number"):
            settings_flags.check_finite_flags(values)

    def test_presets(self):
        build = lambda preset, **kw: config.build(sinusoid.Config, sinusoid.PRESETS, preset, kw)
        assert build("paper").meta_steps == 70_000
        assert build("quick", meta_steps=7).meta_steps == 7
        with pytest.raises(
            config.ConfigError, match="--preset must be one of paper, paper_text, quick"
        ):
            build("fast")

    def test_the_preset_paper_equals_the_papers_table(self):
        """25 tasks, K=10, 1 step, 40-40 ReLU, Adam 1e-3, 600 tasks; both alphas."""
        paper = config.build(sinusoid.Config, sinusoid.PRESETS, "paper", {})
        assert (paper.num_tasks, paper.train_shots, paper.inner_steps) == (25, 10, 1)
        assert (paper.inner_lr, paper.meta_lr, paper.hidden_sizes) == (0.001, 1e-3, (40, 40))
        text = config.build(sinusoid.Config, sinusoid.PRESETS, "paper_text", {})
        assert text.inner_lr == 0.01
        assert (paper.eval_tasks, paper.eval_steps, paper.num_shots) == (600, 10, (5, 10, 20))


class TestCheckpoints:
    STATE = {"w": np.arange(6.0, dtype=np.float32), "key": jax.random.key(3)}

    def saved(self, directory, *steps):
        store = checkpoints.Checkpoints(directory)
        for step in steps:
            store.save(step, {**self.STATE, "w": self.STATE["w"] + step}, {"train_s": 1.0})
        return store

    def test_round_trip(self, tmp_path):
        result = self.saved(tmp_path, 5).restore(lambda: self.STATE, warn=pytest.fail)
        assert result.step == 5
        np.testing.assert_array_equal(result.state["w"], self.STATE["w"] + 5)
        assert jax.random.key_data(result.state["key"]).tolist() == [0, 3]
        assert result.info["train_s"] == 1.0

    def test_keeps_the_last_two(self, tmp_path):
        assert self.saved(tmp_path, 1, 2, 3).steps() == [2, 3]

    @pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
    def test_a_damaged_newest_checkpoint_is_skipped(self, tmp_path, damage):
        self.saved(tmp_path, 1, 2).close()
        files = [p for p in (tmp_path / "2" / "state").rglob("*") if p.is_file()]
        target = max(files, key=lambda p: p.stat().st_size)
        content = bytearray(target.read_bytes())
        if damage == "truncate":
            target.write_bytes(content[: len(content) // 2])
        elif damage == "flip":
            content[len(content) // 2] ^= 0xFF
            target.write_bytes(content)
        else:
            shutil.rmtree(tmp_path / "2" / "state")
        warnings = []
        store = checkpoints.Checkpoints(tmp_path)
        result = store.restore(lambda: self.STATE, warn=warnings.append)
        assert result.step == 1
        np.testing.assert_array_equal(result.state["w"], self.STATE["w"] + 1)
        assert len(warnings) == 1
        assert "step 2" in warnings[0]
        store.save(2, self.STATE, {})  # the step can be saved again
        assert store.restore(lambda: self.STATE, warn=pytest.fail).step == 2

    def test_wrong_content_in_a_valid_format_is_detected(self, tmp_path):
        """The digest detects the state of step 1 under the name of step 2; the reader cannot."""
        self.saved(tmp_path, 1, 2).close()
        shutil.rmtree(tmp_path / "2" / "state")
        shutil.copytree(tmp_path / "1" / "state", tmp_path / "2" / "state")
        warnings = []
        result = checkpoints.Checkpoints(tmp_path).restore(lambda: self.STATE, warn=warnings.append)
        assert result.step == 1
        assert "digest" in warnings[0]

    def test_no_checkpoint(self, tmp_path):
        """No state is computed to compare with."""
        not_made = lambda: pytest.fail("a state was made")
        assert checkpoints.Checkpoints(tmp_path).restore(not_made, warn=pytest.fail) is None

    def test_the_state_to_compare_with_is_only_traced(self, tmp_path):
        self.saved(tmp_path, 1).close()
        traced = []

        def make():
            traced.append(isinstance(jax.numpy.zeros(()), jax.core.Tracer))
            return self.STATE

        assert checkpoints.Checkpoints(tmp_path).restore(make, warn=pytest.fail).step == 1
        assert traced == [True]

    def test_types_that_jax_lacks_are_converted(self, tmp_path):
        state = {"x": np.ones(3), "n": np.int64(4), "y": 1.5, "key": jax.random.key(7)}
        store = checkpoints.Checkpoints(tmp_path)
        store.save(1, state, {})
        result = store.restore(lambda: state, warn=pytest.fail).state
        store.close()
        assert [result[name].dtype.name for name in ("x", "n", "y")] == [
            "float32",
            "int32",
            "float32",
        ]
        assert result["y"] == 1.5
        assert jax.random.uniform(result["key"]) == jax.random.uniform(state["key"])

    def test_half_written_checkpoints_are_removed_unless_read_only(self, tmp_path):
        store = checkpoints.Checkpoints(tmp_path)
        store.save(1, self.STATE, {})
        half = tmp_path / "2.orbax-checkpoint-tmp" / "state.orbax-checkpoint-tmp"
        half.mkdir(parents=True)
        assert store.restore(lambda: self.STATE, warn=pytest.fail, read_only=True).step == 1
        assert half.exists()
        assert store.restore(lambda: self.STATE, warn=pytest.fail).step == 1
        assert [path.name for path in tmp_path.iterdir()] == ["1"]
        store.close()

    def test_a_full_disk_is_reported_and_leaves_the_last_checkpoint(self, tmp_path):
        """A limit on file sizes makes writes fail, as a full disk does."""
        code = (
            "import resource, signal, sys, numpy as np, pathlib\n"
            "from experiments.core.checkpoints import Checkpoints, CheckpointError\n"
            "store = Checkpoints(pathlib.Path(sys.argv[1]))\n"
            "state = {'w': np.random.default_rng(0).normal(size=200_000)}\n"
            "store.save(1, state, {})\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
            "try:\n"
            "    store.save(2, state, {})\n"
            "except CheckpointError as error:\n"
            "    print('said:', error)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
            "print('left:', Checkpoints(pathlib.Path(sys.argv[1])).steps())\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert "said: could not write the checkpoint of step 2" in done.stdout, done.stderr
        assert "The one of step 1 is good" in done.stdout
        assert "left: [1]" in done.stdout


class TestUserPoints:
    GOOD = "x,y\n-2,1\n0,0.5\n3,-1\n"

    def test_adapts_to_a_users_points(self, finished, tmp_path):
        workdir, _ = finished
        support, grid = tmp_path / "points.csv", tmp_path / "grid.csv"
        support.write_text(self.GOOD)
        grid.write_text("x\n-1\n1\n")
        run = runner.load_params(sinusoid.EXPERIMENT, workdir)
        sinusoid.adapt_to_points(run, str(support), str(grid), 3, inner_lr=0.1)
        other = (workdir / "predictions.csv").read_text().split()
        sinusoid.adapt_to_points(run, str(support), str(grid), 3)
        lines = (workdir / "predictions.csv").read_text().split()
        assert lines != other
        assert lines[0] == "x,before,after"
        assert len(lines) == 3
        x, before, after = map(float, lines[1].split(","))
        assert x == -1
        assert before != after
        assert (workdir / "adapted.png").stat().st_size > 0

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("x,z\n1,2\n2,3\n", r"line 1: the header must have a column 'y'; received 'x,z'"),
            ("x,y\n1,2\n2,abc\n", r"line 3, column 'y': expected a number; received 'abc'"),
            ("x,y\n1,2\nnan,3\n", r"line 3, column 'x': expected a finite number"),
            ("x,y\n1,2\n\n4\n", r"line 4, column 'y': expected a number; received nothing"),
            ("", "is empty"),
            ("x,y\n1,2\n", r"line 2: the file has 1 row\(s\) of points; expected 2 or more"),
            ("x,y\n1,1e99\n1,2\n", r"line 2, column 'y': expected a finite number"),
        ],
    )
    def test_bad_files_name_line_and_column(self, tmp_path, text, message):
        path = tmp_path / "points.csv"
        path.write_text(text)
        with pytest.raises(user_points.PointsError, match=message):
            user_points.read_points(path, ("x", "y"), at_least=2)

    def test_columns_may_have_any_order_and_others_beside_them(self, tmp_path):
        path = tmp_path / "points.csv"
        path.write_text("\ufeffName, Y ,X\na,1,2\nb,3,4\n", encoding="utf-8")
        points = user_points.read_points(path, ("x", "y"), at_least=2)
        np.testing.assert_array_equal(points, [[2, 1], [4, 3]])

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(user_points.PointsError, match="no such file"):
            user_points.read_points(tmp_path / "none.csv", ("x",), at_least=1)

    def test_a_missing_or_unfinished_run(self, tmp_path):
        with pytest.raises(runner.RunError, match="no run at"):
            runner.load(sinusoid.EXPERIMENT, tmp_path)
