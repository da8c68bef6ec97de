"""Image data sets: real Omniglot if available, and generated archives and folders."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tensorflow_datasets", reason="the extra `data` is not installed")

from maml_jax.classification import datasets
from maml_jax.classification.datasets import (
    DataError,
    Reading,
    builder,
    check_episodes,
    folder,
    images,
    listing,
    load_folder,
    load_mini_imagenet,
    load_omniglot,
    mini_imagenet,
    omniglot,
    synthetic_glyphs,
)

DATA = Path(os.environ.get("MAML_JAX_DATA", "~/.local/share/maml_jax")).expanduser()
HTML = b"<!DOCTYPE html><html>sign in</html>"
pytestmark = pytest.mark.filterwarnings(  # the pictures in this file have one value
    "ignore::maml_jax.classification.datasets.DataWarning"
)


def encoded(array, kind="png"):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind)
    return file.getvalue()


def picture(value, side=8, channels=3):
    shape = (side, side, channels) if channels > 1 else (side, side)
    return np.full(shape, value, np.uint8)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


# Omniglot


@pytest.fixture(scope="module")
def archives(cache):
    """Reads the drawings of the real archives once, without a cache: writing it takes a minute."""
    if not (DATA / "omniglot" / "images_background.zip").exists():
        pytest.skip(f"no Omniglot archives in {DATA / 'omniglot'} (set MAML_JAX_DATA)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "PACKAGES", ("no_such_package",))
        reading = Reading(28, 1, invert=True)
        return builder.load(omniglot._source(DATA), reading, cache)


@pytest.fixture
def real(archives, monkeypatch):
    monkeypatch.setattr(builder, "load", lambda *args: archives)


def test_real_omniglot_is_complete(real, cache):
    splits = load_omniglot(DATA, cache)
    assert {name: s.images.shape for name, s in splits.items()} == {
        "train": (1100, 20, 28, 28, 1),
        "val": (100, 20, 28, 28, 1),
        "test": (423, 20, 28, 28, 1),
    }
    names = [name for s in splits.values() for name in s.names]
    assert len(set(names)) == 1623
    for classes in splits.values():
        assert np.all(classes.counts == 20)
        ink = classes.images.mean() / 255
        assert 0.05 < ink < 0.15  # ink is 1 and covers little
        assert np.all(classes.images.max(axis=(2, 3, 4)) > 100)  # no drawing is empty


def test_real_omniglot_splits(real, cache):
    first, other = (load_omniglot(DATA, cache, split_seed=seed) for seed in (0, 1))
    assert other["test"].names != first["test"].names
    paper = load_omniglot(DATA, cache, splitting="paper")
    assert {n: len(s.names) for n, s in paper.items()} == {"train": 1200, "test": 423}
    alphabets = load_omniglot(DATA, cache, splitting="background")
    assert {n: len(s.names) for n, s in alphabets.items()} == {"train": 964, "test": 659}
    train, test = ({n.split("/")[0] for n in alphabets[s].names} for s in ("train", "test"))
    assert (len(train), len(test)) == (30, 20)
    assert not train & test


@pytest.fixture
def tiny_omniglot(monkeypatch):
    """Makes an Omniglot of 2 + 1 characters with 3 drawings each."""
    monkeypatch.setattr(omniglot, "CHARACTERS", {"images_background": 2, "images_evaluation": 1})
    monkeypatch.setattr(omniglot, "DRAWINGS", 3)


def write_archives(
    where,
    characters=(2, 1),
    drawings=3,
    side=105,
    leave_out=None,
    content=None,
    alphabets=("Alphabet", "Alphabet"),
):
    where.mkdir(exist_ok=True)
    for name, count, alphabet in zip(omniglot.ARCHIVES, characters, alphabets, strict=True):
        if name == leave_out:
            continue
        with zipfile.ZipFile(where / name, "w") as archive:
            for c in range(count):
                for d in range(drawings):
                    data = content or encoded(picture(255 * (d == 0), side, 1))
                    path = f"{name[:-4]}/{alphabet}/character{c + 1:02d}/0001_{d:02d}.png"
                    archive.writestr(path, data)


def test_an_archive_of_the_official_layout_is_read(tiny_omniglot, tmp_path, cache, monkeypatch):
    write_archives(tmp_path / "omniglot")
    result = load_omniglot(tmp_path, cache, splitting="background", image_size=5)
    monkeypatch.setattr(omniglot, "_files", None)  # a second start reads the cache only
    again = load_omniglot(tmp_path, cache, splitting="background", image_size=5)
    np.testing.assert_array_equal(again["test"].images, result["test"].images)
    assert result["train"].images.shape == (2, 3, 5, 5, 1)
    assert result["train"].names == ("Alphabet/character01", "Alphabet/character02")
    assert np.all(result["train"].images[:, 0] == 0)  # white paper
    assert np.all(result["train"].images[:, 1:] == 255)  # black ink


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"characters": (1, 1)}, r"images_background.zip must hold 2 characters .* found 1"),
        ({"drawings": 2}, "Alphabet/character01 must have 3 drawings; found 2"),
        ({"side": 28}, "0001_00.png must be 105x105 pixels; found 28x28"),
        ({"content": b"no image"}, "0001_00.png is not an image"),
        ({"leave_out": "images_evaluation.zip"}, "but not .*images_evaluation.zip: Omniglot needs"),
    ],
)
def test_an_archive_that_is_not_omniglot_is_refused(tiny_omniglot, tmp_path, cache, made, message):
    write_archives(tmp_path / "omniglot", **made)
    with pytest.raises(DataError, match=message):
        load_omniglot(tmp_path, cache)


def test_a_web_page_instead_of_an_archive_is_named(tmp_path, cache):
    for name in omniglot.ARCHIVES:
        (tmp_path / name).write_bytes(HTML)
    with pytest.raises(DataError, match=r"images_background.zip is an HTML page"):
        load_omniglot(tmp_path, cache)
    (tmp_path / omniglot.ARCHIVES[0]).write_bytes(b"PK, but cut off")
    with pytest.raises(DataError, match="not a zip archive"):
        load_omniglot(tmp_path, cache)


def test_missing_archives_without_a_network_are_explained(tmp_path, cache, monkeypatch):
    def fail(urls):
        raise OSError("no route to host")

    source = omniglot._source(tmp_path)
    assert source.fingerprint == "official"
    with pytest.raises(DataError, match=r"are not in .*no route to host.* Put them there by hand"):
        source.files(fail)


def test_a_downloaded_web_page_or_damaged_archive_is_named(tiny_omniglot, tmp_path):
    write_archives(tmp_path)
    paths = [tmp_path / name for name in omniglot.ARCHIVES]
    whole = paths[0].read_bytes()
    body = whole.index(b"PNG")
    paths[0].write_bytes(whole[:body] + b"XXXX" + whole[body + 4 :])
    with pytest.raises(DataError, match=r"0001_00.png is damaged"):
        list(omniglot._files(paths)["images_background"])
    paths[0].write_bytes(HTML)
    with pytest.raises(DataError, match="is an HTML page"):
        omniglot._files(paths)


def test_downloads_leave_whole_files_or_none(tmp_path):
    source = tmp_path / "there" / "a.zip"
    source.parent.mkdir()
    source.write_bytes(b"content")
    into = tmp_path / "into"
    (result,) = builder.download(into, [source.as_uri()])
    assert result == into / "a.zip"
    assert result.read_bytes() == b"content"
    with pytest.raises(OSError, match="No such file"):
        builder.download(into, [source.with_name("b.zip").as_uri()])
    assert not (into / "b.zip").exists()


def test_splits_by_lists_of_characters(tiny_omniglot, tmp_path, cache):
    write_archives(tmp_path, alphabets=("Greek", "Runes"))
    lists = tmp_path / "vinyals"
    with pytest.raises(DataError, match=r"train.txt, val.txt, test.txt are in neither"):
        load_omniglot(tmp_path, cache, splitting="vinyals")
    lists.mkdir()
    for name, lines in {  # a split takes characters of both archives
        "train": "Runes/character01/rot000\nRunes/character01/rot090\n",
        "val": "Greek/character01",
        "test": "Greek/character02/rot000\n",
    }.items():
        (lists / f"{name}.txt").write_text(lines)
    result = load_omniglot(tmp_path, cache, splitting="vinyals")
    assert {name: split.names for name, split in result.items()} == {
        "train": ("Runes/character01",),
        "val": ("Greek/character01",),
        "test": ("Greek/character02",),
    }
    known = {"Greek/character01", "Greek/character02", "Runes/character01"}
    with pytest.raises(DataError, match="'Runes/character01', which is not in Omniglot"):
        omniglot.read_lists(tmp_path, known - {"Runes/character01"})
    (lists / "val.txt").write_text("Runes/character01")
    with pytest.raises(DataError, match=r"is in train.txt and in val.txt"):
        omniglot.read_lists(tmp_path, known)


# MiniImagenet


@pytest.fixture
def tiny_mini_imagenet(monkeypatch):
    """Makes a MiniImagenet of 2, 1 and 1 classes of 3 images."""
    monkeypatch.setattr(mini_imagenet, "CLASSES", {"train": 2, "val": 1, "test": 1})
    monkeypatch.setattr(mini_imagenet, "IMAGES", 3)


MINI = {"train": ["n01", "n02"], "val": ["n03"], "test": ["n04"]}


def mini_classes():
    return MINI


def pixels(class_name, i):
    return picture(int(class_name[1:]) * 20 + i, 84)


def write_class_folders(where):
    for split, names in mini_classes().items():
        for name in names:
            (where / split / name).mkdir(parents=True)
            for i in range(3):
                (where / split / name / f"{name}{i:08d}.png").write_bytes(encoded(pixels(name, i)))


def write_image_lists(where):
    (where / "images").mkdir(parents=True)
    for split, names in mini_classes().items():
        lines = ["filename,label"]
        for name in names:
            for i in range(3):
                file = f"{name}{i:08d}.png"
                (where / "images" / file).write_bytes(encoded(pixels(name, i)))
                lines.append(f"{file},{name}")
        (where / f"{split}.csv").write_text("\n".join(lines) + "\n")


def write_pickles(where, **changes):
    where.mkdir(parents=True, exist_ok=True)
    for split, names in mini_classes().items():
        content = {
            "image_data": np.stack([pixels(name, i) for name in names for i in range(3)]),
            "class_dict": OrderedDict(
                (name, list(range(3 * j, 3 * j + 3))) for j, name in enumerate(names)
            ),
        }
        (where / f"mini-imagenet-cache-{split}.pkl").write_bytes(
            pickle.dumps({**content, **changes}, protocol=2)
        )


@pytest.mark.parametrize("write", [write_class_folders, write_image_lists, write_pickles])
def test_mini_imagenet_in_each_layout(tiny_mini_imagenet, tmp_path, cache, write):
    write(tmp_path / "mini_imagenet")
    result = load_mini_imagenet(tmp_path, cache)
    assert {n: (s.images.shape, s.names) for n, s in result.items()} == {
        "train": ((2, 3, 84, 84, 3), ("n01", "n02")),
        "val": ((1, 3, 84, 84, 3), ("n03",)),
        "test": ((1, 3, 84, 84, 3), ("n04",)),
    }
    np.testing.assert_array_equal(result["train"].images[1, 2], pixels("n02", 2))


def test_wrong_counts_of_mini_imagenet_are_named(tiny_mini_imagenet, tmp_path, cache):
    write_class_folders(tmp_path)
    (tmp_path / "train" / "n01" / "n0100000000.png").unlink()
    with pytest.raises(DataError, match=r"class n01 in split 'train' .* 3 images; found 2"):
        load_mini_imagenet(tmp_path, cache)
    (tmp_path / "val" / "n99").mkdir()
    (tmp_path / "val" / "n99" / "a.png").write_bytes(encoded(picture(0)))
    (tmp_path / "train" / "n01" / "n0100000000.png").write_bytes(encoded(picture(0)))
    with pytest.raises(DataError, match=r"split 'val' of .* must have 1 classes; found 2"):
        load_mini_imagenet(tmp_path, cache)


def test_a_class_in_two_splits_is_refused(tiny_mini_imagenet, monkeypatch, tmp_path, cache):
    named = r"1 class\(es\) of split 'val' are in split 'train' too: n01"
    twice = r"n0100000000.png \(split 'val', class n01\) are one file"
    monkeypatch.setitem(globals(), "mini_classes", lambda: {**MINI, "val": ["n01"]})
    for write in (write_class_folders, write_image_lists, write_pickles):
        write(tmp_path / write.__name__)
        with pytest.raises(DataError, match=twice if write is write_image_lists else named):
            load_mini_imagenet(tmp_path / write.__name__, cache)


def test_other_labels_of_the_same_images_are_read_again(tiny_mini_imagenet, tmp_path, cache):
    write_image_lists(tmp_path)
    before = load_mini_imagenet(tmp_path, cache)["train"].images
    lists = tmp_path / "train.csv"
    swapped = lists.read_text().replace(",n01", ",n00").replace(",n02", ",n01")
    lists.write_text(swapped.replace(",n00", ",n02"))
    after = load_mini_imagenet(tmp_path, cache)["train"].images
    np.testing.assert_array_equal(after, before[::-1])


def test_inconsistent_lists_are_named(tiny_mini_imagenet, tmp_path, cache):
    write_image_lists(tmp_path)
    (tmp_path / "images" / "n0300000001.png").unlink()
    with pytest.raises(DataError, match=r"val\.csv names 1 images .*n0300000001\.png"):
        load_mini_imagenet(tmp_path, cache)
    (tmp_path / "train.csv").write_text("file;label\n")
    with pytest.raises(DataError, match="columns filename and label; found"):
        load_mini_imagenet(tmp_path, cache)
    (tmp_path / "train.csv").write_bytes(HTML)
    with pytest.raises(DataError, match=r"train\.csv is an HTML page"):
        load_mini_imagenet(tmp_path, cache)


@pytest.mark.parametrize(
    ("split", "line", "message"),
    [
        (
            "train",
            "n0100000000.png,n02",
            r"'train', class n01\) and .*n0100000000.png .*class n02\) are one",
        ),
        (
            "val",
            "n0100000000.png,n03",
            r"'train', class n01\) and .* \(split 'val', class n03\) are one",
        ),
    ],
)
def test_an_image_in_two_classes_is_named(
    tiny_mini_imagenet, tmp_path, cache, split, line, message
):
    write_image_lists(tmp_path)
    lists = tmp_path / f"{split}.csv"
    lists.write_text("\n".join([*lists.read_text().splitlines()[:-1], line]) + "\n")
    with pytest.raises(DataError, match=message):
        load_mini_imagenet(tmp_path, cache)


class Evil:
    def __reduce__(self):
        return os.system, ("echo this must not run",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_dict": Evil()}, "holds posix.system; only arrays and dictionaries are read"),
        (
            {"image_data": np.zeros((3, 32, 32, 3), np.uint8)},
            r"found an array, uint8 \(3, 32, 32, 3\)",
        ),
        ({"image_data": np.zeros((3, 84, 84, 3))}, r"found an array, float64 \(3, 84, 84, 3\)"),
        ({"class_dict": []}, "a dictionary of lists of indices; found .* and a list"),
        ({"class_dict": {"n01": 0, "n02": 1}}, "a dictionary of lists of indices"),
        ({"class_dict": {"n01": [0, 1, 2], "n02": [3, 4, 6]}}, "n02 names image 6; there are 6"),
        ({"class_dict": {"n01": [0, 1, 2], "n02": [3, 4, 2]}}, "image 2 is in classes n01 and n02"),
    ],
)
def test_a_pickle_with_other_objects_is_refused(
    tiny_mini_imagenet, tmp_path, cache, changes, message
):
    write_pickles(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        load_mini_imagenet(tmp_path, cache)


def test_a_file_that_is_no_pickle_is_named(tiny_mini_imagenet, tmp_path, cache):
    write_pickles(tmp_path)
    path = tmp_path / "mini-imagenet-cache-train.pkl"
    for content, message in (
        (HTML, "is an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"\x80\x02}", "not a pickle, or a broken one"),
        (pickle.dumps([1, 2]), "dictionary with image_data and class_dict; found a list"),
        (b"", "is an empty file"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            mini_imagenet.read_pickle(path)


def test_missing_mini_imagenet_names_the_layouts(tmp_path, cache):
    with pytest.raises(DataError, match=r"expected class folders .* mini-imagenet-cache"):
        load_mini_imagenet(tmp_path, cache)


# A user's folder


def write_classes(where, counts, kinds=("png",)):
    for name, count in counts.items():
        (where / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            kind = kinds[i % len(kinds)]
            (where / name / f"{i:03d}.{kind}").write_bytes(encoded(picture(40 * i + 20), kind))


def test_a_folder_of_many_formats_and_unequal_classes(tmp_path, cache):
    write_classes(tmp_path / "train", {"a": 4, "b": 2}, ("png", "jpeg", "bmp", "webp"))
    write_classes(tmp_path / "test", {"c": 3})
    (tmp_path / "train" / "a" / "notes.txt").write_text("not an image, and not taken for one")
    result = load_folder(tmp_path, cache, Reading(6, 3))
    assert set(result) == {"train", "test"}
    assert result["train"].images.shape == (2, 4, 6, 6, 3)
    np.testing.assert_array_equal(result["train"].counts, [4, 2])
    np.testing.assert_allclose(result["train"].images[0, :, 3, 3, 0], [20, 60, 100, 140], atol=2)
    assert np.all(result["train"].images[1, 2:] == 0)


def test_a_folder_may_be_named_by_text(tmp_path, cache):
    write_classes(tmp_path / "train", {"a": 1})
    write_classes(tmp_path / "test", {"b": 1})
    parts = load_folder(str(tmp_path), str(cache), Reading(6, 3))
    assert {split: part.names for split, part in parts.items()} == {"train": ("a",), "test": ("b",)}
    assert len(listing.list_below(str(tmp_path))) == 2


def test_a_folder_is_split_by_fractions(tmp_path, cache):
    write_classes(tmp_path, {f"c{i}": 1 for i in range(10)})
    result = load_folder(tmp_path, cache, Reading(4, 1), fractions=(0.5, 0.2, 0.3))
    assert {n: len(s.names) for n, s in result.items()} == {"train": 5, "val": 2, "test": 3}
    assert len({name for s in result.values() for name in s.names}) == 10
    again = load_folder(tmp_path, cache, Reading(4, 1), fractions=(0.5, 0.2, 0.3))
    assert again["test"].names == result["test"].names
    assert set(load_folder(tmp_path, cache, Reading(4, 1), fractions=(0.5, 0, 0.5))) == {
        "train",
        "test",
    }


def test_a_changed_file_is_read_again(tmp_path, cache):
    write_classes(tmp_path / "train", {"a": 1})
    write_classes(tmp_path / "test", {"b": 1})
    first = load_folder(tmp_path, cache, Reading(4, 1))["train"].images
    (tmp_path / "train" / "a" / "000.png").write_bytes(encoded(picture(200, 30)))
    second = load_folder(tmp_path, cache, Reading(4, 1))["train"].images
    assert first.flat[0] == 20
    assert second.flat[0] == 200


def test_all_broken_images_are_named_at_once(tmp_path, cache):
    write_classes(tmp_path / "train", {"a": 3})
    write_classes(tmp_path / "test", {"b": 1})
    whole = (tmp_path / "train" / "a" / "001.png").read_bytes()
    (tmp_path / "train" / "a" / "001.png").write_bytes(whole[:40])
    (tmp_path / "train" / "a" / "002.png").write_bytes(HTML)
    with pytest.raises(
        DataError, match=r"2 file\(s\).* a/001.png is a broken .* a/002.png is an H"
    ):
        load_folder(tmp_path, cache, Reading(4, 1))


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda where: None, "is not a folder"),
        (lambda where: where.mkdir(), "must hold a folder for each class; found none"),
        (lambda where: (where / "a").mkdir(parents=True), "folder .*a has no images"),
        (lambda where: write_classes(where / "train", {"a": 1}), "but no folder test"),
        (lambda where: write_classes(where, {"a": 1}), "1 classes are too few"),
    ],
)
def test_an_unusable_folder_is_named(tmp_path, cache, prepare, message):
    where = tmp_path / "mine"
    prepare(where)
    with pytest.raises(DataError, match=message):
        load_folder(where, cache, Reading(4, 1))


def test_folders_in_a_class_are_not_merged(tmp_path, cache):
    write_classes(tmp_path / "train" / "a", {"x": 1, "y": 2})
    write_classes(tmp_path / "test", {"b": 1})
    with pytest.raises(DataError, match=r"train/a holds folders: x, y\. .* Layouts: DIR/\{train"):
        load_folder(tmp_path, cache, Reading(4, 1))


def test_a_folder_with_a_class_in_two_splits_is_refused(tmp_path, cache):
    for split in ("train", "test"):
        write_classes(tmp_path / split, {"a": 1, split: 1})
    with pytest.raises(DataError, match="of split 'test' are in split 'train' too: a"):
        load_folder(tmp_path, cache, Reading(4, 1))


def test_fractions_must_sum_to_one():
    with pytest.raises(DataError, match="add up to 1"):
        folder.split_classes(synthetic_glyphs(4, 2, 8), (0.5, 0.2, 0.2), 0)


def test_too_few_examples_or_classes_are_named_before_training():
    glyphs = synthetic_glyphs(4, 3, 8)
    check_episodes({"train": glyphs}, 4, {"train": 3})
    with pytest.raises(DataError, match=r"4 examples of a class.*synthetic_0_0000 \(3\)"):
        check_episodes({"train": glyphs}, 4, {"train": 4})
    with pytest.raises(DataError, match=r"'train' has 4 classes .* 5-way"):
        check_episodes({"train": glyphs}, 5, {"train": 3})
    with pytest.raises(DataError) as refused:  # both splits and both problems
        check_episodes({"train": glyphs.take([1, 0]), "val": glyphs}, 3, {"train": 4, "val": 4})
    assert str(refused.value) == (
        "split 'train' has 2 classes (synthetic_0_0000, synthetic_0_0001); 3-way episodes need 3 "
        "or more; split 'train': an episode takes 4 examples of a class (shots and queries), and "
        "these have fewer: synthetic_0_0000 (3), synthetic_0_0001 (3); split 'val': an episode "
        "takes 4 examples of a class (shots and queries), and these have fewer: synthetic_0_0000 "
        "(3), synthetic_0_0001 (3), synthetic_0_0002 (3), synthetic_0_0003 (3). Use num_ways=2 or "
        "less, and num_shots and num_queries that add up to 3 or less; or add images."
    )


# Files


def test_every_kind_of_image_is_converted_to_one_form():
    transparent = np.zeros((4, 4, 4), np.uint8)  # transparent black is white paper
    assert Reading(4, 1).decode(encoded(transparent)).min() == 255
    deep = np.full((4, 4), 65535, np.uint16)
    assert Reading(4, 1).decode(encoded(deep)).min() == 255
    assert Reading(4, 1).decode(encoded(deep // 257)).max() == 0  # dark, in the same range
    assert Reading(2, 3).decode(encoded(picture(7, 9, 1))).tolist() == [[[7] * 3] * 2] * 2
    assert Reading(4, 1, invert=True).decode(encoded(picture(255))).max() == 0
    one_bit = io.BytesIO()
    Image.fromarray(picture(255, 4, 1)).convert("1").save(one_bit, "png")
    assert Reading(4, 1).decode(one_bit.getvalue()).min() == 255


def test_an_image_with_a_huge_declared_size_or_no_range_is_broken(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match="a broken image"):
        Reading(4, 1).decode(encoded(picture(0, 9)))
    monkeypatch.undo()
    with pytest.raises(DataError, match="floating-point pixels"):
        Reading(4, 1).decode(encoded(np.ones((4, 4), np.float32), "tiff"))


@pytest.mark.parametrize("wrong", [{"size": 0}, {"channels": 2}, {"resample": "best"}])
def test_invalid_readings_are_refused(wrong):
    with pytest.raises(ValueError, match=r"a Reading must have|size must be 1 or more"):
        Reading(**{"size": 8, **wrong})


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Reading(28.0), "size"),
        (lambda: Reading(28, 3.0), "channels"),
        (lambda: synthetic_glyphs(3.0, 2), "num_classes"),
        (lambda: synthetic_glyphs(3, 2, 8.0), "image_size"),
    ],
)
def test_sizes_of_images_are_integers(make, name):
    with pytest.raises(TypeError, match=f"{name} must be a Python int.*of type float"):
        make()


def test_pillow_alone_reads_images_without_a_cache(tmp_path, cache, monkeypatch):
    write_class_folders(tmp_path / "mine")
    kept = load_folder(tmp_path / "mine", cache, Reading(8))
    monkeypatch.setattr(builder, "PACKAGES", ("no_such_package",))
    assert builder.LONG_S > 1
    monkeypatch.setattr(builder, "LONG_S", 0.0)
    advice = r"not cached.*no_such_package \(pip install 'maml-jax\[data\]'\)"
    with pytest.warns(datasets.DataWarning, match=advice):
        read = load_folder(tmp_path / "mine", tmp_path / "cache", Reading(8))
    assert not (tmp_path / "cache").exists()
    assert read.keys() == kept.keys()
    for split, classes in read.items():
        np.testing.assert_array_equal(classes.images, kept[split].images)
        assert classes.names == kept[split].names
        assert classes.files == kept[split].files


def test_the_usual_size_of_a_folders_images(tmp_path):
    for name, sizes in {"a": [(30, 50), (40, 31)], "b": [(32, 99), (500, 400)]}.items():
        (tmp_path / name).mkdir()
        for i, size in enumerate(sizes):
            Image.new("L", size).save(tmp_path / name / f"{i}.png")
        (tmp_path / name / "broken.png").write_bytes(b"no image")
    assert folder.usual_size(tmp_path) == 31  # the median of the shorter sides 30, 31, 32 and 400
    assert folder.usual_size(tmp_path, at_most=1) == 30
    (tmp_path / "c").mkdir()
    with pytest.raises(DataError, match="has no images"):
        folder.usual_size(tmp_path)


def test_tensorflow_is_not_imported():
    import subprocess
    import sys

    code = (
        "import sys, pathlib, tempfile\n"
        "from maml_jax.classification import datasets\n"
        "from maml_jax.classification.datasets import builder, Reading\n"
        "import io; from PIL import Image\n"
        "f = io.BytesIO(); Image.new('L', (4, 4)).save(f, 'png')\n"
        "source = builder.Source('one', 'x', lambda _: {'train': [('a', 'b', f.getvalue())]})\n"
        "found = builder.load(source, Reading(4, 1), pathlib.Path(tempfile.mkdtemp()))\n"
        "assert found['train'].images.shape == (1, 1, 4, 4, 1)\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


# Synthetic


def test_glyphs_of_a_class_are_alike_and_classes_differ():
    glyphs = synthetic_glyphs(20, 10, 28, seed=3)
    assert glyphs.images.shape == (20, 10, 28, 28, 1)
    assert all("synthetic" in name for name in glyphs.names)
    flat = glyphs.images.reshape(20, 10, -1).astype(float)
    centres = flat.mean(axis=1)
    within = np.linalg.norm(flat - centres[:, None], axis=-1).mean()
    between = np.linalg.norm(centres[:, None] - centres[None], axis=-1)[np.triu_indices(20, 1)]
    assert between.mean() > 0.8 * within
    np.testing.assert_array_equal(synthetic_glyphs(20, 10, 28, seed=3).images, glyphs.images)
    assert np.any(synthetic_glyphs(20, 10, 28, seed=4).images != glyphs.images)
    assert synthetic_glyphs(2, 2, 8, 3).images.shape == (2, 2, 8, 8, 3)
    assert images.ImageClasses(*glyphs).take([3]).names == (glyphs.names[3],)
    assert datasets.synthetic_glyphs is synthetic_glyphs
