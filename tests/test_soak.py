"""Tests the soak's schedule and checks, and runs a short soak, or a long one on request.

    MAML_JAX_SOAK_MINUTES=30 python -m pytest -n0 -s -m slow tests/test_soak.py

takes about an hour: a run of 30 minutes on Omniglot, and the same run disturbed ten times.
"""

import os

import pytest
import soak
from soak_disturbances import KINDS, Sample, schedule, truncate

MINUTES = os.environ.get("MAML_JAX_SOAK_MINUTES")
QUICK = [
    *("--set=report_steps=1", "--set=eval_steps=1", "--set=eval_queries=0"),
    "--protocols=transductive",
]


@pytest.mark.parametrize("seed", range(5))
def test_the_schedule_has_every_kind_at_increasing_steps(seed):
    plan = schedule(seed, 10, 1000)
    assert plan == schedule(seed, 10, 1000) != schedule(seed + 1, 10, 1000)
    assert {d.kind for d in plan} == set(KINDS)
    steps = [d.step for d in plan]
    assert len(steps) == 10
    assert steps == sorted(set(steps))
    assert steps[0] >= 1
    assert steps[-1] <= 900
    assert all(0 <= d.delay < 1 for d in plan)


def test_an_impossible_schedule_is_refused():
    with pytest.raises(ValueError, match="at least 5; received 4"):
        schedule(0, 4, 1000)
    with pytest.raises(ValueError, match="more meta-steps; received 5"):
        schedule(0, 5, 5)


def samples(megabytes, files):
    """Makes a sample for each of 90 steps, from functions of the step."""
    return [Sample(step, megabytes(step), files(step)) for step in range(90)]


@pytest.mark.parametrize(
    ("megabytes", "files", "passed"),
    [
        (lambda s: 100 if s < 20 else 1000, lambda s: 5 if s < 20 else 9, [True, True]),
        (lambda s: 1000 + 3 * s, lambda s: 9, [False, True]),
        (lambda s: 1000, lambda s: 9 + s // 30, [True, False]),
    ],
)
def test_growth_after_the_warm_up_is_detected(megabytes, files, passed):
    assert [check.passed for check in soak.growth(samples(megabytes, files), 90)] == passed


def test_half_written_files_are_detected(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "checkpoints" / "maml-10.damaged").mkdir(parents=True)
    assert soak.left_behind(tmp_path, 1).passed
    assert soak.left_behind(tmp_path, 0).outcome == "checkpoints/maml-10.damaged"
    (tmp_path / "checkpoints" / "maml" / "20.orbax-checkpoint-tmp").mkdir(parents=True)
    assert "20.orbax" in soak.left_behind(tmp_path, 1).outcome
    (tmp_path / "checkpoints" / "maml" / "20.orbax-checkpoint-tmp").rmdir()
    (tmp_path / "results.json.tmp").touch()
    assert soak.left_behind(tmp_path, 1).outcome == "results.json.tmp"
    (tmp_path / "results.json.tmp").unlink()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"ste')
    assert not soak.left_behind(tmp_path, 1).passed


def test_the_newest_checkpoint_is_cut(tmp_path):
    for name, size in (("9/large", 50), ("10/large", 100), ("10/small", 10), ("10.tmp/x", 200)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    assert truncate(tmp_path) == "cut 10/large of 100 bytes in half"
    sizes = [(tmp_path / name).stat().st_size for name in ("9/large", "10/large", "10/small")]
    assert sizes == [50, 50, 10]


def assert_passed(checks):
    for check in checks:
        print(f"{check.name}: {check.outcome}")
    assert [check for check in checks if not check.passed] == []
    kinds = {check.name.partition(". ")[2].partition(" at step")[0] for check in checks}
    assert set(KINDS) <= kinds


@pytest.mark.slow
def test_a_short_soak(tmp_path):
    """Each disturbance once, on a small network whose checkpoints are larger than its logs."""
    pytest.importorskip("tensorflow_datasets", reason="the extra `data` is not installed")
    line = [
        *(*QUICK, "--dataset=synthetic", "--num_filters=64", "--set=num_layers=2"),
        *("--image_size=14", "--num_ways=3", "--num_tasks=4", "--set=steps_per_call=10"),
        *("--eval_tasks=8", "--set=validation_tasks=8", "--set=validate_every=100"),
        *("--checkpoint_every_s=0.5", "--cpu_devices=1"),
        f"--compilation_cache={tmp_path / 'programs'}",  # only the first of seven starts compiles
    ]
    assert_passed(soak.soak(tmp_path / "soak", line, num_disturbances=5, steps=2000))


@pytest.mark.slow
@pytest.mark.skipif(
    MINUTES is None,
    reason="MAML_JAX_SOAK_MINUTES is not set; a short soak runs instead",
)
@pytest.mark.timeout(24 * 3600)
def test_a_long_soak(tmp_path):
    """Omniglot, with checkpoints every minute."""
    line = [*QUICK, "--checkpoint_every_s=60"]
    checks = soak.soak(tmp_path / "soak", line, num_disturbances=10, minutes=float(MINUTES))
    assert_passed(checks)
