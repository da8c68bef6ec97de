"""Pickles of unknown origin: plain arrays are read, everything else is refused."""

import collections
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets", reason="the extra `data` is not installed")

from made_files import notes, write

from maml_jax.classification.datasets import DataError, mini_imagenet, pickles


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
    result, classes = read_pickle(tmp_path, content, protocol)
    np.testing.assert_array_equal(result, images)
    assert classes == {"a": [1], "7": [0], "c": []}


def test_a_pickle_of_python_2_is_read(tmp_path):
    """Python 2 stores an array's bytes as a `str`."""
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
    minus_one = b"J\xff\xff\xff\xff"
    kind = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNN" + 2 * minus_one + b"K\x00tb"
    data = bytes(range(6))
    state = b"(K\x01K\x02K\x03\x86" + kind + b"\x89U\x06" + data + b"tb"
    result = pickles.read(write(tmp_path / "old.pkl", b"\x80\x02" + array + state + b"."))
    np.testing.assert_array_equal(result, np.arange(6, dtype=np.uint8).reshape(2, 3))


class Call:
    """Unpickles to a call."""

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
        (array_of(np.dtype("u1"), ADDRESS, (-8,)), "shape is not a tuple of at most 8 lengths"),
        (
            array_of(np.dtype("u1"), ADDRESS, (8,) + (1,) * 40),
            "shape is not a tuple of at most 8 lengths",
        ),
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
def test_harmful_pickled_values_are_refused(tmp_path, value, message, protocol):
    with pytest.raises(DataError, match=rf"file\.pkl .*({message})"):
        read_pickle(tmp_path, plain(image_data=value), protocol)


LAUGHS = b"\x80\x04" + b"K\x01\x85" + b"\x94" + b"".join(
    b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86\x94" for i in range(60)
)  # fmt: skip


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x04r\xff\xff\xff\x7f.", "a broken one"),  # memo[2**31 - 1] of an empty stack
        (
            b"\x80\x04N\x94r\xff\xff\xff\x7f.",
            "must hold a dictionary",
        ),  # no memo table of that size
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
        (b"\x80\x04N)R.", "calls a value that is not a function"),
        (b"\x80\x04}K\x01K\x02s\x88K\x03s.", "the key 'True' twice"),
        (b"\x80\x04}.trailing", "must hold a dictionary with image_data"),
        (b"\x80\x04}", "a broken one"),
        (b"\x80\x04.", "a broken one"),
        (b"(dp0\n.", "not a pickle of protocol 2 to 5"),
        (b"\x80\x06N.", "not a pickle of protocol 2 to 5"),
        (b"\x80\x04\xff\xff", "a broken one"),
    ],
)
def test_broken_and_hostile_opcodes_are_refused(tmp_path, data, message):
    with pytest.raises(DataError, match=rf"file\.pkl.*({message})"):
        read_pickle(tmp_path, data)


def test_running_out_of_memory_is_not_reported_as_a_broken_pickle(tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(pickles._Reader, "run", fail)
    with pytest.raises(MemoryError, match=r"file\.pkl does not fit into memory"):
        read_pickle(tmp_path, plain())


def test_text_is_not_copied_repeatedly_into_bytes(tmp_path):
    """Each of ten opcodes would allocate as many bytes as the whole text."""
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
        ({"a": [0, 1, 1]}, "names more than the 2 images of image_data"),
        ({"a": [0]}, "1 of 2 images have no class"),
        ({1: [0], "1": [1]}, "has the class 1 twice"),
        ({True: [0]}, "class name must be text or a number; found True"),
        ({b"a": [0]}, "class name must be text or a number; found b'a'"),
        ({"": [0]}, "class name must be text or a number; found ''"),
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


def test_other_contents_of_a_pickle_are_named(tmp_path):
    _, text = notes(lambda: read_pickle(tmp_path, plain(labels=[1], more=2)))
    assert "skipped in" in text
    assert "labels, more" in text
