"""The harness measures time correctly; files of measurements are compared."""

import json
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import compare, harness, run


def test_a_slowdown_is_detected():
    fast = harness.sample_times(lambda: time.sleep(0.005), 0.1)
    slow = harness.sample_times(lambda: time.sleep(0.010), 0.1)
    # Minima: other programs affect the medians.
    assert 1.8 < min(slow) / min(fast) < 2.2
    row = harness.summarize("sleep", fast)
    assert min(fast) * 1e3 <= row["low_ms"] <= row["median_ms"] <= row["high_ms"]


def spin(seconds, took):
    """Takes at least `seconds` on any machine, and appends the real duration to `took`."""
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        pass
    took.append(time.perf_counter() - begun)


def test_the_harness_adds_less_than_one_percent():
    """Compares minima, which other programs do not affect."""
    took, looped = [], []
    samples = harness.sample_times(lambda: spin(2e-3, took), 0.4)
    assert min(samples) < 1.01 * min(took)
    step = lambda state: (spin(2e-3, looped), state)
    row = harness.measure_loop("spin", step, 0, calls=100, per_call=1)
    assert row["low_ms"] < 1.01e3 * np.percentile(looped, 10)


def test_inputs_are_rotated():
    handed = []
    key = jax.random.key(0)
    inputs = harness.variants((jnp.ones(3), jnp.arange(2), key))
    call = harness.rotating(lambda x, n, k: handed.append((x, n, k)), inputs)
    for _ in range(8):
        call()
    floats = [float(x[0]) for x, _, _ in handed]
    assert len(set(floats[:4])) == 4
    assert floats[4:] == floats[:4]
    assert len({jax.random.key_data(k).tobytes() for _, _, k in handed}) == 4
    assert len({n.unsafe_buffer_pointer() for _, n, _ in handed}) == 4
    np.testing.assert_allclose(floats, 1, atol=1e-2)


def test_measure_rotates_and_reports_compile_and_memory(monkeypatch):
    handed, rotating = [], harness.rotating
    monkeypatch.setattr(
        harness, "rotating", lambda fn, inputs: handed.extend(inputs) or rotating(fn, inputs)
    )
    row = harness.measure("product", lambda x: jnp.sin(x @ x), jnp.ones((64, 64)), seconds=0.02)
    assert row["compile_s"] > 0
    assert row["median_ms"] > 0
    assert row["temporary_mb"] is not None
    assert len({float(x[0, 0]) for (x,) in handed}) > 1


def test_measure_loop_passes_the_state_on_and_excludes_the_first_call():
    states = []

    def step(state):
        states.append(int(state))
        time.sleep(0.5 if len(states) == 1 else 0.0)
        return jax.jit(lambda s: s + 1)(state), None

    begun = time.monotonic()
    row = harness.measure_loop("slow", step, jnp.zeros((), int), calls=3, per_call=1)
    besides = time.monotonic() - begun - 0.5
    assert states == [0, 1, 2, 3]
    assert row["samples"] == 3
    assert 0 < row["compile_s"] < besides + 0.25
    assert row["high_ms"] < 500


def test_contenders_take_turns():
    turns = []
    calls = {name: lambda name=name: turns.append(name) for name in "ab"}
    samples = harness.sample_in_turns(calls, rounds=2, seconds=0.0, pause_s=0.0)
    assert turns == [*"ab", *(2 * "aabb")]  # compile; then per turn untimed, timed
    assert [len(samples[name]) for name in "ab"] == [2, 2]


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
    for path, content in zip(paths, (before, after), strict=True):
        path.write_text(json.dumps(content))
    with pytest.raises(SystemExit) as stop:
        compare.main(["compare", *map(str, paths)])
    assert stop.value.code == 1
    assert re.search(r"core: b +1 +2 +2.00 +1.64 to 2.44 +slower", capsys.readouterr().out)
    paths[0].write_text("[]")
    with pytest.raises(SystemExit, match="Expected a file written by"):
        compare.read(str(paths[0]))


def test_rows_of_one_name_are_distinguished():
    report = measurements(a=1.0)
    (row,) = report["suites"]["core"]
    report["suites"]["core"] = [row | {"devices": 1}, row | {"devices": 2, "median_ms": 5.0}]
    ratios = compare.compare(report, report)
    assert [r.name for r in ratios] == ["core: a, devices 1", "core: a, devices 2"]
    assert [r.after / r.before for r in ratios] == [1.0, 1.0]


def test_a_suite_that_fails_keeps_its_rows(capsys):
    def suite():
        yield {"name": "first"}
        raise RuntimeError("broken off")

    rows, saved = [], []
    with pytest.raises(RuntimeError, match="broken off"):
        run.collect(suite(), rows, lambda: saved.append(list(rows)))
    assert rows == [{"name": "first"}]
    assert saved == [rows]
    assert capsys.readouterr().out == "  first\n"
