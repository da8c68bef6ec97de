"""What a compiled program says of itself: its collectives, and what they carry."""

from __future__ import annotations

import re

import numpy as np

COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
_BITS = re.compile(r"\d+")


def collectives(text: str) -> dict[str, int]:
    """How many of each collective a compiled program has.

    Args:
        text: of the program, `compiled.as_text()`. Collectives in a loop are counted once.
    """
    return {
        name: len(re.findall(rf" {name}(?:-start)?\(", text))  # in two halves on accelerators
        for name in COLLECTIVES
    }


def all_reduce_bytes(text: str) -> int:
    """Bytes that a device puts into the all-reduces of a compiled program.

    Args:
        text: as in `collectives`; an all-reduce in a loop is counted once.
    """
    total = 0
    for result in re.findall(r"= (.*?) all-reduce(?:-start)?\(", text):
        for kind, shape in re.findall(r"([a-z]+\d+)\[([\d,]*)\]", result):
            sizes = [int(n) for n in shape.split(",") if n]
            total += int(np.prod(sizes, dtype=int)) * _bits(kind) // 8
    return total


def _bits(kind: str) -> int:
    """Of an element of a type as XLA names it: f32, bf16, s8."""
    found = _BITS.search(kind)
    return int(found.group()) if found else 8
