"""Runs of several processes over sockets give one process's results, and survive a death."""

import json
import os
import re
import signal
import socket
import time
from pathlib import Path

import distributed_worker
import numpy as np
import pytest
from conftest import PATIENCE_S, QUICK, start_python

from experiments.core.logbook import read_metrics

ROOT = Path(__file__).resolve().parents[1]
FLAGS = [
    "--methods=maml,pretrained",
    "--meta_steps=300",
    "--steps_per_call=10",
    "--num_tasks=4",
    "--hidden_sizes=8",
    "--num_shots=5",
    "--eval_steps=2",
    "--eval_tasks=12",
]


def free_port():
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return taken.getsockname()[1]


def launch(arguments, **variables):
    environment = {**os.environ, "XLA_FLAGS": QUICK, "JAX_PLATFORMS": "cpu", **variables}
    return start_python(arguments, environment)


IMAGE_FLAGS = [
    "--dataset=synthetic",
    "--num_ways=3",
    "--meta_steps=20",
    "--num_tasks=4",
    "--num_filters=4",
    "--image_size=12",
    "--eval_tasks=8",
    "--protocols=transductive",
    "--set=num_layers=2",
    "--set=validate_every=10",
    "--set=validation_tasks=8",
    "--set=report_steps=1",
    "--set=eval_steps=1",
    "--set=eval_queries=0",
    "--set=steps_per_call=5",
    "--set=data_placement=sharded",
]


def start_run(workdir, *more, name="sinusoid"):
    flags = FLAGS if name == "sinusoid" else IMAGE_FLAGS
    return launch(["-m", f"experiments.{name}", f"--workdir={workdir}", *flags, *more])


def start_pair(workdir, *more, name="sinusoid"):
    """Starts two processes of two devices each."""
    together = [f"--coordinator=localhost:{free_port()}", "--num_processes=2", "--cpu_devices=2"]
    return [start_run(workdir, *together, f"--process_id={i}", *more, name=name) for i in range(2)]


def finish(*processes):
    outputs = [process.communicate(timeout=PATIENCE_S) for process in processes]
    for process, (_, err) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, err
    return outputs


def rows(workdir):
    return json.loads((workdir / "results.json").read_text())["rows"]


def assert_same_rows(actual, expected, tolerance):
    assert [(r["method"], r["gradient_steps"]) for r in actual] == [
        (r["method"], r["gradient_steps"]) for r in expected
    ]
    np.testing.assert_allclose(
        [r["mean"] for r in actual], [r["mean"] for r in expected], rtol=tolerance
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of one process with four devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    finish(start_run(workdir, "--cpu_devices=4"))
    return rows(workdir)


def test_two_processes_give_the_results_of_one(alone, tmp_path):
    first, second = finish(*start_pair(tmp_path / "run"))
    assert_same_rows(rows(tmp_path / "run"), alone, 1e-4)
    result = json.loads((tmp_path / "run" / "results.json").read_text())
    assert result["environment"]["device"].startswith("4 x cpu")
    assert "pretrained on all tasks" in first[0]
    # Only process 0 prints. The transport's threads mix their lines.
    transport = "Gloo Rank is connected to peer ranks Expected number of connected peer ranks is"
    assert set(re.findall("[A-Za-z]+", second[0])) <= set(transport.split())
    assert not (tmp_path / "run" / "config.json.tmp").exists()


@pytest.mark.slow
def test_members_of_two_processes(tmp_path):
    """Each process trains one of the seeds; both processes evaluate both."""
    finish(*start_pair(tmp_path / "run", "--num_seeds=2"))
    finish(start_run(tmp_path / "alone", "--cpu_devices=4", "--num_seeds=2"))
    assert_same_rows(rows(tmp_path / "run"), rows(tmp_path / "alone"), 1e-4)
    for seed in (0, 1):
        of_seed = rows(tmp_path / "run" / f"seed={seed}")
        assert_same_rows(of_seed, rows(tmp_path / "alone" / f"seed={seed}"), 1e-4)


@pytest.mark.slow
def test_images_spread_over_two_processes(tmp_path):
    """Checks data, validation and a trace, which the sinusoid does not have."""
    workdir, traces = tmp_path / "run", tmp_path / "traces"
    first, _ = finish(*start_pair(workdir, f"--profile={traces}", name="omniglot"))
    assert "classes spread over the devices" in first[0]
    finish(start_run(tmp_path / "alone", "--cpu_devices=4", name="omniglot"))
    assert_same_rows(rows(workdir), rows(tmp_path / "alone"), 1e-3)
    assert [r["best_step"] for r in rows(workdir)] == [
        r["best_step"] for r in rows(tmp_path / "alone")
    ]
    assert len(list(traces.rglob("*.xplane.pb"))) == 1  # of process 0


def test_different_flags_of_one_process_are_refused(tmp_path):
    together = [f"--coordinator=localhost:{free_port()}", "--num_processes=2"]
    pair = [
        start_run(tmp_path / "run", *together, f"--process_id={i}", f"--seed={i}") for i in (0, 1)
    ]
    errors = [process.communicate(timeout=PATIENCE_S)[1] for process in pair]
    assert any("were given different flags" in err for err in errors)
    assert all(process.returncode not in (0, None) for process in pair)


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_when_a_process_dies_the_other_ends_and_the_run_resumes(alone, tmp_path, victim):
    workdir = tmp_path / "run"
    pair = start_pair(workdir, "--checkpoint_every_s=0.1", "--heartbeat_timeout_s=20")
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if len(read_metrics(workdir)) >= 5 or any(p.poll() is not None for p in pair):
            break
        time.sleep(0.01)
    pair[victim].send_signal(signal.SIGKILL)
    _, err = pair[1 - victim].communicate(timeout=PATIENCE_S)
    pair[victim].communicate()
    assert pair[1 - victim].returncode not in (0, None)
    # From this code or from JAX's service, whichever notices first.
    assert "lost another process of this run" in err or "another task died" in err
    finish(start_run(workdir, "--cpu_devices=2"))  # on one host with half of the devices
    assert_same_rows(rows(workdir), alone, 1e-3)


def test_a_run_that_is_refused_ends_all_processes(tmp_path):
    workdir = tmp_path / "run"
    finish(start_run(workdir, "--meta_steps=10", "--methods=maml"))
    pair = start_pair(workdir, "--meta_steps=20", "--methods=maml")
    errors = [process.communicate(timeout=PATIENCE_S)[1] for process in pair]
    assert "another configuration" in errors[0]
    assert all(process.returncode not in (0, None) for process in pair)


def test_flags_that_contradict_each_other_are_named(tmp_path):
    process = start_run(tmp_path / "run", "--coordinator=localhost:1")
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert "--coordinator needs --num_processes, --process_id, too" in err


def worker(directory, steps, processes, devices):
    """Runs tests/distributed_worker.py to a meta-step and returns its output."""
    port = free_port()
    script = ROOT / "tests" / "distributed_worker.py"
    variables = {"JAX_ENABLE_X64": "1", "JAX_NUM_CPU_DEVICES": str(devices)}
    each = range(processes)
    finish(*(launch([script, port, processes, i, directory, steps], **variables) for i in each))
    with np.load(directory / f"{steps}.npz") as result:
        return dict(result)


def test_a_run_resumes_on_other_devices_and_hosts(tmp_path, x64):
    """In float64: 2 x 2 devices to step 6, then one process of 3 to step 10; also all here."""
    begun = worker(tmp_path, 6, processes=2, devices=2)
    moved = worker(tmp_path, 10, processes=1, devices=3)
    state = distributed_worker.train(distributed_worker.start(), 10, spread=False)
    stayed = distributed_worker.outcome(state)
    assert moved.keys() == stayed.keys()
    # Each of two processes had one seed; one process of 3 devices had both.
    np.testing.assert_allclose(begun["members"], stayed["members"], rtol=1e-11)
    for name, value in stayed.items():
        assert value.dtype == np.float64
        np.testing.assert_allclose(moved[name], value, rtol=1e-11, atol=1e-11)


UNREADABLE = """
import sys
from pathlib import Path
import jax
import jax.numpy as jnp
from experiments.core.checkpoints import Checkpoints

port, process, directory = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", 2, int(process))
store = Checkpoints(Path(directory))
for step in (1, 2):
    store.save(step, {"x": jnp.full(3, step, float)}, {})
read = store._restore

def refuse(step, *described):
    if step == 2:
        raise OSError("stale file handle")
    return read(step, *described)

if process == "1":
    store._restore = refuse
found = store.restore(lambda: {"x": jnp.zeros(3)}, warn=print)
print("restored", found.step, found.state["x"].tolist())
store.close()
"""


def test_all_processes_skip_a_checkpoint_that_one_cannot_read(tmp_path):
    port = free_port()
    outputs = finish(
        *(launch(["-c", UNREADABLE, port, i, tmp_path / "checkpoints"]) for i in range(2))
    )
    for (out, _), reason in zip(outputs, ("another process", "stale file handle"), strict=True):
        assert "checkpoint of step 2" in out
        assert reason in out
        assert "restored 1 [1.0, 1.0, 1.0]" in out
    assert (tmp_path / "checkpoints-2.damaged").is_dir()
