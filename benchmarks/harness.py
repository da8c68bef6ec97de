"""Timing: compile and steady state apart, results blocked on, median and spread."""

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

from experiments.core.process import CompileTimer

Row = dict[str, Any]  # one measurement, as a file holds it


def measure(name: str, fn: Callable[..., Any], *args: Any, seconds: float = 1.0) -> Row:
    """Compiles `fn` for some arguments and times it, on `variants` of them in turn.

    Args:
        name: of the measurement.
        fn: a function of arrays.
        *args: its arguments.
        seconds: about how long to time for.
    """
    begun = time.perf_counter()
    compiled = jax.jit(fn).lower(*args).compile()
    compile_s = time.perf_counter() - begun
    samples = sample_times(rotating(compiled, variants(args)), seconds)
    return summarize(name, samples, compile_s, planned_mb(compiled))


def variants(args: Any, count: int = 4) -> list[Any]:
    """`args`, and further inputs of the same shapes in memory of their own.

    A call on the input of the call before finds it in the cache, and its branches predicted.

    Args:
        args: a pytree of arrays. Floating-point values are scaled by a few thousandths, keys are
            changed, and other values copied.
        count: of inputs, `args` among them.
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
    """A call of `fn` on the next of its inputs, in turn, that blocks on its results.

    Args:
        fn: what is called.
        inputs: for each call the arguments.
    """
    turns = itertools.cycle(inputs)
    return lambda: jax.block_until_ready(fn(*next(turns)))


def measure_loop(
    name: str, step: Callable[[Any], Any], state: Any, calls: int, per_call: int
) -> Row:
    """Times a function that takes its own output, per inner step.

    Args:
        name: of the measurement.
        step: `state -> (state, metrics)`, donating or not. The first call compiles and is not
            timed; `compile_s` is what JAX says that it spent on compiling there.
        state: to begin with.
        calls: timed calls.
        per_call: steps that one call takes.
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
    """Seconds a call, after a warm-up; short calls are timed in groups of 5 ms or more.

    Args:
        call: what is timed; blocks on its results.
        seconds: about how long to time for.
        least: samples, however long they take.
    """
    call()
    begun = time.perf_counter()
    call()
    one = max(time.perf_counter() - begun, 1e-7)
    group = max(1, int(5e-3 / one))
    count = int(np.clip(seconds / (group * one), least, 200))
    samples = [one] if one > seconds else []  # what is slow need not be called once more
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
    """Seconds a call of several contenders, one after the other in each round.

    What the machine does meanwhile then meets all of them alike.

    Args:
        calls: by name what is timed; each blocks on its results.
        rounds: samples of each.
        seconds: about how long a sample takes; one call at least.
        pause_s: before each sample: PyTorch's idle threads spin for a while before they sleep.
    """
    for call in calls.values():
        call()  # compiles what is compiled
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
    """The row of a measurement.

    Args:
        name: what was measured.
        samples: seconds a call in the steady state.
        compile_s: seconds to trace, lower and compile; None where that was not looked at.
        temporary_mb: the compiled program's scratch memory, megabytes.

    Returns:
        `name`, `compile_s`; `median_ms`, `low_ms` and `high_ms`, the median, 10th and 90th
        percentile; `temporary_mb`; `samples`, their number.
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
    """Scratch memory of a compiled program, megabytes; None where its platform does not report."""
    analysis = compiled.memory_analysis()
    return None if analysis is None else analysis.temp_size_in_bytes / 1e6


def in_fresh_process(fn: Callable[..., Any], *args: Any) -> Any:
    """`fn(*args)` in a process of its own, whose memory nothing else has touched.

    Args:
        fn: a function of a module, which `pickle` finds by its name.
        *args: which can be pickled, as can the result.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(fn, *args).result()


def resident_mb(call: Callable[[], Any]) -> float | None:
    """By how much the process's resident memory grows, at its peak, while `call` runs.

    Megabytes; None where the operating system does not tell (it is Linux that does). Call it in a
    fresh process, and compile first: memory that was freed before is there to be used again.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _resident("VmRSS")
        call()
        return (_resident("VmHWM") - before) / 1e3
    except OSError:
        return None


def _resident(name: str) -> float:
    """A line of the process's status, kilobytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(name)))


def agreement(check: Callable[..., None], *args: Any) -> str:
    """Whether a check passes: "yes", or "NO" and by how much, as NumPy's AssertionError says."""
    try:
        check(*args)
    except AssertionError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        gist = [line for line in lines if line.startswith("Max ")] or lines or ["no reason given"]
        return f"NO: {'; '.join(gist)}"
    return "yes"
