"""Detects derivative rules from outside JAX, which need not be the true derivatives."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any

import jax
from jax.interpreters import ad

JAX_FILES = str(Path(jax.__file__).parent) + os.sep
# Primitives whose derivative rules or contents come from outside JAX. jax 0.11 traces
# jax.lax.custom_root to the last one.
ALWAYS_OF_USERS = ("custom_vjp_call", "custom_transpose_call", "linear_call", "call_hi_primitive")


def may_not_commute(jaxpr: Any) -> bool:
    """Returns whether a program calls, at any depth, a derivative rule from outside JAX.

    The rules of JAX are derivatives of their functions, so that second derivatives commute. Other
    rules may compute anything. A rule of unknown origin counts as one from outside.

    Args:
        jaxpr: a `jax.extend.core.Jaxpr` before differentiation.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from maml_jax.derivative_rules import may_not_commute
        >>> straight_through = jax.custom_jvp(lambda x: jnp.round(x))
        >>> _ = straight_through.defjvp(lambda x, t: (jnp.round(*x), *t))
        >>> [may_not_commute(jax.make_jaxpr(f)(0.5).jaxpr) for f in (jax.nn.relu, straight_through)]
        [False, True]
    """
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        inner = _jaxprs(list(equation.params.values()))
        if name.startswith(ALWAYS_OF_USERS):
            return True
        if name == "custom_jvp_call" and not _is_custom_jvp_of_jax(equation):
            return True
        if name == "custom_linear_solve" and not all(
            _is_of_jax(_source(solver)) for solver in inner
        ):
            return True
        if any(map(may_not_commute, inner)):
            return True
        if not all(map(_is_known, _functions(ad.primitive_jvps.get(equation.primitive)))):
            return True
    return False


def _functions(rule: Any) -> list[Any]:
    """Returns the functions that make up a primitive's derivative rule."""
    if not isinstance(rule, functools.partial):
        return [rule] if callable(rule) else []
    return [fn for part in (rule.func, *jax.tree.leaves(rule.args)) for fn in _functions(part)]


def _is_known(rule: Any) -> bool:
    """Returns whether JAX or this library defines a primitive's rule."""
    return str(getattr(rule, "__module__", "")).split(".")[0] in ("jax", "jaxlib", "maml_jax")


def _jaxprs(params: Any) -> list[Any]:
    leaves = jax.tree.leaves(params, is_leaf=_is_jaxpr)
    return [getattr(leaf, "jaxpr", leaf) for leaf in leaves if _is_jaxpr(leaf)]


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def _source(traced: Any) -> tuple[str, str]:
    """Returns the name and the file of a traced function, or empty strings."""
    info = getattr(getattr(traced, "debug_info", None), "func_src_info", "")
    name, _, place = str(info).partition(" at ")
    return name, place.rpartition(":")[0]


def _is_of_jax(source: tuple[str, str]) -> bool:
    return source[1].startswith(JAX_FILES)


def _is_custom_jvp_of_jax(equation: Any) -> bool:
    """Returns whether JAX itself defines both a `custom_jvp` function and its rule.

    Excludes `jax.lax.custom_root`, which differentiates by a solver that its user writes. The
    origin of rules set by `defjvps` is unknown; they count as JAX's for functions of one argument.
    """
    name, file = _source(equation.params["call_jaxpr"].jaxpr)
    _, rule_file = rule = _source(equation.params.get("jvp_jaxpr_fun"))
    if not (_is_of_jax((name, file)) and _is_of_jax(rule)) or name == "_custom_root":
        return False
    if Path(rule_file).name == "custom_derivatives.py" and len(equation.invars) > 1:
        return False
    of_jax = (m for n, m in list(sys.modules.items()) if n == "jax" or n.startswith("jax."))
    defined = (getattr(m, name, None) for m in of_jax if getattr(m, "__file__", None) == file)
    return any(
        isinstance(fn, jax.custom_jvp)
        or isinstance(getattr(fn, "__wrapped__", None), jax.custom_jvp)
        for fn in defined
    )
