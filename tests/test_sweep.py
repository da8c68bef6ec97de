"""Sweeps: the members of one program are the runs alone, in every file that they leave."""

import contextlib
import io
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import PATIENCE_S

from experiments import omniglot, report, sinusoid, sweep
from experiments.core import checkpoints, runner
from experiments.core.config import ConfigError
from experiments.core.config import build as build_config
from experiments.core.logbook import read_metrics
from experiments.core.selection import Selection
from experiments.few_shot import data, memory
from experiments.sweep import __main__ as command
from experiments.sweep import handover, together
from experiments.sweep.config import RATES, make_members, sweep_config
from maml_jax import NonFiniteError, seed_mesh

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "methods": ("maml",),
    "meta_steps": 60,
    "num_tasks": 4,
    "hidden_sizes": (8,),
    "num_shots": (5,),
    "eval_steps": 2,
    "eval_tasks": 10,
    "steps_per_call": 20,
}
GRID = {"seeds": (0,), "inner_lr": (0.001, 0.05), "meta_lr": (1e-3, 1e-2)}  # images: seeds
FILES = {"config.json", "metrics.jsonl", "checkpoints", "tensorboard", "results.json", "figure.png"}


def swept(workdir, name="sinusoid", **fields):
    settings = sweep_config(name)(**fields)
    return sweep.run(sweep.make_experiment(name), workdir, settings, checkpoint_every_s=0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("sweeps") / "grid"
    return workdir, swept(workdir, **SMALL, **GRID)


def alone(workdir, member, experiment=sinusoid.EXPERIMENT):
    return runner.run(experiment, workdir, member.settings, seed=member.seed)


def outcome(workdir, experiment=sinusoid.EXPERIMENT):
    """What training left, without times: the state, the losses, the rows."""
    (state,) = runner.load(experiment, workdir).states.values()
    losses = [(e["step"], e["loss"], e["nonfinite_tasks"]) for e in read_metrics(workdir)]
    rows = json.loads((workdir / "results.json").read_text())["rows"]
    return checkpoints.to_host(state), losses, rows


def assert_same_outcome(ours, theirs, rtol):
    for a, b in zip(ours[:2], theirs[:2], strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol), a, b)
    for a, b in zip(ours[2], theirs[2], strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_allclose(a["mean"], b["mean"], rtol=rtol, atol=rtol)


def is_training(message):
    """Whether a line of JAX's log says that a training program was compiled."""
    return "Finished XLA compilation" in message and "train" in message


@pytest.mark.parametrize("index", [1, 2])  # each differs from the first in another rate
def test_a_member_is_the_run_alone(finished, tmp_path, index):
    workdir, _ = finished
    member = make_members(sweep_config("sinusoid")(**SMALL, **GRID))[index]
    found = alone(tmp_path / "alone", member)
    ours = workdir / member.label
    assert {p.name for p in ours.iterdir()} >= FILES
    assert {p.name for p in ours.iterdir()} == {p.name for p in (tmp_path / "alone").iterdir()}
    assert_same_outcome(outcome(ours), outcome(tmp_path / "alone"), rtol=2e-3)
    theirs = json.loads((tmp_path / "alone" / "config.json").read_text())
    assert json.loads((ours / "config.json").read_text()) == theirs
    keys = [set(entry) for entry in read_metrics(tmp_path / "alone")]
    assert [set(entry) for entry in read_metrics(ours)] == keys
    written = json.loads((ours / "results.json").read_text())
    assert written.keys() == {*found, "sweep"}


def test_members_differ_and_have_a_share_of_the_time(finished):
    workdir, found = finished
    runs = report.find_runs(sorted(workdir.iterdir()))  # as the shell names them, DIR/*
    assert len(runs) == 4
    assert len({run["rows"][-1]["mean"] for run in runs}) == 4
    for run in runs:
        assert run["sweep"]["members"] == 4
        share = run["sweep"]["train_s"] / 4
        np.testing.assert_allclose(run["wall_clock_s"]["train"], share, atol=1e-3)
        np.testing.assert_allclose(found["wall_clock_s"]["train"], 4 * share, atol=1e-2)


def test_a_members_command_and_the_sweeps_say_that_it_is_done(finished, capsys):
    workdir, found = finished
    for member in make_members(sweep_config("sinusoid")(**SMALL, **GRID))[:2]:
        alone(workdir / member.label, member)
        assert f"{member.label} is done; its results" in capsys.readouterr().out
    assert swept(workdir, **SMALL, **GRID) == found
    said = capsys.readouterr().out
    assert "is done" in said
    lines = said[said.index("mse, K=5") :].splitlines()
    assert sum(line.startswith("seed=") for line in lines) == 4
    assert "validation" not in said  # sinusoids have none to choose by


def test_another_configuration_is_refused(finished):
    with pytest.raises(runner.RunError, match=r"inner_lr: there \[0\.001, 0\.05\], asked for"):
        swept(finished[0], **SMALL, **{**GRID, "inner_lr": (0.001,)})


def test_one_compilation_trains_all_members(caplog):
    members = make_members(sweep_config("sinusoid")(**SMALL, **GRID))
    stage = together.make_stage(sinusoid.EXPERIMENT, members)
    state = stage.init()
    with jax.log_compiles():
        advance = stage.make_advance(20)
        for _ in range(3):
            state, _ = advance(state)
    assert [int(s) for s in state.step] == [60] * 4
    compiled = [r.getMessage() for r in caplog.records if is_training(r.getMessage())]
    assert len(compiled) == 1, compiled


@pytest.mark.slow
def test_killed_in_training_and_in_handing_over(finished, tmp_path, monkeypatch):
    """Each kill is followed by the same command; what comes out is the same, bit for bit."""
    for module, name, at_call in ((together, "_by_member", 2), (handover, "_labelled", 4)):
        calls, original = [], getattr(module, name)

        def dying(*args, calls=calls, at_call=at_call, original=original):
            calls.append(args)
            if len(calls) == at_call:
                raise KeyboardInterrupt
            return original(*args)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, dying)
            with pytest.raises(KeyboardInterrupt):
                swept(tmp_path, **SMALL, **GRID)
    swept(tmp_path, **SMALL, **GRID)
    for member in make_members(sweep_config("sinusoid")(**SMALL, **GRID)):
        ours, theirs = outcome(tmp_path / member.label), outcome(finished[0] / member.label)
        assert checkpoints.digest(ours[0]) == checkpoints.digest(theirs[0])
        assert ours[1:] == theirs[1:]
        assert "sweep" in json.loads((tmp_path / member.label / "results.json").read_text())


def test_a_member_that_diverges_leaves_the_others_alone(finished, tmp_path, capsys):
    fields = {**SMALL, "inner_lr": (0.001, 1e30), "meta_lr": (1e-3,)}
    found = swept(tmp_path, **fields)
    said = capsys.readouterr()
    assert "warning: seed=0,inner_lr=1e+30,meta_lr=0.001 stays at step 0" in said.err
    assert said.err.count("warning") == 1  # not at every dispatch
    assert "diverged in training, after meta-step 0" in said.out
    good, bad = make_members(sweep_config("sinusoid")(**fields))
    assert_same_outcome(
        outcome(tmp_path / good.label), outcome(finished[0] / good.label), rtol=2e-3
    )
    assert [row["mean"] is None for row in found["rows"]] == [False] * 3 + [True]
    assert not (tmp_path / bad.label / "results.json").exists()
    with pytest.raises(NonFiniteError, match="not finite at meta-step 0"):
        alone(tmp_path / bad.label, bad)


def test_where_all_diverge_the_sweep_stops(tmp_path):
    with pytest.raises(NonFiniteError, match=r"no member of the sweep is left.*meta-step 0"):
        swept(tmp_path, **{**SMALL, "inner_lr": (1e30, 1e31)})


IMAGES = {
    "dataset": "synthetic",
    "network": "mlp",  # which compiles faster
    "hidden_sizes": (8,),
    "num_ways": 3,
    "meta_steps": 20,
    "num_tasks": 2,
    "image_size": 8,
    "validate_every": 10,
    "validation_tasks": 8,
    "report_steps": 1,
    "eval_steps": 1,
    "eval_tasks": 8,
    "eval_queries": (0,),
    "protocols": ("transductive",),
    "steps_per_call": 10,
    "seeds": (0, 1),
    "inner_lr": (0.5, 2.0),
    "meta_lr": (1e-2,),
}


@pytest.fixture(scope="module")
def few_glyphs():
    pytest.importorskip("tensorflow_datasets", reason="the extra `data` is not installed")
    before = dict(data.GLYPH_CLASSES)
    data.GLYPH_CLASSES.update(train=8, val=5, test=5)
    data._load.cache_clear()
    yield
    data.GLYPH_CLASSES.update(before)
    data._load.cache_clear()


def two_members_a_device(patch):
    """Of four members; with all eight devices, there would be one on each pair."""
    patch.setattr(together, "seed_mesh", lambda *counts: seed_mesh(*counts, jax.devices()[:2]))


@pytest.fixture(scope="module")
def images(few_glyphs, tmp_path_factory):
    """A sweep that validates; what it printed, and the training programs that it compiled."""
    workdir, printed, compiled = tmp_path_factory.mktemp("sweeps") / "images", io.StringIO(), []
    watch = logging.Handler()
    watch.emit = lambda record: compiled.append(record.getMessage())
    logging.getLogger("jax").addHandler(watch)
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(printed),
        jax.log_compiles(),
    ):
        two_members_a_device(patch)
        found = swept(workdir, "omniglot", **IMAGES)
    logging.getLogger("jax").removeHandler(watch)
    return workdir, found, printed.getvalue(), [m for m in compiled if is_training(m)]


def test_validation_chooses_as_it_does_alone(images, tmp_path):
    member = make_members(sweep_config("omniglot")(**IMAGES))[3]
    assert (member.seed, member.settings.inner_lr) == (1, 2.0)
    theirs = alone(tmp_path / "alone", member, omniglot.EXPERIMENT)
    ours = images[0] / member.label
    assert_same_outcome(
        outcome(ours, omniglot.EXPERIMENT), outcome(tmp_path / "alone", omniglot.EXPERIMENT), 2e-3
    )
    rows = json.loads((ours / "results.json").read_text())["rows"]
    assert [row["best_step"] for row in rows] == [row["best_step"] for row in theirs["rows"]]
    for a, b in zip(read_metrics(ours), read_metrics(tmp_path / "alone"), strict=True):
        assert a.keys() == b.keys()
        assert a["validation/accuracy"] == b["validation/accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"data_placement": "sharded"}], ids=["whole", "spread"])
def test_image_classifiers_side_by_side_are_as_alone(few_glyphs, monkeypatch, tmp_path, options):
    """As on an accelerator: members and tasks in one batch each."""
    fields = {**IMAGES, "task_batching": "vmap", **options}
    if not options:
        two_members_a_device(monkeypatch)
    swept(tmp_path / "sweep", "omniglot", **fields)
    for member in make_members(sweep_config("omniglot")(**fields)):
        alone(tmp_path / member.label, member, omniglot.EXPERIMENT)
        ours = outcome(tmp_path / "sweep" / member.label, omniglot.EXPERIMENT)
        theirs = outcome(tmp_path / member.label, omniglot.EXPERIMENT)
        assert_same_outcome(ours, theirs, 2e-3)


@pytest.mark.parametrize(
    ("experiment", "fields", "specs"),
    [
        (sinusoid.EXPERIMENT, {**SMALL, **GRID}, {"P('seeds',)"}),
        (omniglot.EXPERIMENT, IMAGES, {"P('seeds',)", "P()"}),  # images are whole everywhere
    ],
    ids=["sinusoid", "images"],
)
def test_members_are_split_over_devices(few_glyphs, monkeypatch, experiment, fields, specs):
    """Each device is given members of its own, not all: the numbers would be the same."""
    members = make_members(sweep_config(experiment.name)(**fields))
    made, compile_members = [], together._compile
    monkeypatch.setattr(
        together, "_compile", lambda *args: made.append((compile_members(*args), args[-1])) or made
    )
    stage = together.make_stage(experiment, members)
    stage.make_advance(10)
    train, mesh = made[0]
    assert dict(mesh.shape) == {"seeds": len(members), "tasks": 2}  # of 8 devices
    state, data = jax.eval_shape(stage.init), ()
    if isinstance(state, Selection):
        data = together.stage_alone(experiment, members[0].settings, 0).data(mesh)[:1]
        state = state.train
    rates = {name: jnp.ones(len(members)) for name in RATES}
    text = str(train.trace(state, rates, *data).jaxpr)
    found = re.findall(r"(?:in|out)_specs=\((.*)\)", text)
    assert len(found) == 2
    assert {spec for each in found for spec in re.findall(r"P\([^)]*\)", each)} == specs


def test_the_best_is_marked_by_validation(images):
    _, found, printed, _ = images
    scores = {row["member"]: row["validation_accuracy"] for row in found["rows"]}
    assert len(scores) == 4
    best = {name for name, score in scores.items() if score == max(scores.values())}
    marked = [line for line in printed.splitlines() if "best by validation" in line]
    assert {line.split()[0] for line in marked} == best


def test_one_compilation_trains_all_image_classifiers(images):
    assert len(images[3]) == 1, images[3]
    assert images[2].count("training images:") == 1  # placed once, for all


def test_images_that_do_not_fit_are_spread_over_all_devices(few_glyphs, monkeypatch, capsys):
    """Members are not split then: with fewer devices each, these would hold more of the images."""
    fields, asked = {**IMAGES, "num_tasks": 8, "data_placement": "sharded"}, []
    monkeypatch.setattr(memory, "warn_if_too_large", lambda *args: asked.append(args[-1]))
    stage = together.make_stage(
        omniglot.EXPERIMENT, make_members(sweep_config("omniglot")(**fields))
    )
    stage.make_advance(10).compile(jax.eval_shape(stage.init))
    assert "on each of 8 device(s), sharded" in capsys.readouterr().out
    (mesh,) = asked  # once, for all members
    assert dict(mesh.shape) == {"seeds": 1, "tasks": 8}


def test_members_that_differ_in_seed_alone_are_pooled(images):
    runs = report.find_runs([images[0]])
    assert sorted(len(group) for group in report.group_runs(runs)) == [2, 2]


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "fields", "message"),
        [
            ("sinusoid", {"inner_lr": (0.1, -1.0)}, "--inner_lr must be above 0; received -1.0"),
            ("sinusoid", {"seeds": (-1,)}, "--seeds must be from 0 to 999999; received -1"),
            ("sinusoid", {"seeds": ()}, "--seeds must name at least one value"),
            ("sinusoid", {"meta_lr": (0.1, 0.1)}, "--meta_lr must name each value once"),
            ("sinusoid", {"num_seeds": 2}, "no such field: num_seeds"),
            ("sinusoid", {"methods": ("maml", "oracle")}, "--methods of a sweep must be one of"),
            ("omniglot", {"methods": ("pretrained",)}, "--methods of a sweep must be one of"),
            ("omniglot", {"eval_steps": 1}, "--eval_steps must be at least --report_steps=3"),
        ],
    )
    def test_settings(self, name, fields, message):
        experiment = sweep.make_experiment(name)
        with pytest.raises(ConfigError, match=message):
            build_config(experiment.config, experiment.presets, "paper", fields)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "--experiment must be one of sinusoid, omniglot, mini_imagenet; received none"),
            (["--experiment=mnist"], "received mnist"),
            (["--experiment", "navigation"], "python -m experiments.navigation --num_seeds=N"),
        ],
    )
    def test_experiments(self, monkeypatch, capsys, arguments, message):
        monkeypatch.setattr(sys, "argv", ["sweep", "--workdir=x", *arguments])
        with pytest.raises(SystemExit) as stop:
            command.main()
        assert stop.value.code == 2
        assert message in capsys.readouterr().err

    def test_a_single_runs_seed(self, tmp_path):
        settings = sweep_config("sinusoid")()
        with pytest.raises(ConfigError, match=r"a sweep takes --seeds=0,1,\.\.\.; .* --seed=3"):
            sweep.run(sweep.make_experiment("sinusoid"), tmp_path, settings, seed=3)

    def test_presets_are_the_experiments_but_for_methods(self):
        experiment = sweep.make_experiment("sinusoid")
        build = lambda preset: build_config(experiment.config, experiment.presets, preset, {})
        assert build("paper_text").inner_lr == (0.01,)
        assert build("quick").methods == ("maml",)
        assert build("quick").meta_steps == 20_000


def test_the_command_line(finished):
    """The lists reach the sweep: it is the one that is done; an unknown field is named."""
    line = [sys.executable, "-m", "experiments.sweep", "--experiment=sinusoid"]
    flags = [
        f"--{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in {**SMALL, **GRID, "workdir": finished[0]}.items()
    ]

    def said(*more):
        return subprocess.run(
            [*line, *flags, *more], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S
        )

    done = said()
    assert done.returncode == 0, done.stderr
    assert "seed=0,inner_lr=0.05,meta_lr=0.01" in done.stdout
    wrong = said("--inner_lrr=1")
    assert wrong.returncode != 0
    assert "Unknown command line flag 'inner_lrr'" in wrong.stderr
