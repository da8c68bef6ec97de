"""Killed, stopped or damaged runs give an undisturbed run's results after they resume."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import KEEP_COMPILED, PATIENCE_S, QUICK

from experiments import sinusoid
from experiments.core import checkpoints, runner
from experiments.core.logbook import read_metrics

ROOT = Path(__file__).resolve().parents[1]
FLAGS = [
    "--methods=maml,pretrained",
    "--meta_steps=1000",
    "--steps_per_call=10",
    "--num_tasks=4",
    "--hidden_sizes=8",
    "--num_shots=5",
    "--eval_steps=2",
    "--eval_tasks=10",
    "--checkpoint_every_s=0.05",
]


def start(workdir, *more):
    line = [sys.executable, "-m", "experiments.sinusoid", f"--workdir={workdir}", *FLAGS, *more]
    environment = {**os.environ, **KEEP_COMPILED, "XLA_FLAGS": QUICK}
    return subprocess.Popen(
        line, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(workdir, *more):
    process = start(workdir, *more)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    return out, err


def outcome(workdir):
    """Returns all results that must not depend on interruptions."""
    settings = json.loads((workdir / "config.json").read_text())
    run = runner.load(sinusoid.EXPERIMENT, workdir)
    digests = {
        name: checkpoints.digest(checkpoints.to_host(state)) for name, state in run.states.items()
    }
    rows = json.loads((workdir / "results.json").read_text())["rows"]
    losses = [(e["stage"], e["step"], e["loss"]) for e in read_metrics(workdir)]
    return settings, digests, rows, losses


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(workdir)
    return outcome(workdir)


def wait_for_progress(workdir, process, entries):
    """Waits until the run has logged so many dispatches or has ended."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if len(read_metrics(workdir)) >= entries or process.poll() is not None:
            return
        time.sleep(0.01)
    raise AssertionError("no progress")


def killed_and_resumed(workdir, kills, seed):
    chance = random.Random(seed)
    for _ in range(kills):
        process = start(workdir)
        already = len(read_metrics(workdir))
        wait_for_progress(workdir, process, already + chance.randint(1, 40))
        time.sleep(chance.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(workdir)
    return outcome(workdir)


def test_killed_twice(undisturbed, tmp_path):
    assert killed_and_resumed(tmp_path / "run", 2, seed=0) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_many_times(undisturbed, tmp_path, seed):
    assert killed_and_resumed(tmp_path / "run", 5, seed=seed) == undisturbed


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_asked_to_stop(undisturbed, tmp_path, number, code):
    workdir = tmp_path / "run"
    process = start(workdir)
    wait_for_progress(workdir, process, 20)
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, err
    assert "stopping after this dispatch; Ctrl-C again stops at once" in err
    assert "saved. The same command continues from there" in err
    assert "Traceback" not in err
    # The checkpoint is of the last step: nothing is computed twice.
    entries = read_metrics(workdir)
    store = checkpoints.Checkpoints(workdir / "checkpoints" / entries[-1]["stage"])
    assert store.steps()[-1] == entries[-1]["step"]
    store.close()
    finish(workdir)
    assert outcome(workdir) == undisturbed


def test_a_damaged_newest_checkpoint(undisturbed, tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir)
    wait_for_progress(workdir, process, 50)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE_S)
    newest = max(
        (workdir / "checkpoints" / "maml").iterdir(),
        key=lambda p: int(p.name) if p.name.isdigit() else -1,
    )
    files = [p for p in (newest / "state").rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:20])
    _, err = finish(workdir)
    assert "is damaged and is skipped" in err
    assert outcome(workdir) == undisturbed


def test_a_compilation_cache_is_used_and_does_not_change_results(undisturbed, tmp_path):
    cache = tmp_path / "cache"
    compile_s = []
    for name in ("cold", "warm"):
        out, _ = finish(tmp_path / name, f"--compilation_cache={cache}")
        assert outcome(tmp_path / name) == undisturbed
        compile_s.append(float(re.search(r"([\d.]+) s of them spent compiling", out).group(1)))
    assert any(cache.iterdir())
    assert compile_s[1] < compile_s[0]


def test_a_second_process_is_refused(tmp_path):
    workdir = tmp_path / "run"
    first = start(workdir, "--meta_steps=1000000")
    wait_for_progress(workdir, first, 1)
    second = start(workdir, "--meta_steps=1000000")
    _, err = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 2
    assert "another process is running" in err
    first.kill()
    first.communicate()


def test_quiet_output_and_an_unwritable_directory(tmp_path):
    if os.geteuid() == 0:
        target = Path("/proc/maml_jax_run")  # not writable even for root
    else:
        target = tmp_path / "locked" / "run"
        target.parent.mkdir(mode=0o500)
    process = start(target)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert "error:" in err
    assert "Traceback" not in err
