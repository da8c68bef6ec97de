"""Zip archives of unknown origin, and downloaded ones."""

import errno
import hashlib
import os
import struct
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tensorflow_datasets", reason="the extra `data` is not installed")

import made_files
from made_files import RNG, encoded, notes, write

from maml_jax.classification.datasets import DataError, archives, load_omniglot, omniglot

cache = made_files.cache


@pytest.fixture
def tiny_omniglot(monkeypatch):
    monkeypatch.setattr(omniglot, "CHARACTERS", {"images_background": 1, "images_evaluation": 1})
    monkeypatch.setattr(omniglot, "DRAWINGS", 2)


INK = encoded((RNG.random((105, 105)) > 0.5).astype(np.uint8) * 255)
NAMES = ["A/character01/1.png", "A/character01/2.png"]


def write_zips(where, extra=(), method=zipfile.ZIP_DEFLATED, names=NAMES, content=INK):
    where.mkdir(exist_ok=True)
    for part, name in enumerate(omniglot.ARCHIVES):
        with zipfile.ZipFile(where / name, "w", method) as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # duplicate names
            alphabets = [n.replace("A/", "AB"[part] + "/") for n in names]
            for path in alphabets:
                archive.writestr(f"{name[:-4]}/{path}", content)
            for path, data in extra if part == 0 else ():
                archive.writestr(path, data)
    return where / omniglot.ARCHIVES[0]


def patched(path, *changes):
    """Overwrites bytes at offsets from each entry's local and central header."""
    data = bytearray(path.read_bytes())
    for local, central, value in changes:
        for mark, offset in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
            if offset is not None:
                at = data.find(mark) + offset
                data[at : at + len(value)] = value
    path.write_bytes(data)


def read_zips(where, cache):
    return notes(lambda: load_omniglot(where, cache, splitting="background", image_size=5))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_methods_of_the_standard_library_are_read(
    tiny_omniglot, tmp_path, cache, method
):
    write_zips(tmp_path, method=method)
    result, text = read_zips(tmp_path, cache)
    assert result["train"].images.shape == (1, 2, 5, 5, 1)
    assert text == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([(8, 10, struct.pack("<H", 99))], r"1\.png cannot be unpacked .*the method deflate"),
        ([(8, 10, struct.pack("<H", 93))], r"1\.png cannot be unpacked"),  # zstandard
        ([(4, 6, struct.pack("<H", 99))], r"background\.zip cannot be unpacked .*version 9\.9"),
        ([(6, 8, struct.pack("<H", 1))], r"1\.png is encrypted"),
        ([(6, 8, struct.pack("<H", 32))], r"1\.png cannot be unpacked .*patched data"),
        ([(6, 8, struct.pack("<H", 64))], r"1\.png (cannot be unpacked|is damaged)"),
        ([(22, 24, struct.pack("<I", 2**30))], r"1\.png unpacks to 1,073,741,824 bytes; expected"),
        (
            [(22, 24, struct.pack("<I", 20))],
            r"1\.png is damaged",
        ),  # the declared size ends the reading
        ([(14, 16, struct.pack("<I", 1))], r"1\.png is damaged .*CRC"),
        ([(30, None, b"zzz")], r"1\.png is damaged .*header"),
        ([(6, 8, struct.pack("<H", 0x800)), (30, 46, b"\xff\xfe")], "background.zip is not a zip"),
    ],
)
def test_entries_that_cannot_be_unpacked_are_named(
    tiny_omniglot, tmp_path, cache, changes, message
):
    patched(write_zips(tmp_path), *changes)
    with pytest.raises(DataError, match=message):
        read_zips(tmp_path, cache)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ((f"images_background/{NAMES[0]}", INK), r"1\.png is in the archive twice"),
        ((f"./images_background/{NAMES[0]}", INK), r"1\.png is in the archive twice"),
        ((f"copy/images_background/{NAMES[0]}", INK), r"are one drawing of A/character01"),
        (("../A/character01/3.png", INK), "leaves the archive"),
        (("/etc/A/character01/3.png", INK), "leaves the archive"),
        (("A\\character01\\3.png", INK), "leaves the archive or has a backslash"),
        (("A/character02/bomb.png", bytes(2**24)), "unpacks to 16,777,216 bytes; expected 1,048"),
    ],
)
def test_entries_that_an_archive_must_not_have(tiny_omniglot, tmp_path, cache, extra, message):
    write_zips(tmp_path, [extra])
    with pytest.raises(DataError, match=message):
        read_zips(tmp_path, cache)


def test_other_entries_are_skipped_and_named(tiny_omniglot, tmp_path, cache):
    write_zips(
        tmp_path, [("__MACOSX/images_background/A/character01/._1.png", b"x"), ("READ", b"")]
    )
    for _ in range(2):  # from the cache, too
        result, text = read_zips(tmp_path, cache)
        assert result["train"].counts.tolist() == [2]
        assert "._1.png, READ" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x05\x06" + bytes(18), "must hold 1 characters"),  # no entries
        (b"PK\x03\x04" + bytes(40), "is not a zip archive, or a damaged one"),
        (b"", "is an empty file"),
    ],
)
def test_files_that_are_not_archives(tiny_omniglot, tmp_path, cache, content, message):
    write_zips(tmp_path).write_bytes(content)
    with pytest.raises(DataError, match=rf"images_background\.zip .*{message}"):
        read_zips(tmp_path, cache)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EMFILE, errno.EIO])
def test_an_unreadable_archive_is_not_reported_as_damaged(tmp_path, monkeypatch, code):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    path = write_zips(tmp_path)
    monkeypatch.setattr(archives, "ZipFile", fail)
    with pytest.raises(DataError) as raised, archives.opened(path):
        pass
    assert str(raised.value) == f"{path} cannot be read: {os.strerror(code)}."


def test_running_out_of_memory_is_not_reported_as_damage(tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    path = write_zips(tmp_path)
    with archives.opened(path) as archive:
        monkeypatch.setattr(archive, "open", fail)
        with pytest.raises(MemoryError, match=r"1\.png does not fit into memory"):
            archives.read(archive, archives.entries(archive, 10**6)[0])


def test_a_broken_link_to_an_archive_is_not_downloaded_again(tmp_path, cache):
    (tmp_path / omniglot.ARCHIVES[0]).symlink_to(tmp_path / "annex" / "key")
    with pytest.raises(DataError, match=r"images_background.zip -> .*key leads nowhere.*datalad"):
        load_omniglot(tmp_path, cache)


def test_a_drawing_with_a_huge_declared_size_is_named(tiny_omniglot, tmp_path, cache, monkeypatch):
    write_zips(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"1\.png is not an image"):
        read_zips(tmp_path, cache)


def test_downloads_are_pinned(tiny_omniglot, tmp_path, monkeypatch):
    """A download must have the pinned digest; a user's archives need not."""
    write_zips(tmp_path / "server")
    paths = [tmp_path / "server" / name for name in omniglot.ARCHIVES]
    source = omniglot._source(tmp_path / "empty")
    with pytest.raises(
        DataError, match=r"download of .*background\.zip is .*SHA-256 is .*ad41ab67"
    ):
        source.files(lambda urls: paths)
    assert not paths[0].exists()  # a wrong download is deleted
    write_zips(tmp_path / "server")
    for path in paths:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        monkeypatch.setitem(omniglot.SHA256, path.name, digest)
    assert set(source.files(lambda urls: paths)) == set(omniglot.CHARACTERS)
    paths[1].write_bytes(b"<html>sign in</html>")
    with pytest.raises(DataError, match=r"images_evaluation\.zip is an HTML page"):
        source.files(lambda urls: paths)


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"\xff\xfe", "is not text in UTF-8"), (b"", "is an empty file"), (b"\n \n", "no characters")],
)
def test_invalid_lists_of_characters(tmp_path, data, message):
    for name in omniglot.LISTS.values():
        write(tmp_path / "vinyals" / name, data)
    with pytest.raises(DataError, match=rf"train\.txt .*{message}"):
        omniglot.read_lists(tmp_path, {"A/character01"})
