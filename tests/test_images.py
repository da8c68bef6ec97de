"""The experiments on images, end to end on small synthetic glyphs, and what users get wrong."""

import csv
import io
import json
import os
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import mini_imagenet, omniglot, report
from experiments.core import logbook, places, runner
from experiments.core.config import ConfigError
from experiments.few_shot import adapt, data, stages
from experiments.few_shot.config import METHODS, make_network
from maml_jax.classification import PROTOCOLS

pytest.importorskip("tensorflow_datasets", reason="the extra `data` is not installed")

SMALL = {
    "dataset": "synthetic",
    "methods": METHODS,
    "num_ways": 3,
    "meta_steps": 20,
    "num_tasks": 4,
    "num_filters": 4,
    "num_layers": 2,
    "image_size": 12,
    "validate_every": 10,
    "validation_tasks": 8,
    "report_steps": 1,
    "eval_steps": 2,
    "eval_tasks": 8,
    "eval_queries": (0, 2),
    "protocols": PROTOCOLS,
    "pretrain_steps": 10,
    "pretrain_images": 8,
    "steps_per_call": 10,
}


@pytest.fixture(scope="module", autouse=True)
def few_glyphs():
    """Fewer classes than the experiments draw: drawing them takes longer than these runs."""
    before = dict(data.GLYPH_CLASSES)
    data.GLYPH_CLASSES.update(train=8, val=5, test=5)
    data._load.cache_clear()
    yield
    data.GLYPH_CLASSES.update(before)
    data._load.cache_clear()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "small"
    return workdir, runner.run(omniglot.EXPERIMENT, workdir, omniglot.Config(**SMALL))


def test_all_methods_are_judged_in_all_protocols(finished):
    workdir, found = finished
    for name in ("config.json", "metrics.jsonl", "results.json", "figure.png", "evaluation.npz"):
        assert (workdir / name).stat().st_size > 0
    settings = {row["setting"] for row in found["rows"]}
    assert settings == {
        f"3-way 1-shot, synthetic glyphs{queries}{protocol}"
        for queries in ("", ", 2 queries")
        for protocol in ("", ", support statistics", ", one query at a time")
    }
    steps = {}
    for row in found["rows"]:
        assert row["metric"] == "accuracy"
        assert 0 <= row["mean"] <= 1
        assert row["num_tasks"] == 8
        asked = steps.setdefault(row["method"], set())
        if row["method"] in ("maml", "matching nets"):
            assert row["best_step"] in (10, 20)
            assert 0 <= row["validation_accuracy"] <= 1
        if "one query" in row["setting"]:
            assert row["gradient_steps"] in (1, None)  # after the reported step alone
        asked.add(row["gradient_steps"])
    assert steps == {
        "maml": {0, 1, 2},
        "fine-tuning": {0, 1, 2},
        "random": {0, 1, 2},
        "nearest neighbour": {None},
        "matching nets": {None},
    }


def test_the_model_is_chosen_on_validation_episodes(finished):
    workdir, _ = finished
    entries = [e for e in logbook.read_metrics(workdir) if e["stage"] == "maml"]
    validated = [(e["validation/accuracy"], e["step"]) for e in entries]
    assert [step for _, step in validated] == [10, 20]
    best = max(accuracy for accuracy, _ in validated)
    first = next(step for accuracy, step in validated if accuracy == best)
    with np.load(workdir / "evaluation.npz") as arrays:
        assert arrays["best_step/maml"] == first


def test_episodes_hold_images_of_their_own_split_alone(few_glyphs):
    """Looked for pixel by pixel, in each of the four turns."""
    config = omniglot.Config(**SMALL)
    images = data.load(config)
    drawn = stages.validation_episodes(config, images)
    pixels = np.concatenate([drawn.support.images, drawn.query.images], axis=1)
    episodes = np.rint(pixels.reshape(-1, 12, 12) * 255).astype(np.uint8)
    held = lambda split: {image.tobytes() for image in np.asarray(split.images).reshape(-1, 12, 12)}
    where = {name: held(split) for name, split in images._asdict().items()}
    for image in episodes:
        turned = {np.rot90(image, k).tobytes() for k in range(4)}
        assert turned & where["validation"]
        assert not turned & (where["train"] | where["test"])


def test_where_images_lie_changes_nothing_but_memory(finished, tmp_path, capsys):
    workdir, found = finished
    settings = {**SMALL, "methods": ("maml",), "data_placement": "sharded"}
    settings |= {"eval_queries": (0,), "protocols": ("transductive",)}
    spread = runner.run(omniglot.EXPERIMENT, tmp_path / "run", omniglot.Config(**settings))
    assert "sharded (--data_placement=replicated:" in capsys.readouterr().out
    whole = [row for row in found["rows"] if row["method"] == "maml"]
    for row in spread["rows"]:
        (same,) = [r for r in whole if (r["setting"], r["gradient_steps"]) == (
            row["setting"], row["gradient_steps"])]  # fmt: skip
        np.testing.assert_allclose(row["mean"], same["mean"], atol=1e-6)
    with pytest.raises(ConfigError, match="--methods=pretrained trains on plain batches"):
        omniglot.Config(**{**settings, "methods": ("pretrained",)})


def test_table_puts_methods_without_steps_in_a_column_of_their_own(finished):
    table = tables.group_table([finished[1]])
    header = table.splitlines()[0]
    assert "(none)" in header
    assert "nearest neighbour" in table
    assert "random initialisation" in table


def test_a_stopped_run_goes_on_bit_for_bit(finished, tmp_path):
    """A run cut off after its first checkpoint ends with the same parameters."""
    config = omniglot.Config(**{**SMALL, "methods": ("maml",), "eval_queries": (0,)})
    images = data.load(config)
    whole = stages.make_stages(config, 0, images)[0]
    through, _ = whole.make_advance(10)(whole.init())
    from experiments.core.checkpoints import Checkpoints

    store = Checkpoints(tmp_path / "checkpoints")
    store.save(10, through, {"train_s": 0.0, "compile_s": 0.0})
    through, _ = whole.make_advance(10)(through)
    found = store.restore(whole.init, warn=print)
    store.close()
    assert found is not None
    resumed, _ = whole.make_advance(10)(found.state)
    for a, b in zip(jax.tree.leaves(through), jax.tree.leaves(resumed), strict=True):
        if not jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(a, b)


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


def test_adapting_to_a_users_images_writes_answers_and_a_sheet(finished, users_folders, capsys):
    workdir, _ = finished
    run = runner.load(omniglot.EXPERIMENT, workdir)
    adapt.adapt_to_images(run, *map(str, users_folders), adapt_steps=2)
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
        (lambda s, a: shutil.rmtree(s / "gamma"), r"3 classes apart .* has 2 class folders: alpha"),
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
def test_what_cannot_be_adapted_to_is_named(finished, users_folders, change, message):
    change(*users_folders)
    run = runner.load(omniglot.EXPERIMENT, finished[0])
    with pytest.raises(ConfigError, match=message):
        adapt.adapt_to_images(run, *map(str, users_folders), adapt_steps=2)


def test_names_harm_neither_terminal_nor_table_nor_figure(finished, users_folders, capsys):
    support, asked = users_folders
    names = ["$x_{$", "a\x1b[31m,\nred", os.fsdecode(b"\xff.bmp")]
    (support / "alpha").rename(support / names[0])
    (support / "beta").rename(support / names[1])
    (asked / "0.bmp").rename(asked / names[2])
    (asked / "sub").mkdir()
    (asked / "1.bmp").rename(asked / "sub" / "$$$.bmp")
    (asked / "notes\x1b.txt").touch()
    run = runner.load(omniglot.EXPERIMENT, finished[0])
    adapt.adapt_to_images(run, str(support), str(asked), adapt_steps=1)
    with (finished[0] / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows[1:]] == ["2.bmp", "3.bmp", r"\udcff.bmp", "sub/$$$.bmp"]
    assert rows[0][2:] == ["p($x_{$)", r"p(a\x1b[31m,\nred)", "p(gamma)"]
    printed = capsys.readouterr()
    assert r"asked (not images): notes\x1b.txt" in printed.err
    assert "6 images of" in printed.err  # each is of one value
    assert "asked: 4 images read as 12x12 pixels, grey, inverted" in printed.out
    assert "\x1b" not in printed.out + printed.err


def test_adapting_asks_for_both_folders(finished):
    run = runner.load(omniglot.EXPERIMENT, finished[0])
    with pytest.raises(ConfigError, match="needs --support=FOLDER and --classify=FOLDER"):
        adapt.adapt_to_images(run, "", "", 1)


def test_a_folder_of_ones_own_is_trained_on(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    for split, classes in {"train": 4, "val": 3, "test": 3}.items():
        for c in range(classes):
            (tmp_path / "mine" / split / f"{split}{c}").mkdir(parents=True)
            for i in range(4):
                array = rng.integers(0, 255, (15, 15, 3), dtype=np.uint8)
                Image.fromarray(array).save(tmp_path / "mine" / split / f"{split}{c}" / f"{i}.jpg")
    (tmp_path / "mine" / "notes.txt").touch()
    monkeypatch.setenv("MAML_JAX_DATA", str(tmp_path / "mine"))
    monkeypatch.setenv("MAML_JAX_CACHE", str(tmp_path / "cache"))
    small = {
        **SMALL,
        "dataset": "folder",
        "methods": ("maml",),
        "eval_queries": (0,),
        "protocols": ("transductive",),
        "meta_steps": 10,
        "train_queries": 1,
        "pooling": "max",
    }
    found = runner.run(mini_imagenet.EXPERIMENT, tmp_path / "run", mini_imagenet.Config(**small))
    assert {row["setting"] for row in found["rows"]} == {"3-way 1-shot, own images"}
    printed = capsys.readouterr()
    block = printed.out.index(
        f"data: folder from {tmp_path / 'mine'}, read as 12x12 pixels, colour"
    )
    train = printed.out.index("\n  train: 4 classes of 4 images (files: colour, 15x15 pixels)\n")
    assert block < train < printed.out.index("step")
    assert "note: skipped in" in printed.err
    assert "notes.txt" in printed.err
    assert "paper" not in tables.group_table([found]).splitlines()[0]
    with pytest.raises(ConfigError, match=r"an episode takes 5 examples .*0 \(4\).*--num_shots"):
        data.load(mini_imagenet.Config(**{**small, "num_shots": 4}))
    with pytest.raises(ConfigError, match="4-way episodes need 4 or more"):
        data.load(mini_imagenet.Config(**{**small, "num_ways": 4}))


def test_missing_data_is_a_sentence_and_claims_no_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("MAML_JAX_DATA", str(tmp_path))
    with pytest.raises(ConfigError, match="found no MiniImagenet in"):
        runner.run(mini_imagenet.EXPERIMENT, tmp_path / "run", mini_imagenet.Config())
    with pytest.raises(ConfigError, match="found no MiniImagenet in"):  # not: another config
        runner.run(mini_imagenet.EXPERIMENT, tmp_path / "run", mini_imagenet.Config(num_shots=5))


def test_what_needs_validation_classes_is_refused_before_training():
    images = data.load(omniglot.Config(**SMALL))._replace(validation=None)
    with pytest.raises(ConfigError, match=r"--methods=pretrained,random: .* has none"):
        stages.make_stages(omniglot.Config(**SMALL), 0, images)
    alone = omniglot.Config(**{**SMALL, "methods": ("maml",)})
    assert len(stages.make_stages(alone, 0, images)) == 1


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (omniglot.Config, (1, 32, 1, 3, 2.0, 0.0)),
        (lambda: omniglot.Config(num_shots=5), (5, 32, 1, 3, 2.0, 0.0)),
        (lambda: omniglot.Config(num_ways=20), (1, 16, 5, 5, 2.0, 0.0)),
        (lambda: omniglot.Config(num_ways=20, inner_steps=0), (1, 16, 0, 5, 2.0, 0.0)),
        (mini_imagenet.Config, (15, 4, 5, 10, 0.05, 10.0)),
        (lambda: mini_imagenet.Config(num_shots=5), (15, 4, 5, 10, 0.05, 10.0)),
    ],
)
def test_each_cell_has_the_papers_settings(make, expected):
    config = make()
    found = (
        config.train_queries,
        config.num_tasks,
        config.inner_steps,
        config.report_steps,
        config.inner_lr,
        config.clip,
    )
    assert found == expected
    assert (config.meta_steps, config.meta_lr) == (60_000, 1e-3)


def test_tasks_may_go_in_chunks():
    assert omniglot.Config(dataset="synthetic", task_batching="8").batching == 8
    assert omniglot.Config(dataset="synthetic", task_batching="vmap").batching == "vmap"
    with pytest.raises(ConfigError, match="scan, vmap or a number of tasks; received 'some'"):
        omniglot.Config(dataset="synthetic", task_batching="some")


def test_the_mode_follows_the_number_of_inner_steps():
    assert omniglot.Config().mode == "reverse"
    assert omniglot.Config(num_ways=20).mode == "mixed"
    assert omniglot.Config(meta_gradient="remat").mode == "remat"
    assert omniglot.Config(first_order=True).mode == "first_order"


def test_clipping_is_on_the_originals_scale():
    """The original clips at 10 a loss that is 75 (1-shot) or 15 (5-shot) times the mean."""
    for shots, scale in ((1, 75), (5, 15)):
        optimizer = stages._optimizer(mini_imagenet.Config(num_shots=shots))
        params = {"w": np.zeros(1, np.float32)}
        state = optimizer.init(params)
        # Adam's first moment is a tenth of the first gradient that reaches it.
        _, state = optimizer.update({"w": np.full(1, 1e3, np.float32)}, state, params)
        np.testing.assert_allclose(state[1][0].mu["w"], 0.1 * 10 / scale, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_ways": 1}, "--num_ways must be 2 or more"),
        ({"eval_steps": 2}, "--eval_steps must be at least --report_steps=3; received 2"),
        ({"channels": 2}, "--channels must be 1 or 3"),
        ({"channels": 3}, "--channels is 1 with --dataset=omniglot; received 3"),
        ({"invert": False}, "--invert is True with --dataset=omniglot; received False"),
        ({"rotations": "flip"}, "--rotations must be one of none, augment, classes"),
        ({"methods": ("maml", "svm")}, "--methods must be one of"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        omniglot.Config(**fields)


def test_a_network_that_does_not_fit_is_a_sentence():
    with pytest.raises(ConfigError, match="too small for 4 times 2x2"):
        make_network(omniglot.Config(pooling="max", image_size=12))


def test_a_configuration_survives_its_json(finished):
    stored = json.loads((finished[0] / "config.json").read_text())["config"]
    assert stored["inner_steps"] == 1  # worked out, not null
    assert runner.load(omniglot.EXPERIMENT, finished[0]).settings == omniglot.Config(**SMALL)


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
    from experiments.few_shot.sheet import contact_sheet

    images = np.zeros((3, 5, 5, 3), np.uint8)
    path = tmp_path / "sheet.png"
    names = [f"a class with ${i}$ and quite a long name" for i in range(3)]
    contact_sheet(path, names, np.arange(3), images, ["x.png"] * 3, images, np.eye(3))
    with Image.open(io.BytesIO(path.read_bytes())) as sheet:
        assert sheet.format == "PNG"
