"""Folders and lists of images: what is read, refused or skipped is always reported."""

import os

import pytest
from PIL import Image

pytest.importorskip("tensorflow_datasets", reason="the extra `data` is not installed")

import made_files
from made_files import encoded, noise, notes, read_folder, write

from maml_jax.classification.datasets import (
    DataError,
    Reading,
    describe,
    load_mini_imagenet,
    mini_imagenet,
)

cache = made_files.cache
splits = made_files.splits


@pytest.fixture
def lists(tmp_path, monkeypatch):
    """Writes a MiniImagenet as lists, each split with one class of two images."""
    monkeypatch.setattr(mini_imagenet, "CLASSES", dict.fromkeys(("train", "val", "test"), 1))
    monkeypatch.setattr(mini_imagenet, "IMAGES", 2)
    where = tmp_path / "mini"
    for split in mini_imagenet.CLASSES:
        for i in range(2):
            write(where / "images" / f"{split}{i}.png")
        write_list(where, split, f"{split}0.png,{split}", f"{split}1.png,{split}")
    return where


def write_list(where, split, *lines, header="filename,label"):
    write(where / f"{split}.csv", "\n".join([header, *lines, ""]).encode())


@pytest.mark.parametrize("spelling", ["./train0.png", "test/../train0.png", ".//train0.png"])
def test_two_spellings_of_a_path_are_one_image(lists, cache, spelling):
    write_list(lists, "test", f"{spelling},test", "test1.png,test")
    with pytest.raises(DataError, match=r"are one file|must be a path below"):
        notes(lambda: load_mini_imagenet(lists, cache))


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_links_to_one_image_are_one_image(lists, cache, link):
    (lists / "images" / "test0.png").unlink()
    link(lists / "images" / "train0.png", lists / "images" / "test0.png")
    with pytest.raises(DataError, match=r"train0\.png .*and .*test0\.png .*are one file"):
        load_mini_imagenet(lists, cache)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("../secret.png,test", r"'\.\./secret\.png' must be a path below .*images"),
        ("/etc/secret.png,test", "'/etc/secret.png' must be a path below"),
        ("a/../../secret.png,test", "must be a path below"),
        ("..\\secret.png,test", "must be a path below"),
        ("C:secret.png,test", "must be a path below"),
        ("test0.png,test,more", r"row 2 must have 2 cells, none empty .* received \['test0.png'"),
        ("test0.png", "row 2 must have 2 cells"),
        ("test0.png,", "row 2 must have 2 cells, none empty"),
        (",test", "none empty"),
        ("test0.png, test", "none with space at its ends"),
        (".,test", "must be a path below"),
        ("test9.png,test", "names 1 images that are missing"),
        ('"test0.png,test', "is not a CSV text file"),
        ("te\0st.png,test", "names 1 images|is not a CSV text file"),
    ],
)
def test_lines_of_a_list_are_checked(lists, cache, line, message):
    write(lists / "secret.png")
    write_list(lists, "test", line, "test1.png,test")
    with pytest.raises(DataError, match=rf"test\.csv.*{message}"):
        load_mini_imagenet(lists, cache)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"filename,filename,label\na,b,c\n", "has a column twice"),
        (b"filename,label\n\xff.png,a\n", "is not a CSV text file in UTF-8"),
        (b"\n", "must have the columns"),
        (b"file,label\n", "must have the columns filename and label"),
    ],
)
def test_invalid_lists(lists, cache, data, message):
    write(lists / "train.csv", data)
    with pytest.raises(DataError, match=rf"train\.csv.*{message}"):
        load_mini_imagenet(lists, cache)


def test_images_in_no_list_and_other_layouts_are_named(lists, cache):
    write(lists / "images" / "more.png")
    for split in mini_imagenet.CLASSES:
        (lists / f"mini-imagenet-cache-{split}.pkl").write_bytes(b"")
    _, text = notes(lambda: load_mini_imagenet(lists, cache, 4))
    assert "(in no list): more.png" in text
    assert "several layouts: read lists of images, skipped pickles" in text


def test_images_in_no_list_are_named_in_folders_below_too(lists, cache):
    (lists / "images" / "of_train").mkdir()
    for i in range(2):
        (lists / "images" / f"train{i}.png").rename(lists / "images" / "of_train" / f"{i}.png")
    write_list(lists, "train", "of_train/0.png,train", "of_train/1.png,train")
    write(lists / "images" / "of_train" / "more.png")
    write(lists / "images" / "unlisted" / "0.png")
    _, text = notes(lambda: load_mini_imagenet(lists, cache, 4))
    assert f"skipped in {lists / 'images'} (in no list): unlisted" in text
    assert f"skipped in {lists / 'images' / 'of_train'} (in no list): more.png" in text


def test_other_files_beside_splits_of_mini_imagenet_are_named(splits, cache, monkeypatch):
    monkeypatch.setattr(mini_imagenet, "CLASSES", dict.fromkeys(("train", "val", "test"), 1))
    monkeypatch.setattr(mini_imagenet, "IMAGES", 2)
    for name in ("val/of_val/0.png", "val/of_val/1.png", "unlabelled/0.png", "notes.txt"):
        write(splits / name)
    _, text = notes(lambda: load_mini_imagenet(splits, cache, 4))
    assert f"skipped in {splits} (not splits): unlabelled, notes.txt" in text


@pytest.mark.parametrize("place", ["train/of_train/9.png", "train/more", "train/of_train/sub"])
@pytest.mark.parametrize("target", ["gone", "../../gone"])
def test_broken_links_are_named(splits, cache, place, target):
    (splits / place).symlink_to(target)
    with pytest.raises(DataError, match=rf"1 link\(s\) in .* lead nowhere: .*{place} -> .*datalad"):
        read_folder(splits, cache)


def test_linked_files_and_folders_are_read(splits, cache, tmp_path):
    """The layout of datalad and DVC."""
    real = write(tmp_path / "annex" / "key")
    (splits / "train" / "of_train" / "2.png").symlink_to(real)
    for i in range(3):
        write(tmp_path / "elsewhere" / f"{i}.png")
    (splits / "test" / "linked").symlink_to(tmp_path / "elsewhere")
    result, text = read_folder(splits, cache)
    assert text == ""
    assert result["train"].counts.tolist() == [3]
    assert dict(zip(result["test"].names, result["test"].counts.tolist(), strict=True)) == {
        "linked": 3,
        "of_test": 2,
    }


@pytest.mark.parametrize("link", ["of_train", "0.png"])
def test_one_file_in_two_classes_is_refused(splits, cache, link):
    target = splits / "train" / "of_train" / ("" if link == "of_train" else link)
    where = splits / "test" / ("again" if link == "of_train" else "of_test/again.png")
    where.symlink_to(target)
    with pytest.raises(DataError, match=r"(?=.*train/of_train/0\.png).*again.* are one file"):
        read_folder(splits, cache)


@pytest.mark.parametrize(
    "names",
    [
        ("train", "valid", "test"),
        ("Train", "Validation", "Test"),
        ("base", "val", "novel"),
        ("background", "validation", "evaluation"),
        ("TRAINING", "dev", "TESTING"),
    ],
)
def test_other_names_of_splits_are_accepted_and_named(tmp_path, cache, names):
    for name in names:
        write(tmp_path / name / f"of_{name}" / "0.png")
    result, text = read_folder(tmp_path, cache)
    assert {split: result[split].names for split in ("train", "val", "test")} == {
        split: (f"of_{name}",) for split, name in zip(("train", "val", "test"), names, strict=True)
    }
    for split, name in zip(("train", "val", "test"), names, strict=True):
        assert (f"{name} is read as split '{split}'" in text) == (name != split)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train/a/1.png", "Train/b/1.png", "test/c/1.png"], "all names of split 'train'"),
        (["train/a/1.png", "val/b/1.png", "valid/c/1.png", "test/d/1.png"], "all names of .*'val'"),
        (["train/a/1.png", "val/b/1.png"], "has splits in .* but no folder test"),
        (["valid/a/1.png", "test/b/1.png"], "has splits in .* but no folder train"),
        (["train/1.png", "test/2.png"], "must hold a folder for each class; found none"),
        (["train/a/1.png", "test/1.png"], "test must hold a folder for each class; found none"),
        (["train/a/x/1.png", "test/b/1.png"], "class folder .*train/a holds folders: x"),
        (["train/a/1.png", "train/a/x/1.png", "test/b/1.png"], "a holds folders: x"),
        (["a/x/1.png", "b/1.png", "c/1.png"], "class folder .*a holds folders: x.* Layouts: DIR/"),
        (["images_background/A/c1/1.png", "images_evaluation/B/c1/1.png"], "holds folders: A"),
        (["data/train/a/1.png", "data/test/b/1.png"], "data holds folders: test, train"),
    ],
)
def test_unknown_layouts_are_refused(tmp_path, cache, files, message):
    for file in files:
        write(tmp_path / file)
    with pytest.raises(DataError, match=message):
        read_folder(tmp_path, cache)


def test_a_class_may_have_the_name_of_a_split(tmp_path, cache):
    for name in ("background", "dog", "cat"):
        write(tmp_path / name / "1.png")
    result, _ = read_folder(tmp_path, cache, fractions=(0.34, 0.33, 0.33))
    assert {n for s in result.values() for n in s.names} == {"background", "dog", "cat"}


def test_skipped_files_are_named(splits, cache):
    for name in ("notes.txt", "train/lost.png", "train/of_train/a.heic", "train/of_train/.b.png"):
        write(splits / name)
    (splits / "unlabelled").mkdir()
    os.mkfifo(splits / "test" / "of_test" / "pipe.png")
    for _ in range(2):  # from the cache, too
        result, text = read_folder(splits, cache)
        assert result["train"].counts.tolist() == [2]
        assert "(not splits): unlabelled, notes.txt" in text
        assert "(in no class folder): lost.png" in text
        assert "(not images): .b.png, a.heic" in text
        assert "pipe.png" in text


def test_unicode_forms_of_a_name_are_one_name(splits, cache):
    write(splits / "train" / "caf\u00e9" / "1.png")
    write(splits / "test" / "cafe\u0301" / "1.png")
    with pytest.raises(DataError, match="of split 'test' are in split 'train' too"):
        read_folder(splits, cache)


def test_the_data_is_described(splits, cache):
    write(splits / "train" / "of_train" / "2.png", encoded(noise(12, 1)))
    write(splits / "train" / "more" / "1.png", encoded(noise(8, 4)))
    gif = encoded(noise(), "gif", "P", save_all=True, append_images=[Image.new("P", (8, 8), 9)])
    write(splits / "train" / "more" / "2.gif", gif)
    for _ in range(2):  # from the cache, too
        result, _ = read_folder(splits, cache, Reading(4, 1, invert=True))
        lines = describe(result).splitlines()
        assert "train: 2 classes of 2 to 3 images" in lines[1]
        for part in (
            "2 colour",
            "1 grey",
            "1 colour with transparency, on white",
            "1 palette, first frame of",
        ):
            assert part in lines[1]
        assert "8..12x8..12 pixels" in lines[1]
        assert lines[0] == "  test: 1 classes of 2 images (files: colour, 8x8 pixels)"
    assert str(Reading(4, 1, invert=True)) == "4x4 pixels, grey, inverted (dark is 255)"
