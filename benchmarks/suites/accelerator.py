"""Checks correctness and speed on an accelerator: one command, in under ten minutes.

    python -m benchmarks.run --suite=accelerator --budget_s=540 --json=FILE

The suite measures the device's limits, checks that all choices of lowering, mode and batching give
the same meta-gradient, and times meta-steps, most important first. Probes that do not fit into the
budget are listed as not run; the same command with the same file runs them. `--quick` makes all
sizes tiny, to try the command; its figures mean nothing.
"""

from __future__ import annotations

import functools
import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from benchmarks import problems
from benchmarks.bounds import Peaks, measure_peaks, nearest
from benchmarks.harness import Row, planned_mb
from benchmarks.problems import MINI, OMNIGLOT_5, OMNIGLOT_20, ImageCase, Setup
from benchmarks.suites import classification, equivalence, reinforcement
from maml_jax.kernels.preferences import preferred

# Alternatives to the defaults, for each case.
LOWERINGS: list[Row] = [{"lowering": name} for name in ("shifts", "native")]
CHOICES: list[tuple[ImageCase, Row]] = [
    *((case, choice) for case in (OMNIGLOT_5, OMNIGLOT_20, MINI) for choice in LOWERINGS),
    (OMNIGLOT_20, {"mode": "reverse"}),
    (OMNIGLOT_5, {"batching": 8}),
    (OMNIGLOT_20, {"batching": 4}),
    (MINI, {"mode": "reverse"}),
    *((case, {"batching": "scan"}) for case in (OMNIGLOT_5, OMNIGLOT_20, MINI)),
    (OMNIGLOT_5, {"mode": "mixed"}),
    (OMNIGLOT_5, {"mode": "first_order"}),
]
LOCOMOTION = "locomotion, cheetah direction"


class Probe(NamedTuple):
    """A check or measurement.

    Attributes:
        name: of the probe and of its first row.
        expected_s: estimated seconds, mostly of compiling; the probe starts if as many are left.
        run: returns the rows.
    """

    name: str
    expected_s: float
    run: Callable[[], list[Row]]


class Bench(NamedTuple):
    """The probes of a device.

    Attributes:
        quick: whether all sizes are tiny, to try the command.
        peaks: limits of the device.
    """

    quick: bool
    peaks: Peaks

    def probes(self) -> Iterator[Probe]:
        """Yields the probes, most important first."""
        yield Probe("meta-gradients agree", 90, self._equivalence)
        yield self._sinusoid("mixed", "vmap")
        cases = (OMNIGLOT_5,) if self.quick else (OMNIGLOT_5, OMNIGLOT_20, MINI)
        yield from (self._image(case, {}) for case in cases)
        yield from self._navigation()
        yield from (self._image(*pair) for pair in (CHOICES[:1] if self.quick else CHOICES))
        yield from (self._torch(case) for case in cases if case is not MINI)
        yield from (self._sinusoid("reverse", "vmap"), self._sinusoid("mixed", "scan"))
        yield from self._locomotion()

    @property
    def _seconds(self) -> float:
        return 0.05 if self.quick else 2.0

    @property
    def _network(self) -> Row:
        return {"num_filters": 4, "num_layers": 2} if self.quick else {}

    def _equivalence(self) -> list[Row]:
        case = equivalence.CASE._replace(tasks=3) if self.quick else equivalence.CASE
        return list(equivalence.equivalence_rows(case, **self._network))

    def _sinusoid(self, mode: str, batching: str) -> Probe:
        name = f"sinusoid: {mode}, {batching}"

        def run() -> list[Row]:
            setup = problems.sinusoid(mode, batching=batching)
            work = problems.sinusoid("reverse").work()
            row = self._timed(name, setup, 20 if self.quick else 1000, work)
            return [{**row, "case": "sinusoid"}]

        return Probe(name, 30, run)

    def _image(self, case: ImageCase, choice: Row) -> Probe:
        options = {"batching": preferred("batching"), **choice}
        settings = {"lowering": "default lowering", "mode": case.mode, **options}
        name = f"{case.name}: {', '.join(f'{v}' for v in settings.values())}"

        def run() -> list[Row]:
            count = 1 if self.quick else max(5, 100 // case.steps**2)
            sized = case._replace(tasks=2) if self.quick else case
            setup = problems.images(sized, **options, **self._network)
            mode = options.get("mode", case.mode)
            work = classification.work_of(sized, mode, **self._network)
            return [{**self._timed(name, setup, count, work), "case": case.name}]

        return Probe(name, 60 if case is MINI else 45, run)

    def _timed(self, name: str, setup: Setup, count: int, work: tuple[float, float]) -> Row:
        """Measures compile time, a meta-step and its memory; names the limit that bounds it."""
        program = setup.program(count)
        begun = time.perf_counter()
        compiled = program.compile()
        compile_s = time.perf_counter() - begun
        before = _peak_mb()
        begun = time.perf_counter()
        state, _ = jax.block_until_ready(program.step(program.state))
        program = program._replace(state=state)
        calls = int(np.clip(self._seconds / (time.perf_counter() - begun), 3, 50))
        row = program.measure(name, calls)
        after = _peak_mb()
        return {
            **row,
            "meta_steps_per_s": 1e3 / row["median_ms"],
            "compile_s": compile_s,
            "temporary_mb": planned_mb(compiled),
            # A process's peak is never reset; it is this program's if this program raised it.
            "peak_mb": after if after is not None and after != before else None,
            **nearest(row["median_ms"], work, self.peaks),
        }

    def _navigation(self) -> Iterator[Probe]:
        case = reinforcement.paper_case()
        yield from self._reinforcement(
            "navigation", case._replace(num_tasks=2) if self.quick else case, 45
        )

    def _reinforcement(
        self, name: str, case: reinforcement.Case, expected_s: float
    ) -> Iterator[Probe]:
        def speed() -> list[Row]:
            steps_per_s = reinforcement.rollout_speed(case, self._seconds)
            return [{"name": f"{name}: rollouts", "environment_steps_per_s": steps_per_s}]

        yield Probe(f"{name}: rollouts", expected_s, speed)
        calls, counts = (1, 1) if self.quick else (8, 2)
        for label, count in [("part", reinforcement.SUBSAMPLE), ("all", None)][:counts]:
            whole = f"{name}: meta-iteration, curvature from {label}"
            timed = functools.partial(reinforcement.time_iteration, whole, case, count, calls)
            yield Probe(whole, expected_s, lambda timed=timed: [timed()])

    def _torch(self, case: ImageCase) -> Probe:
        name = f"{case.name}: torch.func"

        def run() -> list[Row]:
            from benchmarks.peers import torch_on_device

            sized = case._replace(tasks=2, steps=1) if self.quick else case
            row = torch_on_device.torch_func_row(name, sized, self._seconds)
            return [{**row, "case": case.name} if "median_ms" in row else row]

        return Probe(name, 30, run)

    def _locomotion(self) -> Iterator[Probe]:
        if self.quick or not all(importlib.util.find_spec(n) for n in ("brax", "mujoco")):
            reason = "quick" if self.quick else "Brax and MuJoCo are not installed"
            yield Probe(LOCOMOTION, 0, lambda: [{"name": LOCOMOTION, "not run": reason}])
            return
        from benchmarks.suites import locomotion

        case = locomotion.locomotion_case("cheetah_direction", "paper")
        yield from self._reinforcement(LOCOMOTION, case, 150)


def accelerator_suite(
    budget_s: float = 540.0,
    quick: bool = False,
    done: Sequence[Row] = (),
    save: Callable[[list[Row]], None] = lambda rows: None,
) -> list[Row]:
    """Runs the probes that fit into the budget, most important first.

    Args:
        budget_s: wall-clock seconds. A probe is skipped if it is not expected to end in time.
        quick: whether all sizes are tiny, to try the command.
        done: rows of an earlier run on the same device; their probes are not repeated.
        save: called with all rows after each probe.
    """
    begun = time.monotonic()
    rows = [dict(row) for row in done if "not run" not in row and "error" not in row]
    have = {row.get("probe") for row in rows}
    peaks = measure_peaks(256, 4, 0.02) if quick else measure_peaks()
    rows = [row for row in rows if row["name"] != "device"]
    rows.insert(0, {"name": "device", **peaks._asdict()})
    for probe in Bench(quick, peaks).probes():
        if probe.name in have:
            continue
        left = budget_s - (time.monotonic() - begun)
        if left <= 0 or (not quick and probe.expected_s > left):
            new = [{"name": probe.name, "not run": f"{max(left, 0):.0f} s were left"}]
        else:
            new = _outcome(probe)
        rows += [{**row, "probe": probe.name} for row in new]
        print(f"  {time.monotonic() - begun:5.0f} s  {probe.name}: {_short(new)}", flush=True)
        save(rows)
    return rows


def _outcome(probe: Probe) -> list[Row]:
    """Returns a probe's rows, or its error: one that runs out of memory must not end the rest."""
    try:
        return probe.run()
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        return [{"name": probe.name, "error": text.splitlines()[0][:200]}]


def _short(rows: Sequence[Row]) -> str:
    row = rows[0]
    for key in ("error", "not run"):
        if key in row:
            return f"{key}: {row[key]}"
    if "median_ms" in row:
        return f"{row['median_ms']:.3g} ms"
    if "agree" in row:
        return f"{sum(r['agree'] == 'yes' for r in rows)} of {len(rows)}"
    return f"{row.get('environment_steps_per_s', 0):,.0f} a second"


def summary(rows: Sequence[Row]) -> list[Row]:
    """Makes the short table: agreement by precision, speeds, and the probes without a result.

    Args:
        rows: result of `accelerator_suite`.
    """
    short: list[Row] = []
    for precision in equivalence.TOLERANCE:
        compared = [row for row in rows if row.get("precision") == precision]
        if compared:
            worst = max(compared, key=lambda row: row["deviation"])
            agree = "yes" if all(row["agree"] == "yes" for row in compared) else "NO"
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


def _with_ratios(rows: Sequence[Row]) -> list[Row]:
    """Adds each time's ratio to that of its case's first row, which has the default choices."""
    first: dict[str, float] = {}
    with_ratios = []
    for row in rows:
        if "median_ms" in row and "case" in row:
            ours = first.setdefault(row["case"], row["median_ms"])
            row = {**row, "times_ours": row["median_ms"] / ours}
        with_ratios.append(row)
    return with_ratios


def _peak_mb() -> float | None:
    """Returns the process's peak memory on the first device in MB; None if unknown."""
    stats = jax.devices()[0].memory_stats()
    return None if not stats else stats.get("peak_bytes_in_use", 0) / 1e6 or None
