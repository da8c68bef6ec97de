"""The harness measures what it says, and contenders do the same work."""

import importlib.util
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks import classification, compare, core, harness, memory, run
from maml_jax.networks import products

ROOT = Path(__file__).resolve().parents[1]


def test_a_planted_slowdown_is_found():
    fast = harness.sample_times(lambda: time.sleep(0.005), 0.1)
    slow = harness.sample_times(lambda: time.sleep(0.010), 0.1)
    fast, slow = (harness.summarize("sleep", s, None, None) for s in (fast, slow))
    assert 1.5 < slow.median_ms / fast.median_ms < 2.5
    assert fast.low_ms <= fast.median_ms <= fast.high_ms


def measurements(**medians):
    rows = [{"name": n, "median_ms": m, "low_ms": 0.9 * m, "high_ms": 1.1 * m}
            for n, m in medians.items()]  # fmt: skip
    return {"environment": {"device": "cpu"}, "suites": {"core": rows}}


def test_files_are_compared_by_ratio_and_spread(tmp_path, capsys):
    before, after = measurements(a=1.0, b=1.0, gone=3.0), measurements(a=1.1, b=2.0, new=1.0)
    same, slow = compare.compare(before, after)
    assert (same.name, same.verdict) == ("core: a", "")
    assert (slow.name, slow.verdict) == ("core: b", "slower")
    assert slow.low < slow.after / slow.before == 2.0 < slow.high
    assert compare.compare(after, before)[1].verdict == "faster"
    paths = [tmp_path / name for name in ("before.json", "after.json")]
    for path, found in zip(paths, (before, after), strict=True):
        path.write_text(json.dumps(found))
    with pytest.raises(SystemExit) as stop:
        compare.main(["compare", *map(str, paths)])
    assert stop.value.code == 1
    assert re.search(r"core: b +1 +2 +2.00 +1.64 to 2.44 +slower", capsys.readouterr().out)
    paths[0].write_text("[]")
    with pytest.raises(SystemExit, match="is no file of"):
        compare.read(str(paths[0]))


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


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
def test_contenders_on_images_give_our_meta_gradient():
    from benchmarks import image_peers

    case = image_peers.OMNIGLOT_20._replace(ways=3, tasks=2, steps=2)
    exact = image_peers.reference(case, "float64")
    for name, make in image_peers.torch_contenders():
        if "compiled" not in name:  # takes minutes
            check, _ = make(case, exact.params, exact.tasks)
            image_peers.assert_agrees(name, check(), exact)


def test_products_are_counted_through_loops():
    def fn(a, b):
        step = lambda x, _: (x @ b, None)
        return jax.lax.scan(step, products.matmul(a, b), length=3)[0]

    jaxpr = jax.make_jaxpr(fn)(jnp.ones((2, 5)), jnp.ones((5, 5))).jaxpr
    assert classification.count_products(jaxpr) == 4 * 2 * (2 * 5 * 5)


def test_a_meta_step_of_omniglot_is_counted_by_hand():
    """First order, one inner step: three times a forward pass on support and on query images."""
    case = classification.OMNIGLOT_5._replace(tasks=1)
    layers = ((14, 1), (7, 64), (4, 64), (2, 64))
    forward = [2 * side**2 * 9 * channels * 64 for side, channels in layers]
    head = 2 * 64 * 5
    # The first layer's input needs no gradient: two products there, three elsewhere.
    expected = 2 * 5 * (2 * forward[0] + 3 * (sum(forward[1:]) + head))
    found = classification.products_of(case, "first_order")
    assert abs(found / expected - 1) < 0.01


def test_the_image_benchmarks_train_what_the_experiments_train():
    from experiments import mini_imagenet, omniglot

    for case in (*classification.CASES, classification.MINI_5_SHOT):
        if case.name.endswith("15 queries"):
            continue  # a cell of later work
        experiment = mini_imagenet if case.data == "mini_imagenet" else omniglot
        config = experiment.Config(num_ways=case.ways, num_shots=case.shots)
        assert (
            config.train_queries,
            config.num_tasks,
            config.inner_steps,
            config.inner_lr,
            config.image_shape,
        ) == (case.queries, case.tasks, case.steps, case.inner_lr, case.image_shape)


def test_memory_is_measured_and_drawn(tmp_path, monkeypatch):
    """In this process, which is quicker than one for each row."""
    monkeypatch.setattr(memory, "in_fresh_process", lambda fn, *args: fn(*args))
    monkeypatch.setattr(memory, "FIXED_WIDTH", 16)
    monkeypatch.setattr(memory, "FIXED_STEPS", 3)
    rows = memory.memory_rows((1, 3), (8, 16), ("reverse", "mixed"), examples=500, seconds=0.01)
    points = [(row["inner_steps"], row["width"]) for row in rows]
    assert points == [(s, w) for s, w in ((1, 16), (3, 16), (3, 8)) for _ in range(2)]
    planned = {(r["mode"], r["inner_steps"], r["width"]): r["temporary_mb"] for r in rows}
    assert planned["reverse", 3, 8] < planned["reverse", 3, 16]
    assert planned["reverse", 1, 16] < planned["reverse", 3, 16]
    assert planned["mixed", 3, 16] < planned["reverse", 3, 16]
    assert all(row["median_ms"] > 0 and row["samples"] >= 1 for row in rows)
    rows[0]["resident_mb"] = None  # a system that does not tell
    run.write_memory_chart(tmp_path / "memory.json", rows)
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")
    lines = (tmp_path / "memory.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines if line[:1].isdigit()] == ["1", "3", "8", "16"]
    assert "?" in next(line for line in lines if line.startswith("1 "))


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
