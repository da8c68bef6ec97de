"""What a program says of itself: its matrix products, its collectives, and what these carry."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jax
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
    bits = _BITS.search(kind)
    return int(bits.group()) if bits else 8


def sum_products(jaxpr: Any, times: float = 1.0) -> tuple[float, float]:
    """Sums of what `products_in` yields."""
    products = list(products_in(jaxpr, times))
    return sum(operations for operations, _ in products), sum(moved for _, moved in products)


def products_in(jaxpr: Any, times: float = 1.0) -> Iterator[tuple[float, float]]:
    """For each matrix product in a jaxpr its operations, and bytes of its operands and result.

    Args:
        jaxpr: in which products in a loop are counted as often as it turns. A loop that ends by a
            condition is taken to turn once.
        times: that it is run.
    """
    for equation in jaxpr.eqns:
        operations = _operations(equation)
        if operations is not None:
            variables = (*equation.invars, *equation.outvars)
            yield times * operations, times * sum(_size(v.aval) for v in variables)
            continue
        turns = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                yield from products_in(getattr(value, "jaxpr", value), times * turns)


def _operations(equation: Any) -> float | None:
    """Of one product; None for what is none."""
    name, out = equation.primitive.name, equation.outvars[0].aval.shape if equation.outvars else ()
    if name == "gemm":
        a = equation.invars[0].aval.shape
        return 2.0 * float(np.prod(out)) * (a[-2] if equation.params["transpose_a"] else a[-1])
    if name == "conv":
        a, b = (v.aval.shape for v in equation.invars)
        output, image = {"output": (out, a), "input": (a, out), "kernel": (b, a)}[
            equation.params["form"]
        ]
        kernel = equation.params["geometry"].size
        return 2.0 * float(np.prod(output)) * float(np.prod(kernel)) * image[-1]
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        inner = np.prod([equation.invars[0].aval.shape[d] for d in contracted])
        return 2.0 * float(np.prod(out)) * float(inner)
    return None


def _size(aval: Any) -> float:
    return float(np.prod(aval.shape)) * aval.dtype.itemsize


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")
