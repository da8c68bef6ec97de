"""Whether all is right and fast on an accelerator: one command, in under ten minutes.

    python -m benchmarks.run --suite=accelerator --budget_s=540 --json=FILE

First what the device can do; then that every choice gives the same meta-gradient; then meta-steps,
in the order of their importance. What does not fit into the budget is listed as not run; the same
command, with a file that is there, goes on with that. With `--quick` all sizes are tiny, to try the
command itself: its figures say nothing.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import classification, core, equivalence
from benchmarks.bounds import Peaks, measure_peaks, nearest
from benchmarks.classification import OMNIGLOT_5, OMNIGLOT_20, Case
from benchmarks.harness import measure_loop
from maml_jax import task_mesh
from maml_jax.batching import replicate

MINI = next(case for case in classification.CASES if case.data == "mini_imagenet")
# Of each case: the default, and the choices that defaults are to be chosen from.
LOWERINGS = [{"lowering": name} for name in ("shifts", "native")]
CHOICES: list[tuple[Case, dict[str, Any]]] = [
    *((OMNIGLOT_5, choice) for choice in LOWERINGS),
    *((OMNIGLOT_20, choice) for choice in LOWERINGS),
    *((MINI, choice) for choice in LOWERINGS),
    (OMNIGLOT_20, {"mode": "reverse"}),
    (OMNIGLOT_5, {"batching": 8}),
    (OMNIGLOT_20, {"batching": 4}),
    (MINI, {"mode": "reverse"}),
    (OMNIGLOT_5, {"batching": "scan"}),
    (OMNIGLOT_20, {"batching": "scan"}),
    (MINI, {"batching": "scan"}),
    (OMNIGLOT_5, {"mode": "mixed"}),
    (OMNIGLOT_5, {"mode": "first_order"}),
]


class Probe(NamedTuple):
    """One thing to find out.

    Attributes:
        name: of it, and of its first row.
        expected_s: seconds that must be left for it to begin; guesses, mostly of compiling.
        run: returns its rows.
    """

    name: str
    expected_s: float
    run: Callable[[], list[dict[str, Any]]]


class Bench:
    """The probes, and what they share: the sizes, and the peaks once they are known."""

    def __init__(self, quick: bool):
        self._quick = quick
        self._peaks: Peaks | None = None
        self._seconds = 0.05 if quick else 2.0
        self._network: dict[str, Any] = {"num_filters": 4, "num_layers": 2} if quick else {}

    def probes(self) -> list[Probe]:
        """In the order of their importance."""
        made = [Probe("meta-gradients agree", 90, self._equivalence)]
        made += [self._sinusoid("mixed", "vmap")]
        cases = (OMNIGLOT_5,) if self._quick else (OMNIGLOT_5, OMNIGLOT_20, MINI)
        made += [self._image(case, {}) for case in cases]
        made += self._navigation()
        made += [self._image(*pair) for pair in (CHOICES[:1] if self._quick else CHOICES)]
        made += [self._torch(case) for case in (OMNIGLOT_5, OMNIGLOT_20) if case in cases]
        made += [self._sinusoid("reverse", "vmap"), self._sinusoid("mixed", "scan")]
        return [*made, *self._locomotion()]

    def peaks(self) -> Peaks:
        """Of the device, measured once."""
        if self._peaks is None:
            self._peaks = measure_peaks(256, 4, 0.02) if self._quick else measure_peaks()
        return self._peaks

    def _equivalence(self) -> list[dict[str, Any]]:
        case = equivalence.CASE._replace(tasks=3) if self._quick else equivalence.CASE
        return equivalence.equivalence_rows(case, **self._network)

    def _sinusoid(self, mode: str, batching: str) -> Probe:
        name = f"sinusoid: {mode}, {batching}"

        def run() -> list[dict[str, Any]]:
            count = 20 if self._quick else 1000
            train = core.trainer(mode, count, batching)
            jaxpr = core.gradient_jaxpr("reverse")
            row = self._timed(name, train, core.start(), (), count, core.NUM_TASKS, jaxpr)
            return [{**row, "case": "sinusoid"}]

        return Probe(name, 30, run)

    def _image(self, case: Case, choice: dict[str, Any]) -> Probe:
        options = {"batching": _batching(), **choice}
        said = {"lowering": "default lowering", "mode": case.mode, **options}
        name = f"{case.name}: {', '.join(f'{v}' for v in said.values())}"

        def run() -> list[dict[str, Any]]:
            count = 1 if self._quick else max(5, 100 // case.steps**2)
            sized = case._replace(tasks=2) if self._quick else case
            made = {**options, **self._network}
            train, state, images = classification.train_program(sized, count, **made)
            # What is needed, which mixed mode computes some of twice: that is no work done.
            mode = "first_order" if options.get("mode") == "first_order" else "reverse"
            jaxpr = classification.gradient_jaxpr(sized, mode, **self._network)
            row = self._timed(name, train, state, (images,), count, sized.tasks, jaxpr)
            return [{**row, "case": case.name}]

        return Probe(name, 60 if case is MINI else 45, run)

    def _timed(
        self, name: str, train: Any, state: Any, data: Any, count: int, tasks: int, jaxpr: Any
    ) -> dict[str, Any]:
        """Compile time, meta-steps, memory, and what bounds them; `jaxpr` of one task."""
        state, *data = replicate((state, *data), task_mesh(tasks))
        begun = time.perf_counter()
        compiled = jax.jit(train).lower(state, *data).compile()
        compile_s = time.perf_counter() - begun
        memory, before = compiled.memory_analysis(), _peak_mb()
        step = lambda s: compiled(s, *data)
        begun = time.perf_counter()
        state, _ = jax.block_until_ready(step(state))
        calls = int(np.clip(self._seconds / (time.perf_counter() - begun), 3, 50))
        timing = measure_loop(name, step, state, calls, count)
        work = classification.sum_products(jaxpr, tasks)
        after = _peak_mb()
        return {
            **timing._asdict(),
            "meta_steps_per_s": 1e3 / timing.median_ms,
            "compile_s": compile_s,
            "temporary_mb": memory.temp_size_in_bytes / 1e6,
            # A process's peak is never reset: it is this program's only if this program raised it.
            "peak_mb": after if after is not None and after != before else None,
            **nearest(timing.median_ms, *work, self.peaks()),
        }

    def _navigation(self) -> list[Probe]:
        from benchmarks import reinforcement

        case = reinforcement.make_case(reinforcement.PAPER)
        if self._quick:
            case = case._replace(num_tasks=2)
        return self._reinforcement("navigation", case, reinforcement.SUBSAMPLE, 45)

    def _reinforcement(self, name: str, case: Any, episodes: int, expected: float) -> list[Probe]:
        from benchmarks import reinforcement

        calls, seconds = (1, 0.05) if self._quick else (8, 2.0)

        def speed() -> list[dict[str, Any]]:
            found = reinforcement.rollout_speed(case, seconds)
            return [{"name": f"{name}: rollouts", "environment_steps_per_s": found}]

        def iteration(label: str, count: int | None) -> Probe:
            whole = f"{name}: meta-iteration, curvature from {label}"
            timed = reinforcement.time_iteration
            return Probe(whole, expected, lambda: [timed(whole, case, count, calls)])

        rollouts = Probe(f"{name}: rollouts", expected, speed)
        if self._quick:
            return [rollouts, iteration("part", episodes)]
        return [rollouts, iteration("part", episodes), iteration("all", None)]

    def _torch(self, case: Case) -> Probe:
        name = f"{case.name}: torch.func"

        def run() -> list[dict[str, Any]]:
            from benchmarks import torch_on_device

            sized = case._replace(tasks=2, steps=1) if self._quick else case
            row = torch_on_device.torch_func_row(name, sized, self._seconds)
            return [{**row, "case": case.name} if "median_ms" in row else row]

        return Probe(name, 30, run)

    def _locomotion(self) -> list[Probe]:
        name = "locomotion, cheetah direction"
        if self._quick or not all(importlib.util.find_spec(n) for n in ("brax", "mujoco")):
            reason = "quick" if self._quick else "Brax and MuJoCo are not installed"
            return [Probe(name, 0, lambda: [{"name": name, "not run": reason}])]
        from benchmarks import locomotion, reinforcement

        case = locomotion.make_case("cheetah_direction", "paper")
        return self._reinforcement(name, case, reinforcement.SUBSAMPLE, 150)


def accelerator_suite(
    budget_s: float = 540.0,
    quick: bool = False,
    done: Sequence[dict[str, Any]] = (),
    save: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
) -> list[dict[str, Any]]:
    """Runs the probes that fit, most important first.

    Args:
        budget_s: wall-clock seconds. No probe begins that is not expected to end within them.
        quick: tiny sizes, to try the command.
        done: rows of an earlier command on the same device, which are not measured again.
        save: is handed all rows after each probe.
    """
    begun = time.monotonic()
    bench = Bench(quick)
    rows = [dict(row) for row in done if "not run" not in row and "error" not in row]
    have = {row.get("probe") for row in rows}
    peaks = bench.peaks()
    rows = [row for row in rows if row["name"] != "device"]
    rows.insert(0, {"name": "device", **peaks._asdict()})
    for probe in bench.probes():
        if probe.name in have:
            continue
        left = budget_s - (time.monotonic() - begun)
        if left <= 0 or (not quick and probe.expected_s > left):
            found = [{"name": probe.name, "not run": f"{max(left, 0):.0f} s were left"}]
        else:
            found = _outcome(probe)
        rows += [{**row, "probe": probe.name} for row in found]
        print(f"  {time.monotonic() - begun:5.0f} s  {probe.name}: {_short(found)}", flush=True)
        save(rows)
    return rows


def _outcome(probe: Probe) -> list[dict[str, Any]]:
    """A probe's rows; one that fails (for want of memory, say) must not end the others."""
    try:
        return probe.run()
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        return [{"name": probe.name, "error": text.splitlines()[0][:200]}]


def _short(rows: Sequence[dict[str, Any]]) -> str:
    row = rows[0]
    for key in ("error", "not run"):
        if key in row:
            return f"{key}: {row[key]}"
    if "median_ms" in row:
        return f"{row['median_ms']:.3g} ms"
    if "agree" in row:
        return f"{sum(r['agree'] == 'yes' for r in rows)} of {len(rows)}"
    return f"{row.get('environment_steps_per_s', 0):,.0f} a second"


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The short table: agreement by precision, one row a case with the best choice, what is left.

    Args:
        rows: of `accelerator_suite`.
    """
    short: list[dict[str, Any]] = []
    for precision in equivalence.TOLERANCE:
        own = [row for row in rows if row.get("precision") == precision]
        if own:
            worst = max(own, key=lambda row: row["deviation"])
            agree = "yes" if all(row["agree"] == "yes" for row in own) else "NO"
            name = f"meta-gradients, matrix precision {precision}"
            short.append({"name": name, "agree": agree, "deviation": worst["deviation"]})
    keys = (
        "name", "median_ms", "times_ours", "meta_steps_per_s", "environment_steps_per_s",
        "compile_s", "temporary_mb", "peak_mb", "bound by", "arithmetic", "memory",
    )  # fmt: skip
    for row in _with_ratios(rows):
        if "median_ms" in row or "environment_steps_per_s" in row:
            short.append({key: row[key] for key in keys if row.get(key) is not None})
    short += [
        {"name": row["name"], key: row[key]}
        for row in rows
        for key in ("error", "not run")
        if key in row
    ]
    return short


def _with_ratios(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Times each case's first row, which is the default's, or the only one."""
    first: dict[str, float] = {}
    found = []
    for row in rows:
        if "median_ms" in row and "case" in row:
            ours = first.setdefault(row["case"], row["median_ms"])
            row = {**row, "times_ours": row["median_ms"] / ours}
        found.append(row)
    return found


def _batching() -> str:
    return "scan" if jax.default_backend() == "cpu" else "vmap"


def _peak_mb() -> float | None:
    """Most memory that the process ever had on the first device; None where it is not told."""
    stats = jax.devices()[0].memory_stats()
    return None if not stats else stats.get("peak_bytes_in_use", 0) / 1e6 or None
