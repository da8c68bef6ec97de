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
import numpy as np
import pytest
from conftest import PATIENCE_S

from benchmarks import (
    accelerator,
    bounds,
    classification,
    compare,
    core,
    equivalence,
    foreign,
    harness,
    memory,
    programs,
    run,
    scaling,
    startup,
)
from maml_jax.kernels import products

ROOT = Path(__file__).resolve().parents[1]


def test_a_planted_slowdown_is_found():
    fast = harness.sample_times(lambda: time.sleep(0.005), 0.1)
    slow = harness.sample_times(lambda: time.sleep(0.010), 0.1)
    # By the least of each: where other programs run, medians are theirs, too.
    assert 1.8 < min(slow) / min(fast) < 2.2
    timing = harness.summarize("sleep", fast, None, None)
    assert min(fast) * 1e3 <= timing.low_ms <= timing.median_ms <= timing.high_ms


def spin(seconds, took):
    """Takes that long, however busy the machine, and notes how long it took."""
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        pass
    took.append(time.perf_counter() - begun)


def test_the_harness_itself_takes_under_a_hundredth():
    """Of what it times: least against least, which another program's turns leave alone."""
    took, looped = [], []
    samples = harness.sample_times(lambda: spin(2e-3, took), 0.4)
    assert min(samples) < 1.01 * min(took)
    step = lambda state: (spin(2e-3, looped), state)
    timing = harness.measure_loop("spin", step, 0, calls=100, per_call=1)
    assert timing.low_ms < 1.01e3 * np.percentile(looped, 10)


def test_inputs_are_rotated():
    seen = []
    key = jax.random.key(0)
    inputs = harness.variants((jnp.ones(3), jnp.arange(2), key))
    call = harness.rotating(lambda x, n, k: seen.append((x, n, k)), inputs)
    for _ in range(8):
        call()
    floats = [float(x[0]) for x, _, _ in seen]
    assert len(set(floats[:4])) == 4
    assert floats[4:] == floats[:4]
    assert len({jax.random.key_data(k).tobytes() for _, _, k in seen}) == 4
    assert len({n.unsafe_buffer_pointer() for _, n, _ in seen}) == 4
    np.testing.assert_allclose(floats, 1, atol=1e-2)


def test_measure_rotates(monkeypatch):
    handed = []
    real = harness.rotating
    monkeypatch.setattr(
        harness, "rotating", lambda fn, inputs: handed.extend(inputs) or real(fn, inputs)
    )
    harness.measure("sum", jnp.sum, jnp.ones(4), seconds=0.01)
    assert len({float(x[0]) for (x,) in handed}) > 1


def test_a_program_says_what_the_formulas_say():
    """On 8 devices: one all-reduce; 4 bytes a parameter and metric, 8 a task (loss, finite)."""
    sizes = scaling.Sizes(sinusoid_steps=2)
    _, program = scaling.sinusoid_program(16, sizes)
    row, step, state = scaling.describe(program, 16, 8)
    assert row["agree"] == "yes"
    assert (row["all_reduces"], row["tasks_a_device"]) == (1, 2)
    # 1-40-40-1: 1,761 parameters; support and query loss; 16 losses, and which are not finite.
    assert row["all_reduce_bytes"] == 4 * (1761 + 2 + 16 + 16)
    assert step(state)[0].step == 2
    assert abs(row["temporary_mb"] / row["temporary_mb, formula"] - 1) < 0.25  # the compiler's own
    wrong, *_ = scaling.describe(program, 16, 4)
    assert wrong["agree"] == "NO"


def test_all_reduces_are_read_from_a_programs_text():
    text = """
      %all-reduce.1 = f32[3,5]{1,0} all-reduce(%x), replica_groups={}
      %s = (bf16[7]{0}, s32[]) all-reduce-start(%a, %b), channel_id=1
      %d = bf16[7]{0} all-reduce-done(%s)
      %g = f32[8]{0} all-gather(%y)
    """
    found = programs.collectives(text)
    assert (found["all-reduce"], found["all-gather"], found["all-to-all"]) == (2, 1, 0)
    assert programs.all_reduce_bytes(text) == 4 * 15 + 2 * 7 + 4


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


def test_rows_of_one_name_are_told_apart():
    found = measurements(a=1.0)
    (row,) = found["suites"]["core"]
    found["suites"]["core"] = [row | {"devices": 1}, row | {"devices": 2, "median_ms": 5.0}]
    ratios = compare.compare(found, found)
    assert [r.name for r in ratios] == ["core: a, devices 1", "core: a, devices 2"]
    assert [r.after / r.before for r in ratios] == [1.0, 1.0]


def test_compile_time_is_without_the_first_call():
    calls = []

    def step(state):
        calls.append(time.sleep(0.5))
        return jax.jit(lambda s: jnp.sin(s) + 0.125)(state), None

    begun = time.monotonic()
    timing = harness.measure_loop("slow", step, jnp.zeros(3), calls=1, per_call=1)
    besides = time.monotonic() - begun - 0.5 * len(calls)
    assert 0 < timing.compile_s < besides + 0.25


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


def test_a_checkout_that_is_none_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("LEARN2LEARN", raising=False)
    assert foreign.find_maml("learn2learn") is None
    monkeypatch.setenv("LEARN2LEARN", str(tmp_path))
    with pytest.raises(SystemExit, match="LEARN2LEARN must be a checkout with learn2learn/"):
        foreign.find_maml("learn2learn")


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
@pytest.mark.parametrize("steps", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_contenders_give_our_meta_gradient(steps, monkeypatch):
    from benchmarks import peers

    real = peers.torch_contenders
    # Of ten steps torch.compile unrolls all, which takes a minute.
    uncompiled = lambda: (pair for pair in real() if steps == 1 or "compiled" not in pair[0])
    monkeypatch.setattr(peers, "torch_contenders", uncompiled)
    found = peers.all_with_agreement(steps)
    assert len(found) >= 3
    for name, (step, _, agree) in found.items():
        assert agree == "yes", name
        step()


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
@pytest.mark.parametrize(
    "data", ["omniglot", pytest.param("mini_imagenet", marks=pytest.mark.slow)]
)
def test_contenders_on_images_give_our_meta_gradient(data):
    from benchmarks import image_peers

    case = image_peers.OMNIGLOT_20._replace(ways=3, tasks=2, steps=2, data=data)
    exact = image_peers.reference(case, "float64")
    for name, make in image_peers.torch_contenders():
        if "compiled" not in name:  # takes minutes
            check, _ = make(case, exact.params, exact.tasks)
            image_peers.assert_agrees(name, check(), exact)


def test_a_contender_that_disagrees_is_reported_and_the_others_go_on(monkeypatch):
    """No PyTorch here: contenders that give our meta-gradient in float64, and one a bit more."""
    from benchmarks import image_peers

    case = image_peers.OMNIGLOT_20._replace(ways=2, tasks=1, steps=1)
    given = []

    def reference(case, dtype):  # in place of compiling ours twice
        return image_peers.Reference([np.ones(3, dtype)], (), 0.5, [np.arange(1, 4, dtype=dtype)])

    def contender(factor):
        def make(case, params, tasks):
            given.append(params[0].dtype)
            exact = reference(case, params[0].dtype)
            return lambda: (exact.loss, [factor * g for g in exact.gradient]), lambda: None

        return make

    monkeypatch.setattr(image_peers, "reference", reference)
    pairs = [("off", contender(1.01)), ("off, compiled", contender(1.1)), ("right", contender(1))]
    monkeypatch.setattr(image_peers, "torch_contenders", lambda: iter(pairs))
    monkeypatch.setattr(image_peers, "_ours", lambda case, per_call: (lambda: None, per_call))
    monkeypatch.setattr(image_peers.time, "sleep", lambda seconds: None)
    rows = image_peers._compare(case, rounds=1)
    agree = {row["name"].split(": ")[1]: row["agree"] for row in rows}
    assert agree["right"] == agree["maml_jax"] == "yes"
    assert re.match("NO: Max absolute difference", agree["off"])
    assert agree["off, compiled"].startswith("NO")
    assert given.count("float64") == given.count("float32") == 3
    assert all(row["median_ms"] >= 0 for row in rows)


def test_products_are_counted_through_loops():
    def fn(a, b):
        step = lambda x, _: (x @ b, None)
        return jax.lax.scan(step, products.matmul(a, b), length=3)[0]

    jaxpr = jax.make_jaxpr(fn)(jnp.ones((2, 5)), jnp.ones((5, 5))).jaxpr
    assert classification.sum_products(jaxpr)[0] == 4 * 2 * (2 * 5 * 5)


def test_a_meta_step_of_omniglot_is_counted_by_hand():
    """First order, one inner step: three times a forward pass on support and on query images."""
    case = classification.OMNIGLOT_5._replace(tasks=1)
    layers = ((14, 1), (7, 64), (4, 64), (2, 64))
    forward = [2 * side**2 * 9 * channels * 64 for side, channels in layers]
    head = 2 * 64 * 5
    # The first layer's input needs no gradient: two products there, three elsewhere.
    expected = 2 * 5 * (2 * forward[0] + 3 * (sum(forward[1:]) + head))
    found, _ = classification.products_of(case, "first_order")
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


def test_a_suite_that_breaks_off_keeps_its_rows(capsys):
    def suite():
        yield {"name": "first"}
        raise RuntimeError("broken off")

    rows, saved = [], []
    with pytest.raises(RuntimeError, match="broken off"):
        run.collect(suite(), rows, lambda: saved.append(list(rows)))
    assert rows == [{"name": "first"}]
    assert saved == [rows]
    assert capsys.readouterr().out == "  first\n"


@pytest.mark.slow
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
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)

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


PEAKS = bounds.Peaks(1000.0, 500.0, 2000.0, 100.0, 5.0)


def test_what_bounds_a_program():
    """1 ms on a device of 1,000 GFLOP/s and 100 GB/s: 1e9 operations, 1e8 bytes are its limits."""
    found = bounds.nearest(1.0, 0.5e9, 0.4e8, PEAKS)
    assert found == {"bound by": "arithmetic", "arithmetic": 0.5, "memory": 0.4}
    assert bounds.nearest(1.0, 0.1e9, 0.9e8, PEAKS)["bound by"] == "memory"
    assert bounds.nearest(1.0, 0.1e9, 0.1e8, PEAKS)["bound by"] == "launches"


def test_bytes_of_products_are_counted_through_loops():
    def fn(a, b):
        return jax.lax.scan(lambda x, _: (x @ b, None), a, length=3)[0]

    jaxpr = jax.make_jaxpr(fn)(jnp.ones((2, 5)), jnp.ones((5, 5))).jaxpr
    assert list(classification.products_in(jaxpr)) == [(3 * 2 * 50.0, 3 * 4 * (10 + 25 + 10.0))]


@pytest.fixture
def probes(monkeypatch):
    """A suite of three probes, of which one fails and one is long."""

    def fail():
        raise ValueError("out of memory\nand much more")

    made = [
        accelerator.Probe("first", 1, lambda: [{"name": "first", "median_ms": 2.0, "case": "a"}]),
        accelerator.Probe("broken", 1, fail),
        accelerator.Probe("long", 1000, lambda: [{"name": "long", "median_ms": 6.0, "case": "a"}]),
    ]
    monkeypatch.setattr(accelerator.Bench, "probes", lambda self: made)
    monkeypatch.setattr(accelerator, "measure_peaks", lambda *args: PEAKS)


def test_what_does_not_fit_is_said_and_done_later(probes):
    saved = []
    rows = accelerator.accelerator_suite(50.0, save=lambda rows: saved.append(len(rows)))
    assert saved == [2, 3, 4]
    by_name = {row["name"]: row for row in rows}
    assert by_name["device"]["gflops"] == 1000.0
    assert by_name["broken"]["error"] == "out of memory"
    assert by_name["long"]["not run"].endswith("s were left")
    rows[1]["median_ms"] = 3.0  # is not measured again
    rows = accelerator.accelerator_suite(5000.0, done=rows)
    assert [row["name"] for row in rows] == ["device", "first", "broken", "long"]
    short = {row["name"]: row for row in accelerator.summary(rows)}
    assert short["long"]["times_ours"] == 2.0
    assert short["broken"]["error"] == "out of memory"


def test_a_wrong_meta_gradient_is_found(monkeypatch):
    """All choices agree on a small network; one whose gradient is doubled does not."""
    monkeypatch.setattr(equivalence, "LOWERINGS", ("patches", "native"))
    monkeypatch.setattr(equivalence, "MODES", ("reverse", "first_order"))
    monkeypatch.setattr(equivalence, "TOLERANCE", {"highest": 1e-3})
    case, real = equivalence.CASE._replace(ways=2, tasks=3), equivalence._gradient

    def planted(case, mode, batching, options):
        fn = real(case, mode, batching, options)
        wrong = 1.01 if batching == "scan" else 1.0
        return lambda p, t: jax.tree.map(lambda g: g * wrong, fn(p, t))

    monkeypatch.setattr(equivalence, "_gradient", planted)
    rows = equivalence.equivalence_rows(case, num_filters=2, num_layers=1)
    assert len(rows) == 5
    for row in rows:
        assert row["agree"] == ("NO" if "scan" in row["name"] else "yes"), row


@pytest.mark.slow
def test_the_accelerator_suite_runs_on_a_cpu(tmp_path):
    path = tmp_path / "found.json"
    line = [sys.executable, "-m", "benchmarks.run", "--suite=accelerator", "--quick",
            "--cpu_devices=1", f"--json={path}"]  # fmt: skip
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(path.read_text())["suites"]["accelerator"]
    assert not [row for row in rows if "error" in row or row.get("agree") == "NO"]
    assert len([row for row in rows if "meta_steps_per_s" in row]) >= 5


@pytest.mark.slow
def test_startup_is_timed_to_the_first_dispatch(tmp_path):
    """A small run, watched from outside: its first line, its own compile time, and its end."""
    command = ["experiments.sinusoid", "--meta_steps=200", "--steps_per_call=20", "--methods=maml"]
    cache = {**startup.CACHE, "JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    cold, warm = (startup.first_line(command, cache, 120.0) for _ in range(2))
    assert any(tmp_path.iterdir())
    for found in (cold, warm):
        assert found["meta_steps"] == 20
        assert 0 < found["compile_s"] < found["first_line_s"]
    assert warm["compile_s"] < cold["compile_s"]
    with pytest.raises(RuntimeError, match=r"(?s)stopped with 2.*inner_lr"):
        startup.first_line(["experiments.sinusoid", "--inner_lr=-1"], {}, 120.0)
