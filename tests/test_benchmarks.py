"""The harness measures what it says, and contenders do the same work."""

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks import core, harness

ROOT = Path(__file__).resolve().parents[1]


def test_a_planted_slowdown_is_found():
    fast = harness.sample_times(lambda: time.sleep(0.005), 0.1)
    slow = harness.sample_times(lambda: time.sleep(0.010), 0.1)
    fast, slow = (harness.summarize("sleep", s, None, None) for s in (fast, slow))
    assert 1.5 < slow.median_ms / fast.median_ms < 2.5
    assert fast.low_ms <= fast.median_ms <= fast.high_ms


def test_measure_reports_compile_and_memory():
    timing = harness.measure("product", lambda x: jnp.sin(x @ x), jnp.ones((64, 64)), seconds=0.02)
    assert timing.compile_s > 0
    assert timing.median_ms > 0
    assert timing.temporary_mb is not None


def test_measure_loop_threads_the_state():
    timing = harness.measure_loop(
        "count", lambda s: (s + 1, jax.numpy.zeros(())), jnp.zeros(()), 5, 10
    )
    assert timing.samples == 5


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
def test_contenders_give_our_meta_gradient():
    from benchmarks import peers

    assert len(peers.peers_suite(rounds=1)) >= 4


@pytest.mark.slow
def test_a_hundred_steps_fit_where_reverse_mode_does_not():
    def run(mode):
        line = [sys.executable, "-m", "benchmarks.fits", f"--mode={mode}", "--limit_mb=1000"]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=600)

    mixed, reverse = run("mixed"), run("reverse")
    assert mixed.returncode == 0, mixed.stdout + mixed.stderr
    assert "fits" in mixed.stdout
    assert reverse.returncode != 0
    assert "out of memory" in reverse.stdout


def test_the_benchmarks_train_what_the_experiment_trains():
    """Same network, tasks, rate and meta-batch as preset paper."""
    from experiments.sinusoid import Config

    paper = Config()
    assert (
        paper.num_tasks,
        paper.train_shots,
        paper.inner_lr,
    ) == (core.NUM_TASKS, core.SHOTS, core.INNER_LR)
