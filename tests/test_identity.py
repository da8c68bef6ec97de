"""Identity of runs: files of another run, step or number format are refused."""

import json
import os
import shutil
import time
from pathlib import Path

import filelock
import jax
import jax.numpy as jnp
import pytest

from benchmarks import compare
from experiments import report, sinusoid
from experiments.core import checkpoints, handout, identity, runner
from experiments.core.files import FileError, read_json

SMALL = {
    "methods": ("maml", "pretrained"),
    "meta_steps": 40,
    "num_tasks": 4,
    "hidden_sizes": (8,),
    "num_shots": (5,),
    "eval_steps": 2,
    "eval_tasks": 10,
    "validation_tasks": 4,
    "steps_per_call": 20,
}


def go(workdir, seed=0, **fields):
    settings = sinusoid.Config(**{**SMALL, **fields})
    return runner.run(sinusoid.EXPERIMENT, workdir, settings, seed=seed)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("identity") / "run"
    go(workdir)
    return workdir


@pytest.fixture
def workdir(trained, tmp_path):
    """A copy of a finished run that tests may change."""
    return shutil.copytree(trained, tmp_path / "run")


def tree(folder):
    """Returns the contents of all files except the lock."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock"]
    return {p: p.read_bytes() for p in files}


def assert_refused(workdir, match, error=runner.RunError, **options):
    before = tree(workdir)
    with pytest.raises(error, match=match):
        go(workdir, **options)
    assert tree(workdir) == before  # no file is lost, moved or written


def unfinished(workdir):
    (workdir / "results.json").unlink()
    return workdir


class TestOtherRuns:
    @pytest.mark.parametrize("left", ["results.json", "checkpoints"])
    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"seed": 1}, "seed=0, the command says 1"),
            ({"inner_lr": 0.5}, r"inner_lr=0\.001, the command says 0\.5"),
        ],
    )
    def test_other_runs_are_detected_without_config_json(self, workdir, left, options, match):
        (workdir / "config.json").unlink()
        if left == "checkpoints":
            unfinished(workdir)
        else:
            shutil.rmtree(workdir / "checkpoints")
        assert_refused(
            workdir,
            rf"{left}.* is of a run with another configuration: the run has {match}",
            **options,
        )

    def test_the_advice_for_another_run(self):
        """It names a run's preset; of another experiment's run, no setting."""
        saved = identity.identity_of("sinusoid", "quick", 0, sinusoid.Config(meta_steps=9))
        asked = identity.identity_of("sinusoid", "paper", 0, sinusoid.Config())
        text = identity.misfit(saved, asked)
        assert "the run has meta_steps=9, the command says 70000. Nothing was changed." in text
        assert "or the same flags (the run began with --preset=quick) to continue" in text
        assert identity.misfit(saved, {**saved, "experiment": "navigation"}) == (
            "a run of sinusoid, not of navigation. Nothing was changed. Use another --workdir."
        )

    def test_a_finished_run_is_reported(self, workdir):
        advice = rf"`python -m experiments.report {workdir}` shows its results\.$"
        assert_refused(workdir, rf"holds a run with .* {advice}", seed=1)

    @pytest.mark.parametrize("kept", ["results.json", "checkpoints"])
    def test_a_missing_config_json_is_restored(self, trained, workdir, capsys, kept):
        (workdir / "config.json").unlink()
        if kept == "checkpoints":
            unfinished(workdir)
        found = go(workdir)
        assert f"config.json was missing; it is restored from {workdir}" in capsys.readouterr().err
        again, before = (json.loads((d / "config.json").read_text()) for d in (workdir, trained))
        assert again == before
        assert found["rows"] == json.loads((trained / "results.json").read_text())["rows"]

    def test_checkpoints_of_an_unknown_run(self, workdir):
        unfinished(workdir)
        (workdir / "config.json").unlink()
        for path in workdir.glob("checkpoints/*/*/info/metadata"):
            path.write_text("{")
        assert_refused(workdir, r"so that their run is unknown\. Use another --workdir")

    def test_results_of_another_run(self, workdir):
        path = workdir / "results.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "seed": 7}))
        assert_refused(workdir, r"results\.json is of a run .*seed=7, the command says 0")

    def test_a_checkpoint_of_another_run(self, workdir, tmp_path):
        go(tmp_path / "other", methods=("maml",), inner_lr=0.002)
        unfinished(workdir)
        shutil.rmtree(workdir / "checkpoints" / "maml")
        shutil.copytree(
            tmp_path / "other" / "checkpoints" / "maml", workdir / "checkpoints" / "maml"
        )
        assert_refused(workdir, r"maml/40/info/metadata is of .*inner_lr=0\.002")
        with pytest.raises(runner.RunError, match=r"inner_lr=0\.002, config\.json says 0\.001"):
            runner.load(sinusoid.EXPERIMENT, workdir)

    def test_a_checkpoint_of_another_stage(self, workdir):
        unfinished(workdir)
        shutil.rmtree(workdir / "checkpoints" / "maml")
        shutil.copytree(workdir / "checkpoints" / "pretrained", workdir / "checkpoints" / "maml")
        match = "is of stage 'pretrained' where that of stage 'maml' is expected"
        assert_refused(workdir, match, checkpoints.CheckpointError)

    def test_a_renamed_step(self, workdir):
        unfinished(workdir)
        maml = workdir / "checkpoints" / "maml"
        (maml / "40").rename(maml / "60")
        for act in (go, lambda w: runner.load(sinusoid.EXPERIMENT, w)):
            with pytest.raises(checkpoints.CheckpointError, match=r"60 is of step 40, not 60"):
                act(workdir)
        assert [path.name for path in maml.iterdir()] == ["60"]
        (maml / "60").rename(maml / "0060")  # orbax does not list this name
        warnings, store = [], checkpoints.Checkpoints(maml)
        assert store.restore(lambda: None, warn=warnings.append) is None
        store.close()
        assert "0060 is not named as a step and is skipped" in warnings[0]
        assert (maml / "0060").is_dir()

    def test_a_members_directory_is_checked_too(self, workdir):
        (workdir / "config.json").unlink()
        other = identity.identity_of("sinusoid", "custom", 3, sinusoid.Config(**SMALL))
        before = tree(workdir)
        with pytest.raises(runner.RunError, match="seed=0, the command says 3"):
            handout._begin(workdir, other)
        assert tree(workdir) == before

    def test_a_run_with_other_members_is_another_run(self, workdir):
        unfinished(workdir)
        before = tree(workdir)
        for options, match in (
            ({"num_seeds": 2}, "num_seeds=1, the command says 2"),
            (
                {"swept": {"inner_lr": (0.001, 0.01)}},
                r"inner_lr=0\.001, the command says 0\.001,0\.01",
            ),
        ):
            with pytest.raises(runner.RunError, match=match):
                runner.run(sinusoid.EXPERIMENT, workdir, sinusoid.Config(**SMALL), **options)
        assert tree(workdir) == before

    @pytest.mark.parametrize("kept", ["config.json", "results.json", "checkpoints"])
    def test_runs_of_an_earlier_version(self, workdir, kept):
        """They name no format; whichever of their files is left, the error identifies them."""
        for path in (
            workdir / "config.json",
            workdir / "results.json",
            *workdir.glob("checkpoints/*/*/info/metadata"),
        ):
            result = json.loads(path.read_text())
            del result.get("run", result)["format"]
            path.write_text(json.dumps(result))
        if kept != "config.json":
            (workdir / "config.json").unlink()
        if kept == "checkpoints":
            unfinished(workdir)
        assert_refused(workdir, "of an earlier version of maml_jax.*Nothing was changed")
        if kept != "checkpoints":
            assert len(report.find_runs([workdir])) == 1
        if kept == "config.json":
            with pytest.raises(runner.RunError, match="of an earlier version of maml_jax"):
                runner.load(sinusoid.EXPERIMENT, workdir)


class TestNumberSettings:
    def test_float64_and_another_generator_are_other_runs(self, workdir):
        unfinished(workdir)
        with jax.enable_x64(True):
            assert_refused(workdir, "JAX_ENABLE_X64=False, this process has True")
        with jax.default_prng_impl("rbg"):
            assert_refused(workdir, "JAX_DEFAULT_PRNG_IMPL=threefry2x32, this process has rbg")
            with pytest.raises(runner.RunError, match="JAX_DEFAULT_PRNG_IMPL"):
                runner.load(sinusoid.EXPERIMENT, workdir)
        with jax.default_matmul_precision("highest"):
            assert_refused(workdir, "JAX_DEFAULT_MATMUL_PRECISION=None, this process has highest")

    def test_the_default_values_are_those_of_jax(self):
        assert identity.numbers_of({}) == identity.NUMBERS
        settings = sinusoid.Config(**SMALL)
        assert identity.identity_of("sinusoid", "quick", 0, settings)["numbers"] == identity.NUMBERS

    def test_reports_do_not_pool_them(self, trained):
        result = json.loads((trained / "results.json").read_text())
        other = {**result, "seed": 1, "numbers": {**result["numbers"], "jax_enable_x64": True}}
        old = {key: value for key, value in result.items() if key != "numbers"}
        groups = report.group_runs([result, other, {**old, "seed": 2}])
        assert sorted([run["seed"] for run in group] for group in groups) == [[0, 2], [1]]


class TestStates:
    """The store itself refuses a state that does not fit, and keeps it."""

    def refused(self, directory, like, match):
        store = checkpoints.Checkpoints(directory)
        with pytest.raises(checkpoints.CheckpointError, match=match):
            store.restore(lambda: like, warn=pytest.fail)
        assert store.steps() == [3]
        store.close()

    def test_names_shapes_and_types(self, tmp_path):
        saved = {"w": jnp.zeros((2, 3)), "key": jax.random.key(0)}
        store = checkpoints.Checkpoints(tmp_path / "stage")
        store.save(3, saved, {})
        store.close()
        refused = lambda like, match: self.refused(tmp_path / "stage", {**saved, **like}, match)
        refused({"w": jnp.zeros((2, 4))}, r"w.*saved float32\[2, 3\], expected float32\[2, 4\]")
        refused({"w": jnp.zeros((2, 3), jnp.int32)}, r"expected int32\[2, 3\]")
        refused({"more": jnp.zeros(1)}, r"more.*saved nothing, expected float32\[1\]")
        refused({"key": jax.random.key(0, impl="rbg")}, r"saved uint32\[2\], expected uint32\[4\]")
        with jax.enable_x64(True):
            refused({"w": jnp.zeros((2, 3))}, r"saved float32\[2, 3\], expected float64\[2, 3\]")
        assert not list(tmp_path.glob("*.damaged"))


class TestBrokenFiles:
    BROKEN = (
        (b"", "is empty"),
        (b'{"experiment": "sinusoid"', "is not JSON, or is cut off"),
        (b"\xff\xfe{}", "is not UTF-8 text"),
        (b"[1]", "holds a list; expected an object"),
        (b"{}", "lacks 'experiment'"),
        (b"[" * 100_000, "is nested too deeply"),
    )

    @pytest.mark.parametrize("name", ["config.json", "results.json"])
    @pytest.mark.parametrize(("content", "problem"), BROKEN)
    def test_are_named_with_advice(self, workdir, name, content, problem):
        (workdir / name).write_bytes(content)
        assert_refused(workdir, rf"{name} {problem}.*Remove it", FileError)
        if name == "config.json":
            with pytest.raises(FileError, match=problem):
                runner.load(sinusoid.EXPERIMENT, workdir)
        else:
            with pytest.raises(FileError, match=problem):
                report.find_runs([workdir])

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            ({"seed": "0"}, "has 'seed': \"0\"; expected a whole number"),
            ({"seed": True}, "has 'seed': true; expected a whole number"),
            ({"seed": -1}, "has the seed -1"),
            ({"surprise": 1}, "has an unknown key 'surprise'"),
            ({"config": []}, r"has 'config': \[\]; expected an object"),
        ],
    )
    def test_keys_of_config_json(self, workdir, change, problem):
        path = workdir / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        assert_refused(workdir, problem, FileError)

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            ({"inner_lr": None}, "has 'inner_lr': null; expected a number"),
            ({"num_shots": [5, "a"]}, "has 'a' in 'num_shots'; expected int"),
            ({"colour": "red"}, "has an unknown key 'colour'"),
            ({"num_tasks": 0}, "--num_tasks must be 1 or more; received 0"),
        ],
    )
    def test_settings_that_this_version_refuses(self, workdir, change, problem):
        path = workdir / "config.json"
        result = json.loads(path.read_text())
        path.write_text(json.dumps({**result, "config": {**result["config"], **change}}))
        with pytest.raises(FileError, match=problem):
            runner.load(sinusoid.EXPERIMENT, workdir)
        del result["config"]["inner_lr"]
        path.write_text(json.dumps(result))
        with pytest.raises(FileError, match="lacks 'inner_lr'"):
            runner.load(sinusoid.EXPERIMENT, workdir)

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (lambda r: r["rows"].clear(), "has no rows"),
            (lambda r: r["rows"][0].pop("mean"), "lacks 'mean' in row 1"),
            (lambda r: r["rows"][1].update(mean="x"), "has 'mean': \"x\" in row 2"),
            (lambda r: r["rows"].append(r["rows"][0]), "has a second row of maml, K=5, 0, mse"),
            (lambda r: r["rows"].append(3), "holds a whole number in row 7; expected an object"),
            (lambda r: r["rows"][0].update(per_seed=3), "has 'per_seed': 3 in row 1"),
            (lambda r: r["environment"].pop("device"), "lacks 'device' in 'environment'"),
            (lambda r: r["wall_clock_s"].update(train=None), "has 'train': null in 'wall_clock_s'"),
            (lambda r: r["config"].update(num_seeds="2"), "has 'num_seeds': '2'"),
            (lambda r: r.update(meta_steps_per_s=float("nan")), "holds NaN, which is not a finite"),
        ],
    )
    def test_results(self, workdir, change, problem):
        path = workdir / "results.json"
        result = json.loads(path.read_text())
        change(result)
        path.write_text(json.dumps(result))
        with pytest.raises(FileError, match=rf"results\.json {problem}"):
            report.find_runs([workdir])

    def test_a_duplicate_key(self, workdir):
        path = workdir / "config.json"
        path.write_text('{"seed": 3, ' + path.read_text().lstrip("{ "))
        assert_refused(workdir, "has the key 'seed' twice", FileError)

    def test_a_duplicate_among_many_keys_is_found_at_once(self, tmp_path):
        keys = [f'"{i}": 0' for i in [*range(200_000), 199_999]]
        path = tmp_path / "hostile.json"
        path.write_text("{" + ", ".join(keys) + "}")
        begun = time.monotonic()
        with pytest.raises(FileError, match="has the key '199999' twice"):
            read_json(path, {}, advice="")
        assert time.monotonic() - begun < 20  # minutes if each key is counted

    def test_metrics(self, workdir):
        path = workdir / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines) + b'{"stage": "maml", "st')  # truncated by SIGKILL
        assert len(runner.read_metrics(workdir)) == len(lines)
        for bad, problem in (
            (b"\xff\n", "is not UTF-8"),
            (b"{\n", "is not JSON"),
            (b"\n", "is empty"),
            (b"3\n", "holds a whole number"),
            (b'{"stage": "maml"}\n', "lacks 'step'"),
        ):
            path.write_bytes(b"".join([lines[0], bad, *lines[1:]]))
            with pytest.raises(FileError, match=rf"metrics\.jsonl, line 2, {problem}.*Remove that"):
                runner.read_metrics(workdir)

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            (b'{"suites": {}', "is not JSON, or is cut off"),
            (b'{"suites": {"core": 3}, "environment": {}}', "has 'core': 3 in 'suites'"),
            (b'{"suites": {"core": [3]}, "environment": {}}', "suite 'core', row 1"),
            (b'{"suites": {"core": [{"median_ms": 1}]}, "environment": {}}', "lacks 'name'"),
            (
                b'{"suites": {"core": [{"name": "a", "median_ms": "1"}]}, "environment": {}}',
                "lacks 'low_ms', 'high_ms'",
            ),
        ],
    )
    def test_benchmarks(self, tmp_path, content, problem):
        path = tmp_path / "timings.json"
        path.write_bytes(content)
        with pytest.raises(
            SystemExit, match=rf"timings\.json .*{problem}.*Expected a file written by"
        ):
            compare.read(str(path))
        with pytest.raises(SystemExit, match="cannot be read: Is a directory"):
            compare.read(str(tmp_path))

    def test_committed_benchmarks_stay_readable(self):
        for path in (Path(compare.__file__).parent / "results").glob("*.json"):
            assert compare.read(str(path))["suites"]

    def test_a_config_of_something_else_is_not_overwritten(self, tmp_path):
        (tmp_path / "config.json").write_text('{"editor": "vi"}')
        assert_refused(tmp_path, "lacks 'experiment'", FileError)


class TestReadOnly:
    """A finished run on a read-only file system."""

    @pytest.fixture
    def locked(self, workdir, monkeypatch):
        def refuse(*args, **kwargs):
            raise OSError(30, "Read-only file system", str(workdir))

        access = os.access
        inside = lambda path: workdir in (path, *getattr(path, "parents", ()))
        monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
        monkeypatch.setattr(identity, "write_json", refuse)
        monkeypatch.setattr(os, "access", lambda p, mode: not inside(p) and access(p, mode))
        return workdir

    @pytest.mark.parametrize("lost", [None, "config.json"])
    def test_the_same_command_shows_its_results(self, trained, locked, capsys, lost):
        if lost:
            (locked / lost).unlink()
        before = tree(locked)
        assert go(locked) == json.loads((trained / "results.json").read_text())
        assert "is done; its results" in capsys.readouterr().out
        assert tree(locked) == before
        with pytest.raises(runner.RunError, match="seed=0, the command says 2"):
            go(locked, seed=2)

    def test_an_unfinished_run_reports_why_it_cannot_resume(self, locked):
        unfinished(locked)
        assert_refused(locked, "cannot be written: .*Read-only file system.*another --workdir")

    def test_modes_write_elsewhere(self, locked, tmp_path, monkeypatch, capsys):
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        points = tmp_path / "points.csv"
        points.write_text("x,y\n-2,1\n0,0.5\n3,-1\n")
        before = tree(locked)
        run = runner.load(sinusoid.EXPERIMENT, locked)
        sinusoid.adapt_to_points(run, str(points), "", 1)
        written = tmp_path / "here" / "run_output"
        assert {path.name for path in written.iterdir()} == {"predictions.csv", "adapted.png"}
        assert f"cannot be written; files are written to {written}" in capsys.readouterr().err
        assert tree(locked) == before


def test_committed_results_stay_readable():
    """They do not name JAX's settings."""
    runs = report.find_runs([Path(report.__file__).parent / "results"])
    assert len(runs) > 10
    assert len(report.group_runs(runs)) > 10
