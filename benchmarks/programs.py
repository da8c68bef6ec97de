"""Counts the matrix products of a jaxpr, and the collectives of a compiled program."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
_BITS = re.compile(r"\d+")


def collectives(text: str) -> dict[str, int]:
    """Counts the collectives of a compiled program by name.

    Args:
        text: `compiled.as_text()`. A collective in a loop counts once.
    """
    return {
        name: len(re.findall(rf" {name}(?:-start)?\(", text))  # accelerators split them in two
        for name in COLLECTIVES
    }


def all_reduce_bytes(text: str) -> int:
    """Returns the bytes that a device contributes to a compiled program's all-reduces.

    Args:
        text: as in `collectives`.
    """
    total = 0
    for result in re.findall(r"= (.*?) all-reduce(?:-start)?\(", text):
        for kind, shape in re.findall(r"([a-z]+\d+)\[([\d,]*)\]", result):
            sizes = [int(n) for n in shape.split(",") if n]
            total += int(np.prod(sizes, dtype=int)) * _bits(kind) // 8
    return total


def _bits(kind: str) -> int:
    """Returns the bits of an element of an XLA type such as f32, bf16, s8."""
    bits = _BITS.search(kind)
    return int(bits.group()) if bits else 8


def sum_products(jaxpr: Any, times: float = 1.0) -> tuple[float, float]:
    """Sums the operations and the bytes that `products_in` yields."""
    products = list(products_in(jaxpr, times))
    return sum(operations for operations, _ in products), sum(moved for _, moved in products)


def products_in(jaxpr: Any, times: float = 1.0) -> Iterator[tuple[float, float]]:
    """Yields operations, and bytes of operands and result, of each matrix product in a jaxpr.

    Args:
        jaxpr: the program. A product in a `scan` counts once an iteration; one in a `while` loop
            counts once.
        times: executions of the jaxpr.
    """
    for equation in jaxpr.eqns:
        operations = _operations(equation)
        if operations is not None:
            variables = (*equation.invars, *equation.outvars)
            yield times * operations, times * sum(_size(v.aval) for v in variables)
            continue
        repeats = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                yield from products_in(getattr(value, "jaxpr", value), times * repeats)


def _operations(equation: Any) -> float | None:
    """Returns the floating-point operations of a matrix product, None of another equation."""
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
