"""The suites train what the experiments train, and their counts equal those by hand."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from conftest import PATIENCE_S

from benchmarks import bounds, problems, programs, run
from benchmarks.suites import accelerator, classification, equivalence, memory, scaling, startup
from benchmarks.suites.memory_chart import write_memory_chart
from maml_jax.kernels import products

ROOT = Path(__file__).resolve().parents[1]


def test_every_suite_exists():
    """Reads the modules' text, because some import packages that may be missing."""
    for name, module in {**run.SUITES, **run.CORE_PER_DEVICE}.items():
        path = ROOT / "benchmarks" / f"{module.replace('.', '/')}.py"
        assert f"def {name}_suite(" in path.read_text()
        assert f"\n{name} " in run.__doc__


def test_a_compiled_program_agrees_with_the_formulas():
    """On 8 devices: one all-reduce of 4 bytes a parameter and metric, 8 a task (loss, finite)."""
    setup = problems.sinusoid(num_tasks=16)
    program = setup.program(2)
    compiled = program.compile()
    row = scaling.facts(compiled, setup, program, 8)
    assert row["agree"] == "yes"
    assert (row["all_reduces"], row["tasks_a_device"]) == (1, 2)
    # 1-40-40-1: 1,761 parameters; support and query loss; of 16 tasks the loss, and whether finite.
    assert row["all_reduce_bytes"] == 4 * (1761 + 2 + 16 + 16)
    temporary = compiled.memory_analysis().temp_size_in_bytes
    by_formula = scaling.scratch_bytes(setup, 2, 2, row["all_reduce_bytes"])
    assert abs(temporary / by_formula - 1) < 0.25  # the compiler's share
    assert scaling.facts(compiled, setup, program, 4)["agree"] == "NO"


def test_all_reduces_are_counted_in_a_programs_text():
    text = """
      %all-reduce.1 = f32[3,5]{1,0} all-reduce(%x), replica_groups={}
      %s = (bf16[7]{0}, s32[]) all-reduce-start(%a, %b), channel_id=1
      %d = bf16[7]{0} all-reduce-done(%s)
      %g = f32[8]{0} all-gather(%y)
    """
    counts = programs.collectives(text)
    assert (counts["all-reduce"], counts["all-gather"], counts["all-to-all"]) == (2, 1, 0)
    assert programs.all_reduce_bytes(text) == 4 * 15 + 2 * 7 + 4


@pytest.mark.parametrize("product", [jnp.matmul, products.matmul])
def test_products_are_counted_through_loops(product):
    """Three products of 2 x 5 by 5 x 5: operations, and bytes of operands and results."""

    def fn(a, b):
        return jax.lax.scan(lambda x, _: (product(x, b), None), a, length=3)[0]

    jaxpr = jax.make_jaxpr(fn)(jnp.ones((2, 5)), jnp.ones((5, 5))).jaxpr
    assert list(programs.products_in(jaxpr)) == [(3 * 2 * 50.0, 3 * 4 * (10 + 25 + 10.0))]


def test_a_meta_step_of_omniglot_is_counted_by_hand():
    """First order, one inner step: the work of three forward passes on each of both batches."""
    case = problems.OMNIGLOT_5._replace(tasks=1)
    layers = ((14, 1), (7, 64), (4, 64), (2, 64))
    forward = [2 * side**2 * 9 * channels * 64 for side, channels in layers]
    head = 2 * 64 * 5
    # The first layer's input needs no gradient: it has two products, the other layers three.
    expected = 2 * 5 * (2 * forward[0] + 3 * (sum(forward[1:]) + head))
    operations, _ = classification.work_of(case, "first_order")
    assert abs(operations / expected - 1) < 0.01


def test_the_benchmarks_train_what_the_experiments_train():
    """The tasks, rates and meta-batches are those of the preset "paper"."""
    from experiments import mini_imagenet, omniglot
    from experiments.sinusoid import Config

    paper = Config()
    assert (paper.num_tasks, paper.train_shots, paper.inner_lr) == (
        problems.NUM_TASKS,
        problems.SHOTS,
        problems.INNER_LR,
    )
    for case in (*classification.CASES, problems.MINI_5_SHOT):
        if case.name.endswith("15 queries"):
            continue  # not in the paper
        experiment = mini_imagenet if case.data == "mini_imagenet" else omniglot
        config = experiment.Config(num_ways=case.ways, num_shots=case.shots)
        assert (
            config.train_queries,
            config.num_tasks,
            config.inner_steps,
            config.inner_lr,
            config.image_size,
        ) == (case.queries, case.tasks, case.steps, case.inner_lr, case.image_shape[0])


@pytest.mark.slow
def test_memory_is_measured_and_drawn(tmp_path, monkeypatch):
    """Runs in this process, which is faster than a new one for each row."""
    monkeypatch.setattr(memory, "in_fresh_process", lambda fn, *args: fn(*args))
    monkeypatch.setattr(memory, "FIXED_WIDTH", 16)
    monkeypatch.setattr(memory, "FIXED_STEPS", 3)
    suite = memory.memory_suite((1, 3), (8, 16), ("reverse", "mixed"), 500, 0.01)
    rows = list(suite)
    points = [(row["inner_steps"], row["width"]) for row in rows]
    assert points == [(s, w) for s, w in ((1, 16), (3, 16), (3, 8)) for _ in range(2)]
    planned = {(r["mode"], r["inner_steps"], r["width"]): r["temporary_mb"] for r in rows}
    assert planned["reverse", 3, 8] < planned["reverse", 3, 16]
    assert planned["reverse", 1, 16] < planned["reverse", 3, 16]
    assert planned["mixed", 3, 16] < planned["reverse", 3, 16]
    assert all(row["median_ms"] > 0 and row["samples"] >= 1 for row in rows)
    rows[0]["resident_mb"] = None  # on systems other than Linux
    write_memory_chart(tmp_path / "memory.json", rows)
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")
    lines = (tmp_path / "memory.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines if line[:1].isdigit()] == ["1", "3", "8", "16"]
    assert "?" in next(line for line in lines if line.startswith("1 "))


@pytest.mark.slow
def test_a_hundred_steps_fit_where_reverse_mode_does_not():
    fits = {row["mode"]: row["fits"] for row in memory.fits_suite()}
    assert fits["mixed"] == "yes"
    assert fits["reverse"].startswith("NO")
    assert "ut of memory" in fits["reverse"]


PEAKS = bounds.Peaks(1000.0, 500.0, 2000.0, 100.0, 5.0)


def test_the_limit_that_bounds_a_program():
    """A device of 1,000 GFLOP/s and 100 GB/s does at most 1e9 operations and 1e8 bytes in 1 ms."""
    row = bounds.nearest(1.0, (0.5e9, 0.4e8), PEAKS)
    assert row == {"bound by": "arithmetic", "arithmetic": 0.5, "memory": 0.4}
    assert bounds.nearest(1.0, (0.1e9, 0.9e8), PEAKS)["bound by"] == "memory"
    assert bounds.nearest(1.0, (0.1e9, 0.1e8), PEAKS)["bound by"] == "launches"


@pytest.fixture
def probes(monkeypatch):
    """Replaces the suite's probes by three: a short one, one that fails, and a long one."""

    def fail():
        raise ValueError("out of memory\nand much more")

    made = [
        accelerator.Probe("first", 1, lambda: [{"name": "first", "median_ms": 2.0, "case": "a"}]),
        accelerator.Probe("broken", 1, fail),
        accelerator.Probe("long", 1000, lambda: [{"name": "long", "median_ms": 6.0, "case": "a"}]),
    ]
    monkeypatch.setattr(accelerator.Bench, "probes", lambda self: made)
    monkeypatch.setattr(accelerator, "measure_peaks", lambda *args: PEAKS)


def test_probes_beyond_the_budget_are_listed_and_run_later(probes):
    saved = []
    rows = accelerator.accelerator_suite(50.0, save=lambda rows: saved.append(len(rows)))
    assert saved == [2, 3, 4]
    by_name = {row["name"]: row for row in rows}
    assert by_name["device"]["gflops"] == 1000.0
    assert by_name["broken"]["error"] == "out of memory"
    assert by_name["long"]["not run"].endswith("s were left")
    rows[1]["median_ms"] = 3.0  # not measured again
    rows = accelerator.accelerator_suite(5000.0, done=rows)
    assert [row["name"] for row in rows] == ["device", "first", "broken", "long"]
    short = {row["name"]: row for row in accelerator.summary(rows)}
    assert short["long"]["times_ours"] == 2.0
    assert short["broken"]["error"] == "out of memory"


def test_a_wrong_meta_gradient_is_detected(monkeypatch):
    """Choices agree on a small network; one with an error of 1 % does not."""
    choices = ({}, {"mode": "mixed", "batching": "scan"})
    monkeypatch.setattr(equivalence, "CHOICES", choices)
    monkeypatch.setattr(equivalence, "TOLERANCE", {"highest": 1e-3})
    case, real = equivalence.CASE._replace(ways=2, tasks=3, steps=1), equivalence._gradient

    def planted(case, options):
        wrong = 1.01 if options["batching"] == "scan" else 1.0
        return lambda p, t: jax.tree.map(lambda g: g * wrong, real(case, options)(p, t))

    monkeypatch.setattr(equivalence, "_gradient", planted)
    rows = equivalence.equivalence_rows(case, num_filters=2, num_layers=1)
    assert [row["agree"] for row in rows] == ["yes", "NO"]


@pytest.mark.slow
def test_the_accelerator_suite_runs_on_a_cpu(tmp_path):
    path = tmp_path / "accelerator.json"
    line = [sys.executable, "-m", "benchmarks.run", "--suite=accelerator", "--quick",
            "--cpu_devices=1", f"--json={path}"]  # fmt: skip
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(path.read_text())["suites"]["accelerator"]
    assert not [row for row in rows if "error" in row or row.get("agree") == "NO"]
    assert len([row for row in rows if "meta_steps_per_s" in row]) >= 5


@pytest.mark.slow
def test_startup_is_timed_to_the_first_dispatch(tmp_path):
    """Starts a small run, waits for its first line and its reported compile time, and stops it."""
    command = ["experiments.sinusoid", "--meta_steps=200", "--steps_per_call=20", "--methods=maml"]
    cache = {**startup.CACHE, "JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    cold, warm = (startup.first_line(command, cache, 120.0) for _ in range(2))
    assert any(tmp_path.iterdir())
    for start in (cold, warm):
        assert start["meta_steps"] == 20
        assert 0 < start["compile_s"] < start["first_line_s"]
    assert warm["compile_s"] < cold["compile_s"]
    with pytest.raises(RuntimeError, match=r"(?s)stopped with 2.*inner_lr"):
        startup.first_line(["experiments.sinusoid", "--inner_lr=-1"], {}, 120.0)
