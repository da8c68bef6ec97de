"""The experiments on images, end to end on small synthetic glyphs, and users' mistakes."""

import csv
import dataclasses
import io
import json
import os
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import images, load_model, mini_imagenet, omniglot
from experiments.core import logbook, model_files, places, process, results, runner, tables
from experiments.core.config import ConfigError, public_fields
from experiments.images import __main__ as command
from experiments.images import accuracy, adapt, data, stages
from experiments.images.config import METHODS
from experiments.images.evaluation import setting_of
from experiments.images.figure import contact_sheet
from experiments.images.network import make_network
from maml_jax import member_mesh
from maml_jax.classification import CLASS_SPECS, LabelledImages, with_support_images
from maml_jax.memory import Advice

SMALL = {
    "dataset": "synthetic",
    "num_ways": 3,
    "meta_steps": 8,
    "num_tasks": 4,
    "network": "mlp",  # compiles faster
    "hidden_sizes": (8,),
    "image_size": 8,
    "validate_every": 4,
    "validation_tasks": 8,
    "report_steps": 1,
    "eval_steps": 2,
    "eval_tasks": 8,
    "eval_queries": (2,),
    "protocols": ("transductive",),
    "pretrain_steps": 4,
    "pretrain_images": 8,
    "steps_per_call": 4,
}
EVERYTHING = {**SMALL, "methods": METHODS, "protocols": ("transductive", "one_query")}
MAML = "maml, not convolutional"


@pytest.fixture(scope="module", autouse=True)
def few_glyphs():
    """Reduces the number of classes, whose drawing would take longer than these runs."""
    before = dict(data.GLYPH_CLASSES)
    data.GLYPH_CLASSES.update(train=8, val=5, test=5)
    data._load.cache_clear()
    yield
    data.GLYPH_CLASSES.update(before)
    data._load.cache_clear()


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """A run of all methods with two inner step sizes."""
    workdir = tmp_path_factory.mktemp("runs") / "members"
    settings = omniglot.Config(**EVERYTHING, inner_lr=0.5)
    summary = runner.run(omniglot.EXPERIMENT, workdir, settings, swept={"inner_lr": (0.5, 2.0)})
    return workdir, summary


@pytest.fixture(scope="module")
def finished(members):
    """The member with the default step size: its directory and results."""
    workdir = members[0] / "seed=0,inner_lr=2.0"
    return workdir, results.read_results(workdir)


@pytest.fixture(scope="module")
def loaded(finished):
    return runner.load(omniglot.EXPERIMENT, finished[0])


def test_all_methods_are_tested_in_all_protocols(finished):
    workdir, run = finished
    for name in ("config.json", "metrics.jsonl", "results.json", "figure.png", "evaluation.npz"):
        assert (workdir / name).stat().st_size > 0
    assert run["experiment"] == "omniglot"
    assert {row["setting"] for row in run["rows"]} == {
        f"3-way 1-shot, synthetic glyphs, 2 queries{protocol}"
        for protocol in ("", ", one query at a time")
    }
    steps = {}
    for row in run["rows"]:
        assert row["metric"] == "accuracy"
        assert 0 <= row["mean"] <= 1
        assert row["num_tasks"] == 8
        asked = steps.setdefault(row["method"], set())
        if row["method"] in (MAML, "matching nets"):
            assert row["best_step"] in (4, 8)
            assert 0 <= row["validation_accuracy"] <= 1
        if "one query" in row["setting"]:
            assert row["gradient_steps"] in (1, None)  # after the reported step only
        asked.add(row["gradient_steps"])
    assert steps == {
        MAML: {0, 1, 2},
        "fine-tuning": {0, 1, 2},
        "random": {0, 1, 2},
        "nearest neighbour": {None},
        "matching nets": {None},
    }


def test_the_model_is_selected_on_validation_episodes(finished):
    workdir, _ = finished
    entries = [e for e in logbook.read_metrics(workdir) if e["stage"] == MAML]
    validated = [(e["validation/accuracy"], e["step"]) for e in entries]
    assert [step for _, step in validated] == [4, 8]
    best = max(accuracy for accuracy, _ in validated)
    first = next(step for accuracy, step in validated if accuracy == best)
    with np.load(workdir / "evaluation.npz") as arrays:
        assert arrays[f"best_step/{MAML}"] == first


def test_episodes_have_images_of_one_split_only():
    """Compares pixels, in each of the four rotations."""
    config = omniglot.Config(**SMALL)
    sets = data.load(config)
    drawn = accuracy.validation_episodes(config.shared)
    pixels = np.concatenate([drawn.support.images, drawn.query.images], axis=1)
    episodes = np.rint(pixels.reshape(-1, 8, 8) * 255).astype(np.uint8)
    held = lambda split: {image.tobytes() for image in np.asarray(split.images).reshape(-1, 8, 8)}
    where = {name: held(getattr(sets, name)) for name in ("train", "validation", "test")}
    for image in episodes:
        turned = {np.rot90(image, k).tobytes() for k in range(4)}
        assert turned & where["validation"]
        assert not turned & (where["train"] | where["test"])


def test_each_member_is_scored_and_tested_with_its_step_size(members, finished):
    workdir, summary = members
    assert list(summary["members"]) == ["seed=0,inner_lr=0.5", "seed=0,inner_lr=2.0"]
    assert {row["setting"].split(": ")[0] for row in summary["rows"]} == {
        "inner_lr=0.5", "inner_lr=2.0",
    }  # fmt: skip
    tasks = with_support_images(accuracy.validation_episodes(omniglot.Config(**EVERYTHING).shared))
    for rate in (0.5, 2.0):
        run = runner.load(omniglot.EXPERIMENT, workdir / f"seed=0,inner_lr={rate}")
        evaluate = accuracy.adapting(run.settings.shared, 1)
        curve = evaluate(run.states[MAML].best_params, tasks, rate).mean["accuracy"]
        np.testing.assert_allclose(run.states[MAML].best_score, curve[-1], rtol=1e-6)
        rows = results.read_results(workdir / f"seed=0,inner_lr={rate}")["rows"]
        assert {row["inner_lr"] for row in rows if row["method"] == MAML} == {rate}


class TestImagePlacement:
    @pytest.fixture(autouse=True)
    def read_anew(self):
        data._load.cache_clear()
        yield
        data._load.cache_clear()

    def placed(self, monkeypatch, available, **changes):
        """Returns the stage, its data on four of the devices, and whether classes are spread."""
        monkeypatch.setattr(process, "available_memory", lambda: available)
        (stage,) = stages.make_stages(omniglot.Config(**SMALL, **changes))
        mesh = member_mesh(1, 4, jax.devices()[:4])
        return stage, stage.data(mesh)[0].images

    def test_whole_where_they_fit(self, monkeypatch, capsys):
        stage, placed = self.placed(monkeypatch, 1_000_000_000)
        assert stage.data_specs == jax.sharding.PartitionSpec()
        assert placed.sharding.is_fully_replicated
        assert "training images: 0 MB on each of 4 device(s), whole" in capsys.readouterr().out

    def test_spread_where_they_do_not(self, monkeypatch, capsys):
        stage, placed = self.placed(monkeypatch, 10_000)
        assert stage.data_specs == (CLASS_SPECS,)
        assert {shard.data.shape[0] for shard in placed.addressable_shards} == {2}  # of 8 classes
        assert "4 device(s), classes spread over the devices" in capsys.readouterr().out

    def test_plain_batches_need_them_whole(self, monkeypatch):
        stage, _ = self.placed(monkeypatch, 10_000, methods=("nearest_neighbour",))
        assert stage.data_specs == jax.sharding.PartitionSpec()
        with pytest.raises(ConfigError, match="--methods=pretrained trains on plain batches"):
            omniglot.Config(**SMALL, data_placement="sharded", methods=("pretrained",))


def test_the_table_has_a_separate_column_for_methods_without_steps(finished):
    table = tables.group_table([finished[1]])
    header = table.splitlines()[0]
    assert "(none)" in header
    assert "nearest neighbour" in table
    assert "random initialisation" in table


def write_images(where, names, count=2, kind="png"):
    for i, name in enumerate(names):
        (where / name).mkdir(parents=True)
        for j in range(count):
            array = np.full((20, 14), 255 - 60 * i - j, np.uint8)
            Image.fromarray(array).save(where / name / f"{j}.{kind}")


@pytest.fixture
def users_folders(tmp_path):
    """Three labelled classes, and four images to classify."""
    write_images(tmp_path / "support", ["alpha", "beta", "gamma"])
    write_images(tmp_path / "asked", ["."], 4, "bmp")
    return tmp_path / "support", tmp_path / "asked"


def test_adapting_to_a_users_images_writes_predictions_and_a_sheet(loaded, users_folders, capsys):
    workdir = loaded.workdir
    adapt.adapt_to_images(loaded, *map(str, users_folders), adapt_steps=2)
    with (workdir / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["0.bmp", "1.bmp", "2.bmp", "3.bmp"]
    for row in rows:
        shares = {name: float(row[f"p({name})"]) for name in ("alpha", "beta", "gamma")}
        assert abs(sum(shares.values()) - 1) < 1e-3
        assert row["predicted"] == max(shares, key=shares.get)
    with Image.open(workdir / "predictions.png") as sheet:
        assert sheet.width > 500
    assert "classified 4 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s, a: shutil.rmtree(s / "gamma"),
            r"distinguishes 3 classes .* has 2 class folders: alpha",
        ),
        (lambda s, a: shutil.rmtree(a), "asked is not a folder"),
        (lambda s, a: [p.unlink() for p in a.iterdir()], "asked has no images"),
        (lambda s, a: (a / "0.bmp").write_bytes(b"BM, but no more"), "asked/0.bmp is a broken"),
        (lambda s, a: shutil.rmtree(s), "support is not a folder"),
        (lambda s, a: (s / "alpha" / "more").mkdir(), "support/alpha holds folders: more"),
        (
            lambda s, a: (s / "delta").symlink_to("gone"),
            "support/delta -> gone.*lead nowhere|1 link",
        ),
        (lambda s, a: (a / "x.png").symlink_to("gone"), "asked/x.png -> gone"),
        (lambda s, a: (s / "beta" / "9.png").hardlink_to(s / "alpha" / "0.png"), "are one file"),
    ],
)
def test_unusable_images_are_named(loaded, users_folders, change, message):
    change(*users_folders)
    with pytest.raises(ConfigError, match=message):
        adapt.adapt_to_images(loaded, *map(str, users_folders), adapt_steps=2)


def test_names_are_harmless_in_terminal_table_and_figure(loaded, users_folders, capsys):
    support, asked = users_folders
    names = ["$x_{$", "a\x1b[31m,\nred", os.fsdecode(b"\xff.bmp")]
    (support / "alpha").rename(support / names[0])
    (support / "beta").rename(support / names[1])
    (asked / "0.bmp").rename(asked / names[2])
    (asked / "sub").mkdir()
    (asked / "1.bmp").rename(asked / "sub" / "$$$.bmp")
    (asked / "notes\x1b.txt").touch()
    adapt.adapt_to_images(loaded, str(support), str(asked), adapt_steps=1)
    with (loaded.workdir / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows[1:]] == ["2.bmp", "3.bmp", r"\udcff.bmp", "sub/$$$.bmp"]
    assert rows[0][2:] == ["p($x_{$)", r"p(a\x1b[31m,\nred)", "p(gamma)"]
    printed = capsys.readouterr()
    assert r"asked (not images): notes\x1b.txt" in printed.err
    assert "6 images of" in printed.err  # each has one value
    assert "asked: 4 images read as 8x8 pixels, grey, inverted" in printed.out
    assert "\x1b" not in printed.out + printed.err


def test_models_can_be_given_away_without_data(
    finished, loaded, users_folders, tmp_path, monkeypatch, capsys
):
    """Bit for bit, and the adaptation of a copy gives the same answers."""
    workdir, run = finished
    for method, params in loaded.params.items():
        model = load_model(workdir / "model" / f"{model_files.file_names([method])[method]}.json")
        jax.tree.map(np.testing.assert_array_equal, model.params, params)
        assert model.record["rows"]
        assert model.record["classes"] == [f"synthetic_0_{i:04d}" for i in range(8)]
    adapt.adapt_to_images(loaded, *map(str, users_folders), adapt_steps=2)
    expected = (workdir / "predictions.csv").read_bytes()

    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy, ignore=shutil.ignore_patterns("checkpoints", "predictions.*"))
    monkeypatch.setattr(data, "load", lambda config: pytest.fail("training data was read"))
    moved = runner.load_params(omniglot.EXPERIMENT, copy)
    capsys.readouterr()
    adapt.adapt_to_images(moved, *map(str, users_folders), adapt_steps=2)
    assert (copy / "predictions.csv").read_bytes() == expected
    row = next(
        row
        for row in run["rows"]
        if row["method"] == MAML and row["setting"].endswith("one query at a time")
    )
    assert f"expected accuracy on images like the test images: {row['mean']:.1%}" in (
        capsys.readouterr().out
    )

    model = load_model(copy / "model" / "maml_not_convolutional.json")
    support = LabelledImages(np.zeros((3, 8, 8, 1), np.float32), np.arange(3))
    adapted = model.adapt(support, num_inner_steps=1)
    assert model.network.apply(adapted, support.images).shape == (3, 3)
    with pytest.raises(ValueError, match="'matching' takes no gradient steps"):
        load_model(copy / "model" / "matching.json").adapt(support)


def test_a_run_without_model_files_needs_its_data(finished, loaded, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy, ignore=shutil.ignore_patterns("model"))
    old = runner.load_params(omniglot.EXPERIMENT, copy)
    jax.tree.map(np.testing.assert_array_equal, dict(old.params), dict(loaded.params))

    def missing(config):
        raise ConfigError("no archives.")

    monkeypatch.setattr(data, "load", missing)
    with pytest.raises(runner.RunError, match=r"no model files .* training data: no archives"):
        runner.load_params(omniglot.EXPERIMENT, copy)


def test_adapting_requires_both_folders(loaded):
    with pytest.raises(ConfigError, match="needs --support=FOLDER and --classify=FOLDER"):
        adapt.adapt_to_images(loaded, "", "", 1)


def write_photographs(where, classes, size=(20, 15)):
    """Writes four colour images of each class."""
    rng = np.random.default_rng(0)
    for split, count in classes.items():
        for c in range(count):
            (where / split / f"{split}{c}").mkdir(parents=True)
            for i in range(4):
                array = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
                Image.fromarray(array).save(where / split / f"{split}{c}" / f"{i}.jpg")


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    write_photographs(tmp_path / "mine", {"train": 4, "val": 3, "test": 3})
    (tmp_path / "mine" / "notes.txt").touch()
    monkeypatch.setenv("MAML_JAX_DATA", str(tmp_path / "mine"))
    monkeypatch.setenv("MAML_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "mine"


FOLDER = {
    **{name: value for name, value in SMALL.items() if name not in ("image_size", "eval_queries")},
    "dataset": "folder",
    "meta_steps": 4,
    "num_tasks": 1,
    "train_queries": 1,
    "inner_steps": 1,
    "eval_steps": 1,
}


def test_training_on_a_folder_of_photographs(photographs, tmp_path, capsys):
    settings = images.Config(**FOLDER)
    run = runner.run(images.EXPERIMENT, tmp_path / "run", settings)
    assert run["experiment"] == "images"
    assert {row["setting"] for row in run["rows"]} == {"3-way 1-shot, own images"}
    printed = capsys.readouterr()
    assert "few-shot classification of images" in printed.out
    assert "characters" not in printed.out
    block = printed.out.index(
        f"data: folder from {photographs}, read as 16x16 pixels, colour, not inverted (dark is 0) "
        "(--image_size=16 --image_kind=colour)"
    )
    train = printed.out.index("\n  train: 4 classes of 4 images (files: colour, 15x20 pixels)\n")
    assert block < train < printed.out.index("step")
    assert "note: skipped in" in printed.err
    assert "notes.txt" in printed.err
    assert "paper" not in tables.group_table([run]).splitlines()[0]
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (stored["image_size"], stored["image_kind"]) == (16, "colour")
    assert stored["eval_queries"] == [1]  # as in training


@pytest.mark.parametrize(
    ("asked", "problem", "advice", "suggested"),
    [
        (
            {"num_shots": 4},
            r"takes 5 examples .*0 \(4\)",
            "For 4 images a class: --num_shots=2",
            {"num_shots": 2},
        ),
        (
            {"train_queries": 15},
            "'train': an episode takes 16 .*'test': an episode takes 16",
            "For 4 images a class: --train_queries=3 --set=eval_queries=3",
            {"train_queries": 3, "eval_queries": (3,)},
        ),
        (
            {"num_ways": 4},
            "'val' has 3 classes .*; 4-way episodes need 4 or more",
            "For 3 classes a split: --num_ways=3 ",
            {"num_ways": 3},
        ),
    ],
)
def test_a_folder_that_is_too_small_names_flags_that_work(
    photographs, asked, problem, advice, suggested
):
    with pytest.raises(ConfigError, match=rf"{problem}.*\. {advice}"):
        data.load(images.Config(**{**FOLDER, **asked}))
    data.load(images.Config(**{**FOLDER, **asked, **suggested}))


@pytest.mark.parametrize(("side", "expected"), [(12, 16), (50, 50), (300, 84)])
def test_the_size_of_a_folders_images_is_kept_within_bounds(tmp_path, monkeypatch, side, expected):
    write_photographs(tmp_path, {"train": 1, "test": 1}, (side, side + 9))
    monkeypatch.setenv("MAML_JAX_DATA", str(tmp_path))
    config = images.Config(dataset="folder")
    assert (config.image_size, config.channels) == (expected, 3)
    make_network(config)  # deep enough for the smallest
    asked = images.Config(dataset="folder", image_size=20, image_kind="ink")
    assert (asked.image_size, asked.channels) == (20, 1)
    assert str(data.reading(asked)) == "20x20 pixels, grey, inverted (dark is 255)"


def test_without_pillow_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"need Pillow: pip install 'maml-jax\[images\]'"):
        data.load(omniglot.Config(**SMALL))


def test_missing_data_is_an_error_message_and_leaves_no_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("MAML_JAX_DATA", str(tmp_path))
    with pytest.raises(ConfigError, match="found no MiniImagenet in"):
        runner.run(mini_imagenet.EXPERIMENT, tmp_path / "run", mini_imagenet.Config())
    with pytest.raises(
        ConfigError, match="found no MiniImagenet in"
    ):  # not "another configuration"
        runner.run(mini_imagenet.EXPERIMENT, tmp_path / "run", mini_imagenet.Config(num_shots=5))
    write_photographs(tmp_path, {"train": 2, "val": 1, "test": 1})
    with pytest.raises(ConfigError, match=r"64 classes; found 2\. Read .* as a folder"):
        data.load(mini_imagenet.Config())
    monkeypatch.setenv("MAML_JAX_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="nowhere is not a folder"):
        images.Config(dataset="folder")


def test_missing_validation_classes_are_refused_before_training(monkeypatch):
    sets = data.load(omniglot.Config(**EVERYTHING))._replace(validation=None)
    monkeypatch.setattr(data, "load", lambda config: sets)
    with pytest.raises(ConfigError, match=r"--methods=pretrained,random: .* has none"):
        stages.make_stages(omniglot.Config(**EVERYTHING))
    (alone,) = stages.make_stages(omniglot.Config(**SMALL))
    assert alone.score is None


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (omniglot.Config, (1, 32, 1, 3, 2.0, 0.0)),
        (lambda: omniglot.Config(num_shots=5), (5, 32, 1, 3, 2.0, 0.0)),
        (lambda: omniglot.Config(num_ways=20), (1, 16, 5, 5, 2.0, 0.0)),
        (lambda: omniglot.Config(num_ways=20, inner_steps=0), (1, 16, 0, 5, 2.0, 0.0)),
        # The original clips the gradient of 75 (1-shot) or 15 (5-shot) times the mean loss at 10.
        (mini_imagenet.Config, (15, 4, 5, 10, 0.05, 10 / 75)),
        (lambda: mini_imagenet.Config(num_shots=5), (15, 4, 5, 10, 0.05, 10 / 15)),
        (lambda: mini_imagenet.Config(train_queries=5), (5, 4, 5, 10, 0.05, 10 / 25)),
        (lambda: mini_imagenet.Config(dataset="synthetic"), (15, 4, 5, 10, 0.05, 10 / 75)),
        (images.Config, (1, 32, 1, 3, 2.0, 0.0)),
        (lambda: images.Config(dataset="folder", image_size=20), (15, 4, 5, 10, 0.05, 10 / 75)),
    ],
)
def test_each_cell_has_the_papers_settings(make, expected):
    config = make()
    values = (
        config.train_queries,
        config.num_tasks,
        config.inner_steps,
        config.report_steps,
        config.inner_lr,
        config.clip,
    )
    assert values == expected
    assert (config.meta_steps, config.meta_lr) == (60_000, 1e-3)


def test_every_dataset_has_one_command():
    for line, name in (
        (["--workdir=x", "--dataset=omniglot"], "omniglot"),
        (["--dataset", "mini_imagenet", "--num_shots=5"], "mini_imagenet"),
        (["--dataset=folder"], "images"),
        (["--preset=quick"], "images"),
    ):
        assert command.chosen(line).name == name
    with pytest.raises(ConfigError, match=r"--dataset must be one of omniglot, mini_imagenet, fol"):
        images.Config(dataset="cifar")
    with pytest.raises(ConfigError, match=r"one of omniglot, synthetic; received 'folder'"):
        omniglot.Config(dataset="folder")
    with pytest.raises(ConfigError, match=r"python -m experiments\.mini_imagenet"):
        images.Config(dataset="mini_imagenet")


def test_few_settings_have_a_flag():
    assert len(public_fields(images.Config)) <= 19
    assert {f.name for f in public_fields(omniglot.Config)} - {
        f.name for f in public_fields(images.Config)
    } == {"splitting"}


def test_tasks_may_be_computed_in_chunks():
    assert omniglot.Config(**SMALL).batching == "scan"  # on a CPU
    assert omniglot.Config(**SMALL, task_batching="8").batching == 8
    assert omniglot.Config(**SMALL, task_batching="vmap").batching == "vmap"
    with pytest.raises(ConfigError, match="scan, vmap or a number of tasks; received 'some'"):
        omniglot.Config(**SMALL, task_batching="some")


def test_the_mode_depends_on_the_number_of_inner_steps():
    assert omniglot.Config().mode == "reverse"
    assert omniglot.Config(num_ways=20).mode == "mixed"
    assert omniglot.Config(meta_gradient="remat").mode == "remat"
    first_order = omniglot.Config(meta_gradient="first_order")
    assert first_order.mode == first_order.maml_name == "first_order"
    assert dataclasses.replace(first_order, network="mlp").maml_name == (
        "first_order, not convolutional"
    )


def test_settings_that_differ_from_the_papers_are_named():
    config = omniglot.Config(num_shots=5)
    assert setting_of(config, 5, "transductive") == "5-way 5-shot"
    assert setting_of(config, 15, "transductive") == "5-way 5-shot, 15 queries"
    assert setting_of(config, 5, "one_query") == "5-way 5-shot, one query at a time"


def test_each_element_of_the_meta_gradient_is_bounded():
    optimizer = stages._optimizer(mini_imagenet.Config())
    params = {"w": np.zeros(1, np.float32)}
    # Adam's first moment is a tenth of the first gradient that reaches it.
    _, state = optimizer.update({"w": np.full(1, 1e3, np.float32)}, optimizer.init(params), params)
    np.testing.assert_allclose(state[1][0].mu["w"], 0.1 * 10 / 75, rtol=1e-5)


def test_too_little_memory_is_reported_with_a_flag_to_set(monkeypatch, capsys):
    """On one device: the CPU's devices share their memory."""
    config = omniglot.Config(**SMALL, task_batching="vmap", meta_gradient="reverse")
    (stage,) = stages.make_stages(config)
    mesh = member_mesh(1, 4, jax.devices()[:1])
    capsys.readouterr()
    for available, text in ((None, ""), (10**9, "")):
        monkeypatch.setattr(process, "available_memory", lambda room=available: room)
        stage.before_training(mesh)
        assert capsys.readouterr().err == text
    monkeypatch.setattr(process, "available_memory", lambda: 0)
    monkeypatch.setattr(stages, "advise", lambda *args, **named: stages_advice(named))
    stage.before_training(mesh)
    assert capsys.readouterr().err == (
        "warning: the meta-gradient of 4 tasks at once needs 2 MB on each device, and 0 MB are "
        "left. --meta_gradient=mixed --set=task_batching=scan fits.\n"
    )


def stages_advice(named):
    assert named == {"mode": "reverse", "tasks_at_once": 4, "available": 0}
    return Advice(2_000_000, 0, {"mode": "mixed", "batching": "scan"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_ways": 1}, "--num_ways must be 2 or more"),
        ({"eval_steps": 2}, "eval_steps must be at least report_steps=3; received 2"),
        ({"image_kind": "colour"}, "--image_kind is ink with --dataset=omniglot; received colour"),
        ({"image_kind": "green"}, "--image_kind must be one of colour, grey, ink"),
        ({"rotations": "flip"}, "--rotations must be one of none, augment, classes"),
        ({"methods": ("maml", "svm")}, "--methods must be one of"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        omniglot.Config(**fields)


def test_an_impossible_network_is_an_error_message():
    with pytest.raises(ConfigError, match="too small for 4 times 2x2"):
        make_network(omniglot.Config(pooling="max", image_size=12))


def test_a_configuration_survives_its_json(finished, loaded):
    stored = json.loads((finished[0] / "config.json").read_text())["config"]
    assert stored["inner_steps"] == 1  # computed, not null
    assert loaded.settings == omniglot.Config(**EVERYTHING)


def test_places(monkeypatch, tmp_path):
    monkeypatch.setenv("MAML_JAX_DATA", str(tmp_path))
    assert places.data_dir() == tmp_path
    monkeypatch.delenv("MAML_JAX_DATA")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "x"))
    monkeypatch.setattr(places.sys, "platform", "linux")
    assert places.data_dir() == tmp_path / "x" / "maml_jax"
    monkeypatch.setenv("MAML_JAX_DATA", "~no_such_user_at_all/data")
    with pytest.raises(ConfigError, match=r"MAML_JAX_DATA=~no_such.*no home folder is known"):
        places.data_dir()


def test_contact_sheet_of_many_images(tmp_path):
    pictures = np.zeros((3, 5, 5, 3), np.uint8)
    path = tmp_path / "sheet.png"
    names = [f"a class with ${i}$ and quite a long name" for i in range(3)]
    contact_sheet(path, names, np.arange(3), pictures, ["x.png"] * 3, pictures, np.eye(3))
    with Image.open(io.BytesIO(path.read_bytes())) as sheet:
        assert sheet.format == "PNG"
