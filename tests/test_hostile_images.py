"""Image files of unknown origin, names of files, and damaged caches."""

import errno
import os
import struct
import zlib

import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets", reason="the extra `data` is not installed")

import made_files
from made_files import encoded, noise, read_folder, write

from maml_jax.classification.datasets import (
    DataError,
    Reading,
    builder,
    listing,
)
from maml_jax.text import printable

cache = made_files.cache
splits = made_files.splits


GREY = np.tile(np.arange(0, 256, 32, dtype=np.uint8), (8, 1))


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (encoded(GREY), "L 8x8"),
        (encoded(GREY.astype(np.uint16) * 257), "I;16 8x8"),
        (encoded(GREY.astype(np.int32) * 257, "tiff"), "I 8x8"),
        (encoded(np.stack([0 * GREY] * 3 + [255 - GREY], -1)), "RGBA 8x8"),
        (encoded(np.stack([0 * GREY, 255 - GREY], -1)), "LA 8x8"),
        (encoded(np.stack([GREY] * 3, -1), "tiff", "CMYK"), "CMYK 8x8"),
    ],
)
def test_every_mode_becomes_the_same_grey(data, kind):
    image, result = Reading(8, 1).decode_kind(data)
    np.testing.assert_allclose(image[..., 0], GREY, atol=1)
    assert result == kind


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        ((GREY.astype(np.uint16) * 16), "png"),  # 12 bits in a 16-bit file
        (np.stack([0 * GREY + 255] * 3 + [GREY], -1), "png"),  # white ink, transparent paper
        (np.stack([0 * GREY + 255, GREY], -1), "png"),
        (GREY.astype(np.int32), "tiff"),  # 8 bits in a 32-bit file
    ],
)
def test_nearly_uniform_images_are_named(splits, cache, array, kind):
    write(splits / "train" / "of_train" / f"7.{kind}", encoded(array, kind))
    for _ in range(2):  # from the cache, too
        _, text = read_folder(splits, cache, Reading(8, 1))
        assert "1 of 3 images of split 'train' of folder decode to nearly one value" in text
        assert f"of_train/7.{kind}" in text


def bomb(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bomb(30_000, 30_000), r"a broken image \(Image size \(900000000 pixels\)"),
        (bomb(10_000, 10_000), r"a broken image \(Image size \(100000000 pixels\)"),
        (encoded(noise(64))[:400], r"a broken image \(.*truncated"),
        (encoded(noise(64), "jpeg")[:700], r"a broken image \(.*truncated"),
        (
            encoded(GREY.astype(np.int32) * 10**6, "tiff"),
            "an image of 32-bit integers from 0 to 224000000",
        ),
        (encoded(GREY.astype(np.float32), "tiff"), "an image of floating-point"),
        (encoded(noise(), "eps"), "a PostScript program, which is not run"),
        (b"\xc5\xd0\xd3\xc6" + bytes(40), "a broken image"),  # the same with a binary header
        (b"\x89PNG\r\n\x1a\n" + bytes(60), "a broken image"),
        (b"GIF89a" + b"\xff" * 60, "a broken image"),
        (b"II*\0" + b"\xff" * 60, "a broken image"),
    ],
)
def test_images_that_cannot_be_read_are_named(splits, cache, data, message):
    write(splits / "train" / "of_train" / "8.png", data)
    with pytest.raises(DataError, match=rf"1 file\(s\) .*of_train/8\.png is {message}"):
        read_folder(splits, cache)


def test_a_file_of_gigabytes_is_not_read(splits, cache):
    with (splits / "train" / "of_train" / "9.png").open("wb") as file:
        file.truncate(listing.MOST_BYTES + 1)
    with pytest.raises(DataError, match=r"9\.png has 536,870,913 bytes; expected"):
        read_folder(splits, cache)


NASTY = ["a\x1b[31mred", "two\nlines", "$x_{$", "=1+1", "\u202egnp", os.fsdecode(b"\xff\xfe")]


@pytest.mark.parametrize("name", NASTY)
def test_names_are_harmless(splits, cache, name):
    write(splits / "train" / name / f"{name}.png")
    write(splits / "train" / name / f"{name}.txt")
    for _ in range(2):  # from the cache, too
        result, text = read_folder(splits, cache)
        assert name in result["train"].names
        text.encode("utf-8")
        assert printable(name) in text
        assert "\x1b" not in text
        assert "\u202e" not in text
    write(splits / "train" / name / "bad.png", b"<html>")
    with pytest.raises(DataError) as error:
        read_folder(splits, cache)
    assert printable(name) in str(error.value)
    assert str(error.value).isprintable()


def test_printable_text_is_unchanged_and_limited():
    assert printable("São João, 東京") == "São João, 東京"
    assert printable("a\tb\udcff\x9b") == "a\\tb\\udcff\\x9b"
    assert len(printable("x" * 10**6)) < 3_000


def damage(path, how):
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "zeros":
        path.write_bytes(bytes(len(data)))
    else:
        at = data.index(b"of_train" if b"of_train" in data else b"image") + 2
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])


@pytest.mark.parametrize("how", ["emptied", "cut", "flipped", "gone", "zeros"])
@pytest.mark.parametrize("which", ["*train*array_record*", "dataset_info.json"])
def test_a_damaged_cache_is_rebuilt(splits, cache, which, how):
    first, _ = read_folder(splits, cache)
    (record,) = cache.rglob(which)
    before = record.read_bytes()
    damage(record, how)
    again, text = read_folder(splits, cache)
    for split, classes in first.items():
        np.testing.assert_array_equal(again[split].images, classes.images)
        assert again[split].names == classes.names
    assert f"cached images in {record.parent} are damaged" in text
    assert "decoding the files again" in text
    assert record.stat().st_size == pytest.approx(len(before), abs=200)
    assert read_folder(splits, cache)[1] == ""


def test_an_empty_cache_is_rebuilt(splits, cache):
    read_folder(splits, cache)
    (info,) = cache.rglob("dataset_info.json")
    for path in info.parent.iterdir():
        path.unlink()
    assert "decoding the files again" in read_folder(splits, cache)[1]


@pytest.mark.parametrize(
    "error",
    [
        *(OSError(code, os.strerror(code)) for code in (errno.EMFILE, errno.EACCES, errno.EIO)),
        RuntimeError("open() failed: Too many open files"),  # the message of C++ libraries
        MemoryError(),
    ],
    ids=str,
)
def test_an_error_of_the_machine_leaves_the_cache_alone(splits, cache, monkeypatch, error):
    first, _ = read_folder(splits, cache)
    before = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(builder, "_read_all", fail)
        with pytest.raises(type(error)) as raised:
            read_folder(splits, cache)
    assert raised.value is error
    assert {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()} == before
    again, text = read_folder(splits, cache)
    assert text == ""
    np.testing.assert_array_equal(again["train"].images, first["train"].images)


def test_a_damaged_cache_stays_until_it_is_rebuilt(splits, cache, monkeypatch):
    read_folder(splits, cache)
    (record,) = cache.rglob("*train*array_record*")
    damage(record, "cut")
    left = record.read_bytes()

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(listing, "contents", fail)
        with pytest.raises(OSError, match="No space left"):
            read_folder(splits, cache)
    aside = record.parent.with_name(f"{builder.FORMAT}.damaged")
    assert (aside / record.name).read_bytes() == left
    assert read_folder(splits, cache)[0]["train"].images.shape[:2] == (1, 2)
    assert not aside.exists()


def test_an_error_of_the_source_is_not_reported_as_damage(splits, cache):
    source = builder.Source("x", "y", lambda _: {"train": [("a", "b", b"no image")]})
    with pytest.raises(DataError, match="a/b is a broken image"):
        builder.load(source, Reading(4, 1), cache)
