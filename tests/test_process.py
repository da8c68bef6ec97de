"""The process of a run: compile time, the CPU's devices and threads, and memory."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jaxlib.version
import pytest
from conftest import PATIENCE_S

from experiments.core import logbook, process
from experiments.core.config import ConfigError

COMPILE = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def timer(monkeypatch):
    """A timer that receives only the events of a test, on a clock that the test sets."""
    for name in ("register_event_duration_secs_listener", "register_event_listener"):
        monkeypatch.setattr(jax.monitoring, name, lambda _: None)
    timer = process.CompileTimer()

    def hear(start, end, event=COMPILE):
        monkeypatch.setattr(time, "monotonic", lambda: end)
        timer._listen(event, end - start)
        return timer.seconds

    hear.timer = timer
    return hear


def test_pieces_that_nest_or_overlap_count_once(timer):
    assert timer(1.0, 2.0) == 1.0
    assert timer(3.0, 4.0) == 2.0
    assert timer(0.0, 5.0) == 5.0  # contains both
    assert timer(4.0, 7.0) == 7.0  # began in another thread before the previous one ended
    assert timer(8.0, 9.0) == 8.0
    assert timer(9.0, 20.0, event="/jax/another/event") == 8.0


def test_a_compilation_that_has_not_ended_counts_so_far(timer, monkeypatch):
    assert timer(1.0, 2.0, event="/jax/core/compile/jaxpr_to_mlir_module_duration") == 1.0
    monkeypatch.setattr(time, "monotonic", lambda: 6.0)
    assert timer.timer.seconds == 1.0
    assert timer.timer.seconds_so_far == 5.0
    assert timer(2.0, 7.0) == 6.0
    monkeypatch.setattr(time, "monotonic", lambda: 9.0)
    assert timer.timer.seconds_so_far == 6.0


def test_an_evaluation_is_reported_while_it_compiles(timer):
    lines, third = [], threading.Event()

    def tell(line):
        lines.append(line)
        if len(lines) == 3:
            third.set()

    with logbook.Evaluating(tell, timer.timer, every_s=0.01):
        assert lines == ["evaluating: compiling ..."]
        assert third.wait(PATIENCE_S)
    count = len(lines)
    assert re.fullmatch(r"  evaluating: \d+ s, 0 s of them compiling", lines[1])
    time.sleep(0.05)
    assert len(lines) == count


def test_the_first_signal_is_acknowledged_and_the_second_stops_at_once(capfd):
    with process.StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT
        assert "stopping after this dispatch; Ctrl-C again stops at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_pace_of_progress_excludes_compiling(monkeypatch):
    now = iter([0.0, 100.0, 100.0, 112.0])  # 100 s of compiling and a dispatch of 2 s
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    stream = io.StringIO()
    progress = logbook.Progress("maml", 100, 0, stream)
    progress.advance(10, 2.0, loss=1.0)
    assert re.search(r"10/100 meta-steps  loss 1  5\S* meta-steps/s  18 s left", stream.getvalue())
    progress.advance(60, 12.0, loss=0.5)
    assert re.search(r"70/100 .* 5\S* meta-steps/s  6 s left", stream.getvalue())


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"JAX_NUM_CPU_DEVICES": "3"}, 3),
        ({"XLA_FLAGS": "--a=1 --xla_force_host_platform_device_count=4 --b=2"}, 4),
    ],
)
def test_the_users_layout_is_kept(monkeypatch, variables, expected):
    for name in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    chosen = []
    monkeypatch.setattr(jax.config, "update", lambda *setting: chosen.append(setting))
    assert process.devices_given() == expected
    process.lay_out_cpu(None, 2)
    assert chosen == ([("jax_num_cpu_devices", 2)] if expected is None else [])


@pytest.mark.parametrize(
    ("user_flags", "small", "expected"),
    [
        ("", True, "--xla_cpu_experimental_ynn_fusion_type="),
        ("--a=1", True, "--a=1 --xla_cpu_experimental_ynn_fusion_type="),
        ("--a=1", False, "--a=1"),
        ("--xla_cpu_experimental_ynn_fusion_type=X", True, None),
        ("flags.txt", True, None),
    ],
)
def test_small_kernels_use_xlas_emitter(monkeypatch, user_flags, small, expected):
    """Unless the user sets the flag or names a file of flags."""
    monkeypatch.setattr(jaxlib.version, "__version_info__", (0, 10, 2))
    monkeypatch.setenv("XLA_FLAGS", user_flags)
    process.lay_out_cpu(None, None, small)
    assert os.environ["XLA_FLAGS"] == (user_flags if expected is None else expected)


@pytest.mark.parametrize(
    ("version", "has"), [((0, 9, 2), 0), ((0, 10, 0), 1), ((0, 11, 2), 1), ((0, 12, 0), 0)]
)
def test_no_flag_for_an_xla_that_may_lack_it(monkeypatch, version, has):
    monkeypatch.setattr(jaxlib.version, "__version_info__", version)
    monkeypatch.setenv("XLA_FLAGS", "")
    process.lay_out_cpu(None, None, True)
    assert ("ynn" in os.environ["XLA_FLAGS"]) == has


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_the_system_refuses_more_memory_than_it_has():
    """It would otherwise kill the process once the memory is used."""
    code = (
        "import numpy as np\n"
        "from experiments.core import process\n"
        "process.host_memory = lambda: 1 << 30\n"
        "process.free_swap = lambda: 0\n"
        "process.limit_memory()\n"
        "kept = np.ones(1 << 26)\n"  # 0.5 of 1 GiB
        "try:\n"
        "    np.empty((process.num_cores() + 8) << 27)\n"
        "except MemoryError:\n"
        "    print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.stdout == "refused\n", done.stderr


def test_arrays_are_measured_before_they_are_allocated(monkeypatch):
    monkeypatch.setattr(process, "available_memory", lambda: 1000)
    monkeypatch.setattr(process, "free_swap", lambda: 0)
    shapes = {"w": jax.ShapeDtypeStruct((5, 5), "float64"), "b": jax.ShapeDtypeStruct((50,), "f4")}
    process.check_room("the state", {"w": shapes["w"]})
    process.check_room("the state", shapes)
    with pytest.raises(MemoryError, match=r"the state needs 0 MB, and 0 MB are left"):
        process.check_room("the state", [shapes, shapes["w"], jax.ShapeDtypeStruct((600,), bool)])


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("No visible GPU.\nmore"), "No visible GPU"),
        (AssertionError(), "none exist"),
    ],
)
def test_devices_that_do_not_start(monkeypatch, error, reason):
    def refuse():
        raise error

    monkeypatch.setattr(jax, "devices", refuse)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(ConfigError, match=rf"\(JAX_PLATFORMS='cuda'\): {reason}\. Leave JAX_PLAT"):
        process.check_devices()
