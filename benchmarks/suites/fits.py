"""Whether 100 second-order inner steps fit into a given amount of memory, by really limiting it.

    python -m benchmarks.suites.fits --mode=reverse --limit_mb=1000    stops: out of memory
    python -m benchmarks.suites.fits --mode=mixed --limit_mb=1000      prints the gradient's norm

The process may take so much address space beyond what JAX itself takes to start (Linux).
"""

from __future__ import annotations

import functools
import resource
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import app, flags, logging

from benchmarks.suites.memory import wide_problem
from maml_jax import MODES, meta_loss

_MODE = flags.DEFINE_enum("mode", "mixed", MODES, "How the inner loop is differentiated.")
_STEPS = flags.DEFINE_integer("inner_steps", 100, "S, inner gradient steps.", 1)
_LIMIT = flags.DEFINE_integer("limit_mb", 1000, "Memory beyond JAX's own, megabytes.", 1)


def main(argv: list[str]) -> None:
    """Compiles, limits the memory, runs."""
    del argv
    logging.set_verbosity(logging.ERROR)
    loss, params, task = wide_problem()
    options: Any = {"inner_lr": 0.01, "num_inner_steps": _STEPS.value, "mode": _MODE.value}
    fn = functools.partial(meta_loss, loss, **options)
    compiled = jax.jit(jax.grad(fn, has_aux=True)).lower(params, task).compile()
    jax.block_until_ready(jnp.ones(1000) @ jnp.ones(1000))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _LIMIT.value * 10**6
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    what = f"{_STEPS.value} inner steps, {_MODE.value}, in {_LIMIT.value:,} MB"
    try:
        grads, _ = jax.block_until_ready(compiled(params, task))
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        print(f"{what}: out of memory ({str(error).splitlines()[0][:120]})")
        sys.exit(1)
    print(f"{what}: fits; the meta-gradient's norm is {float(optax.tree.norm(grads)):.6g}")


if __name__ == "__main__":
    app.run(main)
