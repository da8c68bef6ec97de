"""Times functions: compilation and steady state separately, with the median and percentiles."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from experiments.core.process import CompileTimer
from maml_jax.mesh import TASK_AXIS

Row = dict[str, Any]  # one measurement, as in the JSON file
TIMES = ("median_ms", "low_ms", "high_ms")  # columns of a `Row`
SPLIT = PartitionSpec(TASK_AXIS)  # splits the leading axis over the devices


def measure(name: str, fn: Callable[..., Any], *args: Any, seconds: float = 1.0) -> Row:
    """Compiles `fn` for `args` and times it on `variants` of them in turn.

    Args:
        name: of the measurement.
        fn: a function of arrays.
        *args: its arguments.
        seconds: approximate time to measure for.
    """
    begun = time.perf_counter()
    compiled = jax.jit(fn).lower(*args).compile()
    compile_s = time.perf_counter() - begun
    samples = sample_times(rotating(compiled, variants(args)), seconds)
    return summarize(name, samples, compile_s, planned_mb(compiled))


def variants(args: Any, count: int = 4) -> list[Any]:
    """Returns `args` and further inputs of the same shapes in separate memory.

    Repeated calls on one input would be too fast: its data are in the cache and its branches
    predicted.

    Args:
        args: a pytree of arrays. The further inputs scale floating-point values by a few
            thousandths, change keys, and copy other values.
        count: number of inputs, `args` included.
    """

    def changed(x: Any, by: int) -> Any:
        if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key):
            data = jax.random.key_data(x) + jnp.uint32(by)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        if jnp.issubdtype(jnp.result_type(x), jnp.floating):
            return x * jnp.asarray(1 + by / 1024, jnp.result_type(x))
        return jnp.array(x, copy=True)

    others = [jax.tree.map(lambda x, i=i: changed(x, i), args) for i in range(1, count)]
    return jax.block_until_ready([args, *others])


def rotating(fn: Callable[..., Any], inputs: Sequence[Sequence[Any]]) -> Callable[[], Any]:
    """Returns a function that calls `fn` on each of `inputs` in turn and blocks on the result.

    Args:
        fn: function to call.
        inputs: arguments of each call.
    """
    turns = itertools.cycle(inputs)
    return lambda: jax.block_until_ready(fn(*next(turns)))


def measure_loop(
    name: str, step: Callable[[Any], Any], state: Any, calls: int, per_call: int
) -> Row:
    """Times repeated calls `state, metrics = step(state)`; reports the time of one of their steps.

    Args:
        name: of the measurement.
        step: `state -> (state, metrics)`; may donate its argument. The first call compiles and is
            not timed; `compile_s` is the compile time that JAX reports for it.
        state: initial state.
        calls: number of timed calls.
        per_call: steps in a call.
    """
    compiles = CompileTimer.instance()
    begun = compiles.seconds
    state, _ = jax.block_until_ready(step(state))
    compile_s = compiles.seconds - begun
    samples = []
    for _ in range(calls):
        begun = time.perf_counter()
        state, _ = jax.block_until_ready(step(state))
        samples.append((time.perf_counter() - begun) / per_call)
    return summarize(name, samples, compile_s)


def sample_times(call: Callable[[], Any], seconds: float, least: int = 5) -> list[float]:
    """Samples the seconds of a call after one warm-up call.

    Short calls are timed in groups of at least 5 ms.

    Args:
        call: function to time; blocks on its results.
        seconds: approximate time to measure for.
        least: minimum number of samples, however long they take.
    """
    call()
    begun = time.perf_counter()
    call()
    one = max(time.perf_counter() - begun, 1e-7)
    group = max(1, int(5e-3 / one))
    count = int(np.clip(seconds / (group * one), least, 200))
    samples = [one] if one > seconds else []  # saves a repetition of a slow call
    count -= len(samples)
    for _ in range(count):
        begun = time.perf_counter()
        for _ in range(group):
            call()
        samples.append((time.perf_counter() - begun) / group)
    return samples


def sample_in_turns(
    calls: Mapping[str, Callable[[], Any]], rounds: int, seconds: float, pause_s: float = 0.5
) -> dict[str, list[float]]:
    """Samples the seconds of a call of several contenders, one after the other in each round.

    Other load on the machine then affects all contenders alike.

    Args:
        calls: function to time by name; each blocks on its results.
        rounds: number of samples of each.
        seconds: approximate time of a sample, which has at least one call.
        pause_s: pause before each sample, because PyTorch's idle threads spin before they sleep.
    """
    for call in calls.values():
        call()  # compiles
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(pause_s)
            call()
            begun, count = time.perf_counter(), 0
            while count == 0 or time.perf_counter() - begun < seconds:
                call()
                count += 1
            samples[name].append((time.perf_counter() - begun) / count)
    return samples


def summarize(
    name: str,
    samples: Sequence[float],
    compile_s: float | None = None,
    temporary_mb: float | None = None,
) -> Row:
    """Makes the row of a measurement.

    Args:
        name: of the measurement.
        samples: seconds of a call in the steady state.
        compile_s: seconds to trace, lower and compile; None if not measured.
        temporary_mb: scratch memory of the compiled program, in MB; None if unknown.

    Returns:
        The columns `name`, `compile_s`, `temporary_mb`; `TIMES`: the median, 10th and 90th
        percentile in milliseconds; and `samples`, their number.
    """
    low, median, high = (float(x) for x in np.percentile(np.array(samples) * 1e3, [10, 50, 90]))
    return {
        "name": name,
        "compile_s": compile_s,
        "median_ms": median,
        "low_ms": low,
        "high_ms": high,
        "temporary_mb": temporary_mb,
        "samples": len(samples),
    }


def planned_mb(compiled: Any) -> float | None:
    """Returns a compiled program's scratch memory in MB; None if the platform hides it."""
    analysis = compiled.memory_analysis()
    return None if analysis is None else analysis.temp_size_in_bytes / 1e6


def in_fresh_process(fn: Callable[..., Any], *args: Any) -> Any:
    """Returns `fn(*args)`, computed in a new process with fresh memory.

    Args:
        fn: a function at the top level of a module, so that `pickle` can import it.
        *args: picklable arguments; the result must be picklable, too.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(fn, *args).result()


def resident_mb(call: Callable[[], Any]) -> float | None:
    """Measures the peak growth of the process's resident memory while `call` runs.

    Compile first, and run in a fresh process: reused memory does not count as growth.

    Returns:
        MB, or None on systems other than Linux.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = _resident("VmRSS")
        call()
        return (_resident("VmHWM") - before) / 1e3
    except OSError:
        return None


def _resident(name: str) -> float:
    """Returns an entry of the process's status, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(name)))


def agreement(check: Callable[..., None], *args: Any) -> str:
    """Returns "yes" if a check passes, else "NO" and the error's summary.

    Args:
        check: raises an AssertionError, such as those of `numpy.testing`, on disagreement.
        *args: its arguments.
    """
    try:
        check(*args)
    except AssertionError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        gist = [line for line in lines if line.startswith("Max ")] or lines or ["no reason given"]
        return f"NO: {'; '.join(gist)}"
    return "yes"
