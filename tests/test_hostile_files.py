"""Files of unknown origin: each is read right, or refused with a sentence that names it."""

import collections
import hashlib
import io
import os
import pickle
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tensorflow_datasets", reason="the extra `data` is not installed")

from maml_jax.classification.datasets import (
    DataError,
    DataWarning,
    Reading,
    archives,
    builder,
    describe,
    listing,
    load_folder,
    load_mini_imagenet,
    load_omniglot,
    mini_imagenet,
    omniglot,
    pickles,
)
from maml_jax.text import printable

RNG = np.random.default_rng(0)


def encoded(array, kind="png", mode=None, **options):
    file = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def noise(side=8, channels=3):
    shape = (side, side, channels) if channels > 1 else (side, side)
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def write(path, data=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(noise()) if data is None else data)
    return path


def notes(action):
    """What an action returns, and its warnings as one text."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = action()
    assert all(issubclass(w.category, DataWarning) for w in caught), caught
    return result, "\n".join(str(w.message) for w in caught)


SMALL = Reading(4, 1)


def read_folder(where, cache, reading=SMALL, **options):
    return notes(lambda: load_folder(where, cache, reading, **options))


@pytest.fixture
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def splits(tmp_path):
    """A folder with one class of two images in each of train and test."""
    where = tmp_path / "mine"
    for split in ("train", "test"):
        for i in range(2):
            write(where / split / f"of_{split}" / f"{i}.png")
    return where


# Pickles


def plain(**changes):
    content = {
        "image_data": np.arange(2 * 84 * 84 * 3, dtype=np.uint8).reshape(2, 84, 84, 3),
        "class_dict": {"a": [0], "b": [1]},
    }
    return {**content, **changes}


def read_pickle(tmp_path, content, protocol=4):
    data = content if isinstance(content, bytes) else pickle.dumps(content, protocol)
    return mini_imagenet.read_pickle(write(tmp_path / "file.pkl", data))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "form",
    [np.ascontiguousarray, np.asfortranarray, lambda x: x.transpose(0, 2, 1, 3), lambda x: x[::-1]],
)
def test_arrays_of_every_protocol_and_order(tmp_path, protocol, form):
    images = form(plain()["image_data"])
    by_class = collections.OrderedDict(
        [("a", np.array([1])), (7, [np.int64(0)]), (np.str_("c"), ())]
    )
    content = plain(image_data=images, class_dict=by_class)
    found, classes = read_pickle(tmp_path, content, protocol)
    np.testing.assert_array_equal(found, images)
    assert classes == {"a": [1], "7": [0], "c": []}


def test_a_pickle_of_python_2_is_read(tmp_path):
    """There, bytes are text: an array's content is a `str`."""
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
    minus_one = b"J\xff\xff\xff\xff"
    kind = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNN" + 2 * minus_one + b"K\x00tb"
    data = bytes(range(6))
    state = b"(K\x01K\x02K\x03\x86" + kind + b"\x89U\x06" + data + b"tb"
    found = pickles.read(write(tmp_path / "old.pkl", b"\x80\x02" + array + state + b"."))
    np.testing.assert_array_equal(found, np.arange(6, dtype=np.uint8).reshape(2, 3))


class Call:
    """Unpickles as a call."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


RECONSTRUCT = np.zeros(1).__reduce__()[0]
FROM_BUFFER = np.zeros(1).__reduce_ex__(5)[0]
ADDRESS = b"A" * 8


def array_of(dtype, data=ADDRESS, shape=(1,)):
    return Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, shape, dtype, False, data))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Call(np.ndarray, (1,), np.dtype(object), ADDRESS), "array of type 'O8'; expected plain"),
        (Call(np.ndarray, (1,), np.dtype("u1"), ADDRESS), "calls numpy.ndarray with 3 arguments"),
        (array_of(np.dtype(object)), "array of type 'O8'; expected plain"),
        (Call(FROM_BUFFER, ADDRESS, np.dtype(object), (1,), "C"), "array of type 'O8'"),
        (array_of(np.dtype([("a", "u1"), ("b", "O")]), b"A" * 9), "array of type 'V9'"),
        (array_of(np.dtype(("u1", (3,)))), "array of type"),
        (array_of(np.dtype("M8[s]")), "array of type 'M8'"),
        (np.array(["a"]), "array of type <U1; expected plain numbers"),
        (np.array([object()], object), "array of type 'O8'"),
        (array_of(np.dtype("u1")), r"shape \(1,\) .* over 8 bytes"),
        (array_of(np.dtype("u1"), b"", (2**40,)), "over 0 bytes"),
        (array_of(np.dtype("u1"), ADDRESS, (-8,)), "shape is not 8 lengths or fewer"),
        (array_of(np.dtype("u1"), ADDRESS, (8,) + (1,) * 40), "shape is not 8 lengths or fewer"),
        (array_of(np.dtype("u1"), ADDRESS, (2.0, 4)), "shape is not"),
        (array_of("u1"), "holds a str where a dtype belongs"),
        (array_of(np.dtype("u1"), [1] * 8, (8,)), "holds a list where a bytes belongs"),
        (Call(os.system, "true"), "holds posix.system; only arrays"),
        (Call(eval, "1"), "holds (builtins|__builtin__).eval; only arrays"),
        (Call(getattr, np.ndarray, "tofile"), "only arrays and dictionaries are read"),
        (np.memmap, "holds numpy.memmap"),
        (2**70, "integer of more than 64 bits"),
        ({(1, 2): 3}, "dictionary with a tuple for a key"),
        ({1.5: 3}, "dictionary with a float for a key"),
        ({1, 2}, "opcode (EMPTY_SET|FROZENSET)|holds .*set"),
        (collections.defaultdict(list), "holds collections.defaultdict"),
        (Path("x"), "only arrays and dictionaries"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_pickled_values_that_could_do_harm_are_refused(tmp_path, value, message, protocol):
    with pytest.raises(DataError, match=rf"file\.pkl .*({message})"):
        read_pickle(tmp_path, plain(image_data=value), protocol)


LAUGHS = b"\x80\x04" + b"K\x01\x85" + b"\x94" + b"".join(
    b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86\x94" for i in range(60)
)  # fmt: skip


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x04r\xff\xff\xff\x7f.", "a broken one"),  # memo[2**31 - 1] of an empty stack
        (b"\x80\x04N\x94r\xff\xff\xff\x7f.", "must hold a dictionary"),  # no table of that size
        (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"a.", "a broken one"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"a.", "a broken one"),
        (b"\x80\x04X\xff\xff\xff\xffa.", "a broken one"),
        (b"\x80\x04" + b")\x85" * 10**5 + b".", "found a tuple"),  # nested
        (b"\x80\x04})" + b"\x85" * 10**5 + b"K\x01s.", "with a tuple for a key"),
        (LAUGHS + b".", "found a tuple"),
        (LAUGHS + b"h\x3c\x93.", "where a str belongs"),
        (b"\x80\x04cnumpy\ndtype\nh\x00.", "a broken one"),
        (b"\x80\x04N\x97.", "opcode NEXT_BUFFER|broken one"),
        (b"\x80\x05N\x98.", "opcode READONLY_BUFFER"),
        (b"\x80\x04\x8c\x01xQ.", "opcode BINPERSID"),
        (b"\x80\x04\x82\x01.", "opcode EXT1"),
        (b"\x80\x04(ios\nsystem\n.", "opcode INST"),
        (b"\x80\x04cos\nsystem\n)\x81.", "holds os.system"),
        (b"\x80\x04]K\x01b.", "where a Unfinished belongs"),
        (b"\x80\x04N)R.", "calls what is no function"),
        (b"\x80\x04}K\x01K\x02s\x88K\x03s.", "the key 'True' twice"),
        (b"\x80\x04}.trailing", "must hold a dictionary with image_data"),
        (b"\x80\x04}", "a broken one"),
        (b"\x80\x04.", "a broken one"),
        (b"(dp0\n.", "no pickle of protocol 2 to 5"),
        (b"\x80\x06N.", "no pickle of protocol 2 to 5"),
        (b"\x80\x04\xff\xff", "a broken one"),
    ],
)
def test_broken_and_hostile_opcodes_are_refused(tmp_path, data, message):
    with pytest.raises(DataError, match=rf"file\.pkl.*({message})"):
        read_pickle(tmp_path, data)


def test_text_is_not_multiplied_into_bytes(tmp_path):
    """Ten opcodes would make as many bytes as all of the text, again and again."""
    text = b"\x8c\xff" + b"a" * 255
    encode = b"c_codecs\nencode\nh\x00\x8c\x06latin1\x86R0".replace(b"0", b"")
    with pytest.raises(DataError, match="makes more bytes than it holds"):
        read_pickle(tmp_path, b"\x80\x04" + text + b"\x94" + encode * 100 + b".")


@pytest.mark.parametrize(
    ("by_class", "message"),
    [
        ({"a": "01"}, "class a must be a list of indices .* found '01', a str"),
        ({"a": np.array(0)}, r"class a must be a list of indices .* found an array, int64 \(\)"),
        ({"a": np.array([[0]])}, "class a must be a list of indices"),
        ({"a": np.array([0.0])}, "found '0.0', a float in it"),
        ({"a": [float("nan")]}, "found 'nan', a float in it"),
        ({"a": [0.0]}, "found '0.0', a float in it"),
        ({"a": ["0"]}, "found '0', a str in it"),
        ({"a": [None]}, "found a NoneType in it"),
        ({"a": [True]}, "found 'True', a bool in it"),
        ({"a": np.array([True])}, "found 'True', a bool in it"),
        ({"a": [np.array(0)]}, "found an array"),
        ({"a": [-1]}, "class a names image -1; there are 2 images"),
        ({"a": [2]}, "class a names image 2; there are 2 images"),
        ({"a": [0, 0]}, "image 0 is in classes a and a"),
        ({"a": [0, 1, 1]}, "names more images than the 2 there are"),
        ({"a": [0]}, "1 of 2 images have no class"),
        ({1: [0], "1": [1]}, "has the class 1 twice"),
        ({True: [0]}, "called by text or a number; found True"),
        ({b"a": [0]}, "called by text or a number; found b'a'"),
        ({"": [0]}, "called by text or a number; found ''"),
        ({float("nan"): [0]}, "a float for a key"),
        ({None: [0]}, "a NoneType for a key"),
        ([[0], [1]], "class_dict a dictionary of lists of indices; found .* and a list"),
    ],
)
def test_values_and_keys_of_a_pickle_are_checked(tmp_path, by_class, message, monkeypatch):
    monkeypatch.setattr(mini_imagenet, "check_counts", lambda *_: None)
    path = write(tmp_path / "file.pkl", pickle.dumps(plain(class_dict=by_class)))
    with pytest.raises(DataError, match=rf"file\.pkl.*{message}"):
        list(mini_imagenet._unpickled(path, "train"))


def test_what_a_pickle_holds_beside_images_is_named(tmp_path):
    _, text = notes(lambda: read_pickle(tmp_path, plain(labels=[1], more=2)))
    assert "skipped in" in text
    assert "labels, more" in text


# Zip archives


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
    """Bytes at offsets from each entry's local and central header."""
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
def test_methods_that_the_standard_library_knows_are_read(tiny_omniglot, tmp_path, cache, method):
    write_zips(tmp_path, method=method)
    found, text = read_zips(tmp_path, cache)
    assert found["train"].images.shape == (1, 2, 5, 5, 1)
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
        ([(22, 24, struct.pack("<I", 20))], r"1\.png is damaged"),  # as many bytes come, no more
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
        (("A\\character01\\3.png", INK), "leaves the archive, or not one of a zip"),
        (("A/character02/bomb.png", bytes(2**24)), "unpacks to 16,777,216 bytes; expected 1,048"),
    ],
)
def test_entries_that_an_archive_should_not_have(tiny_omniglot, tmp_path, cache, extra, message):
    write_zips(tmp_path, [extra])
    with pytest.raises(DataError, match=message):
        read_zips(tmp_path, cache)


def test_other_entries_are_skipped_and_named(tiny_omniglot, tmp_path, cache):
    write_zips(
        tmp_path, [("__MACOSX/images_background/A/character01/._1.png", b"x"), ("READ", b"")]
    )
    for _ in range(2):  # from the cache, too
        found, text = read_zips(tmp_path, cache)
        assert found["train"].counts.tolist() == [2]
        assert "._1.png, READ, which are no drawings" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x05\x06" + bytes(18), "must hold 1 characters"),  # no entries
        (b"PK\x03\x04" + bytes(40), "is not a zip archive, or a damaged one"),
        (b"", "is an empty file"),
    ],
)
def test_archives_that_are_none(tiny_omniglot, tmp_path, cache, content, message):
    write_zips(tmp_path).write_bytes(content)
    with pytest.raises(DataError, match=rf"images_background\.zip .*{message}"):
        read_zips(tmp_path, cache)


def test_an_archive_that_is_a_link_to_nothing_is_not_downloaded_anew(tmp_path, cache):
    (tmp_path / omniglot.ARCHIVES[0]).symlink_to(tmp_path / "annex" / "key")
    with pytest.raises(DataError, match=r"images_background.zip -> .*key leads nowhere.*datalad"):
        load_omniglot(tmp_path, cache)


def test_a_drawing_that_claims_to_be_huge_is_named(tiny_omniglot, tmp_path, cache, monkeypatch):
    write_zips(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"1\.png is not an image"):
        read_zips(tmp_path, cache)


def test_downloads_are_pinned(tiny_omniglot, tmp_path, monkeypatch):
    """The same archives are taken from a user, and not as a download."""
    write_zips(tmp_path / "server")
    paths = [tmp_path / "server" / name for name in omniglot.ARCHIVES]
    source = omniglot._source(tmp_path / "empty")
    with pytest.raises(
        DataError, match=r"download of .*background\.zip is .*SHA-256 is .*ad41ab67"
    ):
        source.files(lambda urls: paths)
    assert not paths[0].exists()  # what is not right is not kept
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
    [(b"\xff\xfe", "is no text in UTF-8"), (b"", "is an empty file"), (b"\n \n", "no characters")],
)
def test_lists_of_characters_that_are_none(tmp_path, data, message):
    for name in omniglot.LISTS.values():
        write(tmp_path / "vinyals" / name, data)
    with pytest.raises(DataError, match=rf"train\.txt .*{message}"):
        omniglot.read_lists(tmp_path, {"A/character01"})


# CSV lists of MiniImagenet


@pytest.fixture
def lists(tmp_path, monkeypatch):
    """MiniImagenet of one class of two images a split, as lists."""
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
        load_mini_imagenet(lists, cache)


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
        ("test9.png,test", "names 1 images that are not there"),
        ('"test0.png,test', "is no CSV text file"),
        ("te\0st.png,test", "names 1 images|is no CSV text file"),
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
        (b"filename,label\n\xff.png,a\n", "is no CSV text file in UTF-8"),
        (b"\n", "must have the columns"),
        (b"file,label\n", "must have the columns filename and label"),
    ],
)
def test_lists_that_are_none(lists, cache, data, message):
    write(lists / "train.csv", data)
    with pytest.raises(DataError, match=rf"train\.csv.*{message}"):
        load_mini_imagenet(lists, cache)


def test_images_in_no_list_and_other_layouts_are_named(lists, cache):
    write(lists / "images" / "more.png")
    for split in mini_imagenet.CLASSES:
        (lists / f"mini-imagenet-cache-{split}.pkl").write_bytes(b"")
    _, text = notes(lambda: load_mini_imagenet(lists, cache, 4))
    assert "more.png, which is/are in no list" in text
    assert "several layouts: read lists of images, skipped pickles" in text


# Folders


@pytest.mark.parametrize("place", ["train/of_train/9.png", "train/more", "train/of_train/sub"])
@pytest.mark.parametrize("target", ["gone", "../../gone"])
def test_links_that_lead_nowhere_are_named(splits, cache, place, target):
    (splits / place).symlink_to(target)
    with pytest.raises(DataError, match=rf"1 link\(s\) in .* lead nowhere: .*{place} -> .*datalad"):
        read_folder(splits, cache)


def test_linked_files_and_folders_are_read(splits, cache, tmp_path):
    """As datalad and DVC lay them out."""
    real = write(tmp_path / "annex" / "key")
    (splits / "train" / "of_train" / "2.png").symlink_to(real)
    for i in range(3):
        write(tmp_path / "elsewhere" / f"{i}.png")
    (splits / "test" / "linked").symlink_to(tmp_path / "elsewhere")
    found, text = read_folder(splits, cache)
    assert text == ""
    assert found["train"].counts.tolist() == [3]
    assert dict(zip(found["test"].names, found["test"].counts.tolist(), strict=True)) == {
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
def test_other_names_of_splits_are_understood_and_named(tmp_path, cache, names):
    for name in names:
        write(tmp_path / name / f"of_{name}" / "0.png")
    found, text = read_folder(tmp_path, cache)
    assert {split: found[split].names for split in ("train", "val", "test")} == {
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
def test_layouts_that_are_not_understood_are_refused(tmp_path, cache, files, message):
    for file in files:
        write(tmp_path / file)
    with pytest.raises(DataError, match=message):
        read_folder(tmp_path, cache)


def test_a_class_may_be_called_as_a_split(tmp_path, cache):
    for name in ("background", "dog", "cat"):
        write(tmp_path / name / "1.png")
    found, _ = read_folder(tmp_path, cache, fractions=(0.34, 0.33, 0.33))
    assert {n for s in found.values() for n in s.names} == {"background", "dog", "cat"}


def test_what_is_skipped_is_named(splits, cache):
    for name in ("notes.txt", "train/lost.png", "train/of_train/a.heic", "train/of_train/.b.png"):
        write(splits / name)
    (splits / "unlabelled").mkdir()
    os.mkfifo(splits / "test" / "of_test" / "pipe.png")
    for _ in range(2):  # from the cache, too
        found, text = read_folder(splits, cache)
        assert found["train"].counts.tolist() == [2]
        assert "unlabelled, notes.txt, which is/are no split(s)" in text
        assert "lost.png, which lie(s) in no class folder" in text
        assert ".b.png, a.heic, which is/are no image(s)" in text
        assert "pipe.png" in text


def test_names_that_look_alike_are_one_name(splits, cache):
    write(splits / "train" / "caf\u00e9" / "1.png")
    write(splits / "test" / "cafe\u0301" / "1.png")
    with pytest.raises(DataError, match="of split 'test' are in split 'train' too"):
        read_folder(splits, cache)


def test_what_was_read_is_described(splits, cache):
    write(splits / "train" / "of_train" / "2.png", encoded(noise(12, 1)))
    write(splits / "train" / "more" / "1.png", encoded(noise(8, 4)))
    gif = encoded(noise(), "gif", "P", save_all=True, append_images=[Image.new("P", (8, 8), 9)])
    write(splits / "train" / "more" / "2.gif", gif)
    for _ in range(2):  # from the cache, too
        found, _ = read_folder(splits, cache, Reading(4, 1, invert=True))
        lines = describe(found).splitlines()
        assert "train: 2 classes of 2 to 3 images" in lines[1]
        for part in ("2 colour", "1 grey", "1 colour put on white", "1 palette, first frame of"):
            assert part in lines[1]
        assert "8..12x8..12 pixels" in lines[1]
        assert lines[0] == "  test: 1 classes of 2 images (files: colour, 8x8 pixels)"
    assert str(Reading(4, 1, invert=True)) == "4x4 pixels, grey, inverted (dark is 255)"


# Images


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
    image, found = Reading(8, 1).decode_kind(data)
    np.testing.assert_allclose(image[..., 0], GREY, atol=1)
    assert found == kind


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        ((GREY.astype(np.uint16) * 16), "png"),  # 12 bits in a 16-bit file
        (np.stack([0 * GREY + 255] * 3 + [GREY], -1), "png"),  # white ink, transparent paper
        (np.stack([0 * GREY + 255, GREY], -1), "png"),
        (GREY.astype(np.int32), "tiff"),  # 8 bits in a 32-bit file
    ],
)
def test_images_of_nearly_one_value_are_named(splits, cache, array, kind):
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
        (b"\xc5\xd0\xd3\xc6" + bytes(40), "a broken image"),  # a binary header of the same
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


# Names


NASTY = ["a\x1b[31mred", "two\nlines", "$x_{$", "=1+1", "\u202egnp", os.fsdecode(b"\xff\xfe")]


@pytest.mark.parametrize("name", NASTY)
def test_names_do_no_harm(splits, cache, name):
    write(splits / "train" / name / f"{name}.png")
    write(splits / "train" / name / f"{name}.txt")
    for _ in range(2):  # from the cache, too
        found, text = read_folder(splits, cache)
        assert name in found["train"].names
        text.encode("utf-8")
        assert printable(name) in text
        assert "\x1b" not in text
        assert "\u202e" not in text
    write(splits / "train" / name / "bad.png", b"<html>")
    with pytest.raises(DataError) as error:
        read_folder(splits, cache)
    assert printable(name) in str(error.value)
    assert str(error.value).isprintable()


def test_printable_text_stays_as_it_is_and_ends():
    assert printable("São João, 東京") == "São João, 東京"
    assert printable("a\tb\udcff\x9b") == "a\\tb\\udcff\\x9b"
    assert len(printable("x" * 10**6)) < 3_000


# The cache


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
def test_a_damaged_cache_is_made_again(splits, cache, which, how):
    first, _ = read_folder(splits, cache)
    (record,) = cache.rglob(which)
    before = record.read_bytes()
    damage(record, how)
    again, text = read_folder(splits, cache)
    for split, classes in first.items():
        np.testing.assert_array_equal(again[split].images, classes.images)
        assert again[split].names == classes.names
    assert f"prepared data in {record.parent} is damaged" in text
    assert "made again" in text
    assert record.stat().st_size == pytest.approx(len(before), abs=200)
    assert read_folder(splits, cache)[1] == ""


def test_a_cache_without_anything_in_it_is_made_again(splits, cache):
    read_folder(splits, cache)
    (info,) = cache.rglob("dataset_info.json")
    for path in info.parent.iterdir():
        path.unlink()
    assert "made again" in read_folder(splits, cache)[1]


def test_an_error_of_the_source_is_not_called_damage(splits, cache):
    source = builder.Source("x", "y", lambda _: {"train": [("a", "b", b"no image")]})
    with pytest.raises(DataError, match="a/b is a broken image"):
        builder.load(source, Reading(4, 1), cache)


def test_archives_have_a_bound_of_their_own():
    assert omniglot.MOST_BYTES >= 105 * 105 * 4
    assert archives.ENCRYPTED == 1
