"""Reads pickles of arrays, dictionaries, lists, text and numbers without running code of the file.

The standard library's unpickler calls any function that a file names, with arguments of the file's
choice. `numpy.ndarray` alone suffices for a crash at a chosen address (an object array over given
bytes). Here `pickletools` splits the file into opcodes, and this module executes the few that such
files need. Arrays are views of the file's bytes, with checked type and shape.
"""

from __future__ import annotations

import math
import mmap
import pickletools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from maml_jax.classification.datasets.messages import DataError, describe_bytes

PROTOCOLS = (2, 3, 4, 5)
MOST_AXES = 8
_NUMBERS = re.compile(r"[biuf][1248]")  # bool, integers, floats; no objects, structures, dates
_TEXT = re.compile(r"[US]\d{1,4}")
_VALUES = re.compile(  # opcodes that push their argument
    r"BININT[12]?|LONG[14]|BINFLOAT|(SHORT_)?BIN(STRING|BYTES|UNICODE)|BIN(BYTES|UNICODE)8|BYTEARRAY8"
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read(path: Path) -> Any:
    """Returns the content of a pickle: dictionaries, lists, tuples, text, numbers, NumPy arrays.

    Raises:
        DataError: the file is not a pickle, is broken, or holds other types.
        MemoryError: the content does not fit into memory.
    """
    with path.open("rb") as file:
        what = describe_bytes(file.read(512))
        if what:
            raise DataError(f"{path} is {what}.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                opcodes: Any = pickletools.genops(content)  # pyright: ignore[reportArgumentType]
                return _Reader(len(content)).run(opcodes)
            except DataError as error:
                raise DataError(f"{path} {error}") from None
            except MemoryError:
                raise MemoryError(f"{path} does not fit into memory.") from None
            except Exception as error:  # a broken pickle can raise nearly any exception
                raise DataError(f"{path} is not a pickle, or a broken one ({error}).") from None


class _Unfinished:
    """An array or type before its state is read; `keys` are its places in the memo."""

    def __init__(self, finish: Callable[[Any], Any]):
        self.finish, self.keys = finish, []


class _Reader:
    """Executes opcodes on a stack.

    Attributes:
        size: of the file, bytes; the limit of all bytes from re-encoded text together.
    """

    def __init__(self, size: int):
        self.size = size
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.globals: dict[tuple[str, str], Callable[..., Any]] = {
            ("numpy", "ndarray"): _refuse,  # valid as an argument of _reconstruct alone
            ("numpy", "dtype"): _type,
            ("_codecs", "encode"): self._encode,
            ("__builtin__", "bytes"): lambda: b"",  # of an empty array, in protocol 2
            ("collections", "OrderedDict"): self._ordered,
        }
        for core in ("core", "_core"):
            self.globals |= {
                (f"numpy.{core}.multiarray", "_reconstruct"): lambda *_: _Unfinished(self._array),
                (f"numpy.{core}.multiarray", "scalar"): self._scalar,
                (f"numpy.{core}.numeric", "_frombuffer"): _from_buffer,
            }

    def run(self, opcodes: Iterable[tuple[Any, Any, Any]]) -> Any:
        """Returns the final value of the file."""
        for opcode, argument, position in opcodes:
            if position == 0 and (opcode.name != "PROTO" or argument not in PROTOCOLS):
                raise DataError(
                    "is not a pickle of protocol 2 to 5: write it again with "
                    "pickle.dump(content, file, protocol=4)."
                )
            if opcode.name == "STOP":
                return self.stack.pop()
            self._step(opcode.name, argument)
        raise DataError("is cut off.")

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if _VALUES.fullmatch(name):
            if isinstance(argument, int) and abs(argument) >= 2**63:
                raise DataError("holds an integer of more than 64 bits; expected indices.")
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(self._pop_mark()))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self._pop_mark()
            _expect(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else self._pop_mark()
            _fill(_expect(stack[-1], dict), zip(items[::2], items[1::2], strict=True))
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._remember(len(self.memo) if name == "MEMOIZE" else argument)
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            attribute, module = (
                argument.split(" ")[::-1] if argument else (stack.pop(), stack.pop())
            )
            stack.append(self._global(_expect(module, str), _expect(attribute, str)))
        elif name == "REDUCE":
            arguments = _expect(stack.pop(), tuple)
            function = stack.pop()
            if not callable(function):
                raise DataError("calls a value that is not a function.")
            stack.append(function(*arguments))
        elif name == "BUILD":
            self._build(stack.pop())
        elif name not in ("PROTO", "FRAME"):
            raise DataError(
                f"has the opcode {name}, which arrays and dictionaries do not need; expected the "
                "output of pickle.dump for a dictionary of NumPy arrays and lists."
            )

    def _pop_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _remember(self, key: int) -> None:
        value = self.memo[key] = self.stack[-1]
        if isinstance(value, _Unfinished):
            value.keys.append(key)

    def _build(self, state: Any) -> None:
        unfinished = _expect(self.stack[-1], _Unfinished)
        value = self.stack[-1] = unfinished.finish(state)
        self.memo |= dict.fromkeys(unfinished.keys, value)

    def _global(self, module: str, name: str) -> Callable[..., Any]:
        function = self.globals.get((module, name))
        if function is None:
            raise DataError(
                f"holds {module[:80]}.{name[:80]}; only arrays and dictionaries are read, because "
                "a pickle can run any code."
            )
        return function

    def _encode(self, text: Any, encoding: Any) -> bytes:
        if _expect(encoding, str) not in ("latin1", "latin-1"):
            raise DataError(f"encodes text as {encoding[:80]}; expected latin1.")
        return self._bytes(_expect(text, str))

    def _bytes(self, data: Any) -> bytes:
        """Returns bytes; converts from text, the form in which Python 2 wrote bytes."""
        if not isinstance(data, str):
            return _expect(data, bytes, bytearray)
        self.size -= len(data)
        if self.size < 0:
            raise DataError("makes more bytes than it holds.")
        return data.encode("latin1")

    def _array(self, state: Any) -> np.ndarray:
        _, shape, dtype, fortran, data = _expect(state, tuple)
        return _view(self._bytes(data), dtype, shape, "F" if fortran else "C")

    def _scalar(self, dtype: Any, data: Any) -> Any:
        return _view(self._bytes(data), dtype, (), "C", text=True).item()

    def _ordered(self, items: Any = ()) -> dict[Any, Any]:
        return _fill(
            {}, [tuple(_expect(item, list, tuple)) for item in _expect(items, list, tuple)]
        )


def _expect(value: Any, *types: type) -> Any:
    if not isinstance(value, types):
        raise DataError(f"holds {_name(value)} where a {types[0].__name__.strip('_')} belongs.")
    return value


def _name(value: Any) -> str:
    return f"a {type(value).__name__.strip('_')}"


def _refuse(*arguments: Any) -> Any:
    raise DataError(
        f"calls numpy.ndarray with {len(arguments)} arguments: an array over memory of the file's "
        "choice. Only arrays in the form of pickle.dump are read."
    )


def _fill(into: dict[Any, Any], items: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Adds items to a dictionary; refuses duplicate keys and other keys than text or integers."""
    for key, value in items:
        if not isinstance(key, (str, bytes, int)):
            raise DataError(f"has a dictionary with {_name(key)} for a key; expected text.")
        if key in into:
            raise DataError(f"has a dictionary with the key {str(key)[:80]!r} twice.")
        into[key] = value
    return into


def _type(code: Any, *_: Any) -> _Unfinished:
    """Reads a plain type; its state holds the byte order and must have no fields."""
    text = _expect(code, str)
    if not (_NUMBERS.fullmatch(text) or _TEXT.fullmatch(text)):
        raise DataError(f"has an array of type {text[:80]!r}; expected plain numbers.")

    def finish(state: Any) -> np.dtype:
        plain = len(_expect(state, tuple)) == 8 and all(part is None for part in state[2:5])
        if not plain or state[1] not in list("<>|="):
            raise DataError(
                f"has a type {text!r} with fields, subarrays or metadata; expected none."
            )
        return np.dtype(state[1] + text)

    return _Unfinished(finish)


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
    content = _expect(data, bytes, bytearray)
    if order == "K":
        return _view(content, dtype, shape, "C").transpose(_expect(axes, tuple))
    return _view(content, dtype, shape, _expect(order, str))


def _view(content: bytes, dtype: Any, shape: Any, order: Any, text: bool = False) -> np.ndarray:
    """Returns an array over bytes; type and shape must match their number."""
    if _expect(dtype, np.dtype).kind in "US" and not text:
        raise DataError(f"has an array of type {dtype}; expected plain numbers.")
    lengths = (shape,) if isinstance(shape, int) else _expect(shape, tuple)
    if len(lengths) > MOST_AXES or not all(type(n) is int and n >= 0 for n in lengths):
        raise DataError(f"has an array whose shape is not a tuple of at most {MOST_AXES} lengths.")
    if math.prod(lengths) * dtype.itemsize != len(content):
        raise DataError(
            f"has an array of shape {lengths} and type {dtype}, {math.prod(lengths)} times "
            f"{dtype.itemsize} bytes, over {len(content)} bytes."
        )
    return np.frombuffer(content, dtype).reshape(lengths, order=order)
