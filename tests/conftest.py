"""Sets up eight simulated CPU devices, float64 on request, and a shared compilation cache.

Compiling takes most of the tests' time, so XLA compiles in its quickest way. `make test-all`
compiles as users do (MAML_JAX_TEST_OPTIMIZED=1), and so do some files in CI.

    MAML_JAX_TEST_PLATFORM=cuda python -m pytest -n0 -m accelerator

runs the tests that check something new on a GPU. They need one device and no CPU device; if their
tolerance is that of float32, they use float64 or the fixture `full_precision`.
"""

# ruff: noqa: E402
import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from jaxlib.version import __version_info__

os.environ.setdefault("JAX_PLATFORMS", os.environ.get("MAML_JAX_TEST_PLATFORM", "cpu"))
# XLA's quickest way: no LLVM optimization, one module for LLVM, and no MLIR for fusions (half
# the time). jaxlib 0.11 has MLIR only, and XLA ends a process that gives it a flag which it lacks.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if __version_info__ < (0, 11):
    QUICK += " --xla_cpu_use_fusion_emitters=false"
if os.environ["JAX_PLATFORMS"] != "cpu" or os.environ.get("MAML_JAX_TEST_OPTIMIZED"):
    QUICK = ""
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {QUICK}".strip())

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax import Task

# A compilation cache shared by the commands that tests start.
PROGRAMS = tempfile.mkdtemp(prefix="maml_jax_programs_")
atexit.register(shutil.rmtree, PROGRAMS, ignore_errors=True)

# Commands keep compiled programs and prepared data here, not in the user's cache.
os.environ["MAML_JAX_CACHE"] = tempfile.mkdtemp(prefix="maml_jax_cache_")
atexit.register(shutil.rmtree, os.environ["MAML_JAX_CACHE"], ignore_errors=True)
KEEP_COMPILED = {
    "JAX_COMPILATION_CACHE_DIR": PROGRAMS,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}

# Seconds until a command counts as hanging: many times its duration on a slow, busy machine.
PATIENCE_S = 3000

# In this process, too, runs that are repeated, resumed or loaded compile the same programs.
jax.config.update("jax_compilation_cache_dir", PROGRAMS)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def start_python(arguments, environment):
    """Starts Python in the repository, with pipes for its output."""
    root = Path(__file__).resolve().parents[1]
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=root,
        env={**environment, "PYTHONPATH": str(root)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture
def x64():
    """Enables float64 for one test, so that differences are not due to rounding."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def full_precision():
    """Computes float32 products in float32 for one test; accelerators default to TF32."""
    with jax.default_matmul_precision("highest"):
        yield


def mlp_params(key, sizes=(3, 16, 16, 4), dtype=jnp.float64):
    """Makes a tanh network's parameters, large enough for the curvature to matter."""
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {
            "w": jax.random.normal(k, (a, b), dtype) / a**0.5,
            "b": 0.1 * jnp.arange(b, dtype=dtype),
        }
        for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def cross_entropy(params, batch):
    """Returns the cross-entropy of integer labels, and metrics."""
    x, labels = batch
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    logits = x @ params[-1]["w"] + params[-1]["b"]
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
    accuracy = jnp.mean(jnp.argmax(logits, -1) == labels)
    return -jnp.mean(picked), {"accuracy": accuracy, "size": jnp.mean(logits**2)}


def classification_task(key, num_tasks=None, dtype=jnp.float64):
    """Draws random inputs and labels, with a leading task axis if `num_tasks` is given."""
    lead = () if num_tasks is None else (num_tasks,)

    def batch(k):
        a, b = jax.random.split(k)
        x = jax.random.normal(a, (*lead, 8, 3), dtype)
        return x, jax.random.randint(b, (*lead, 8), 0, 4)

    support, query = jax.random.split(key)
    return Task(batch(support), batch(query))


def assert_trees_close(actual, expected, tolerance):
    """Asserts that two pytrees have the same structure and close leaves."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)
