"""Factorises many small matrices on a CPU without a deadlock of jaxlib.

jaxlib 0.10.0 to 0.11.0 splits a batch of factorisations of more than 200,000 operations over XLA's
threads and waits for the parts on one of these threads. It deadlocks when as many batches run as
there are threads. Smaller batches run on the calling thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from maml_jax import checks
from maml_jax.batching import axis_size


def in_pieces(fn: Callable[..., Any], at_most: int, platform: str = "cpu") -> Callable[..., Any]:
    """Limits `fn` to `at_most` elements at once under any `vmap`; larger batches run in sequence.

    Use it for functions that factorise matrices; `factorized_at_once` returns a safe limit. Small
    pieces also fit into a CPU's caches.

    Args:
        fn: a function of one or more arrays. The result has no reverse-mode derivative.
        at_most: largest number of elements in one batch.
        platform: the back end to limit; others run `fn` under a plain `vmap`.

    Raises:
        ValueError: `at_most` is less than 1.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from maml_jax.kernels.factorizations import in_pieces
        >>> cholesky = in_pieces(jnp.linalg.cholesky, at_most=2)
        >>> jax.vmap(cholesky)(4 * jnp.ones((3, 1, 1))).ravel().tolist()
        [2.0, 2.0, 2.0]
    """
    checks.check_counts(at_most=at_most)
    return _in_pieces(fn, at_most, platform, 0)


def _in_pieces(
    fn: Callable[..., Any], at_most: int, platform: str, depth: int
) -> Callable[..., Any]:
    """`in_pieces` for arguments with `depth` leading axes."""

    @jax.custom_batching.custom_vmap
    def call(*args: Any) -> Any:
        if depth == 0:
            return fn(*args)
        lead = jnp.shape(jax.tree.leaves(args)[0])[:depth]
        count = math.prod(lead)
        flat = jax.tree.map(lambda x: x.reshape(count, *x.shape[depth:]), args)
        pieces = -(-count // at_most) if jax.default_backend() == platform else 1
        outputs = _piecewise(jax.vmap(fn), flat, -(-count // max(pieces, 1)))
        return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), outputs)

    @call.def_vmap
    def rule(size: int, batched: Any, *args: Any) -> tuple[Any, Any]:
        whole = jax.tree.map(
            lambda x, has: x if has else jnp.broadcast_to(x, (size, *jnp.shape(x))),
            args,
            tuple(batched),
        )
        outputs = _in_pieces(fn, at_most, platform, depth + 1)(*whole)
        return outputs, jax.tree.map(lambda _: True, outputs)

    return call


def _piecewise(many: Callable[..., Any], args: tuple[Any, ...], piece: int) -> Any:
    """`many(*args)`, `piece` elements at a time; `jax.lax.map` refuses leaves without elements."""
    count = axis_size(args)
    if count <= piece:
        return many(*args)
    whole, rest = divmod(count, piece)
    cut = jax.tree.map(lambda x: x[: whole * piece].reshape(whole, piece, *x.shape[1:]), args)
    outputs = jax.lax.map(lambda part: many(*part), cut)
    outputs = jax.tree.map(lambda x: x.reshape(whole * piece, *x.shape[2:]), outputs)
    if rest:
        last = many(*jax.tree.map(lambda x: x[whole * piece :], args))
        outputs = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), outputs, last)
    return outputs


def factorized_at_once(side: int, right_sides: int = 1) -> int:
    """Returns how many square matrices cost less than 200,000 operations to factorise, at least 1.

    Follows jaxlib's cost of a Cholesky factorisation and its solves: side^3 / 3, and side^2 for
    each right-hand side.

    Args:
        side: rows of each matrix.
        right_sides: number of right-hand sides per matrix; `side` for an inverse.

    Example:
        >>> from maml_jax.kernels.factorizations import factorized_at_once
        >>> factorized_at_once(side=10)
        599
    """
    return max(1, int(199_999 / max(side**3 / 3, side**2 * right_sides)))
