"""Disturbs a long run repeatedly and checks that its outcome equals that of an undisturbed run.

Both are runs of `experiments.omniglot` with the same settings. One is undisturbed. The other is
killed, stopped, given a full disk, or loses half of a checkpoint file, at random steps, and is
restarted each time. The soak compares parameters, results and losses bit for bit. It also checks
how each process ends and its messages, the growth of memory and open files during training, and
that no file is half written.

The full disk is a file system in memory, for which the process needs the right to mount (root), or
else a limit on file sizes. The stderr of each start is kept beside the runs. Linux only. For the
duration see `tests/test_soak.py`.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import soak_disturbances as disturbances
from soak_disturbances import Child, Disturbance

from experiments import omniglot
from experiments.core import checkpoints, runner
from experiments.core.logbook import read_metrics

GROWTH_MB, GROWTH_SHARE = 20.0, 0.02  # tolerated growth of resident memory


class Check(NamedTuple):
    """A line of the final table.

    Attributes:
        name: of the check.
        passed: whether it passed.
        outcome: what happened or was measured.
    """

    name: str
    passed: bool
    outcome: str


def soak(
    workdir: Path,
    line: list[str],
    *,
    num_disturbances: int,
    steps: int | None = None,
    minutes: float = 30.0,
    seed: int = 0,
) -> list[Check]:
    """Runs both runs and returns all checks.

    Args:
        workdir: directory for both runs; must not exist.
        line: flags of `experiments.omniglot`, for both runs.
        num_disturbances: number of disturbances; includes each kind at least once.
        steps: meta-steps of a run; None for as many as fill `minutes`.
        minutes: approximate duration of the undisturbed run.
        seed: of the schedule; the runs have seed 0.
    """
    workdir.mkdir(parents=True)
    steps = steps or steps_for(60 * minutes, workdir / "speed", line)
    line = [*line, f"--meta_steps={steps}"]
    plan = disturbances.schedule(seed, num_disturbances, steps)
    print(f"{steps:,} meta-steps, twice", flush=True)
    alone, disturbed = workdir / "alone", workdir / "disturbed"
    checks = [*run_alone(alone, line, steps), *run_disturbed(disturbed, line, plan)]
    checks += [*compare(alone, disturbed), left_behind(alone, 0)]
    return [*checks, left_behind(disturbed, sum(d.kind == "truncated" for d in plan))]


def steps_for(seconds: float, workdir: Path, line: list[str]) -> int:
    """Returns the number of meta-steps, in whole dispatches, that take about `seconds`.

    Measures the speed of a run, which is killed after a tenth of the time, but not before its third
    dispatch: the first two compile.
    """
    child = Child(workdir, [*line, "--meta_steps=100000000"])
    first = child.wait_for_entries(3)
    child.wait(seconds / 10)
    entries = child.entries()
    child.kill()
    if not first or len(entries) < 3:
        raise SystemExit(f"the run to measure the speed ended by itself:\n{child.err}")
    shutil.rmtree(workdir)
    speed = _median([entry["meta_steps_per_s"] for entry in entries[2:]])
    dispatch = entries[0]["step"]
    return dispatch * max(10, math.ceil(speed * seconds / dispatch))


def run_alone(workdir: Path, line: list[str], steps: int) -> list[Check]:
    """Runs the undisturbed run and checks its growth."""
    child = Child(workdir, line)
    code = child.wait()
    if code != 0:
        raise SystemExit(f"the undisturbed run ended with {code}:\n{child.err}")
    return growth(child.samples, steps)


def growth(samples: list[disturbances.Sample], steps: int) -> list[Check]:
    """Compares memory and open files in the last third of training with those in the second.

    The first third is warm-up: compiling, the first validation and the first checkpoints.
    """
    middle = [s for s in samples if steps / 3 <= s.step < 2 * steps / 3]
    last = [s for s in samples if 2 * steps / 3 <= s.step < steps]
    if not middle or not last:
        return [Check("memory and open files", False, f"only {len(samples)} samples")]
    before, after = (_median([s.resident_mb for s in part]) for part in (middle, last))
    files = [_median([s.open_files for s in part]) for part in (middle, last)]
    return [
        Check(
            "memory does not grow",
            after - before <= GROWTH_MB + GROWTH_SHARE * before,
            f"{before:,.0f} MB, then {after:,.0f} MB",
        ),
        Check("open files do not grow", files[1] <= files[0], f"{files[0]}, then {files[1]}"),
    ]


def _median(values: list[Any]) -> Any:
    return sorted(values)[len(values) // 2]


def run_disturbed(workdir: Path, line: list[str], plan: list[Disturbance]) -> list[Check]:
    """Runs the disturbed run, restarts it each time, and checks the end of each process."""
    checks, expected = [], ""  # in the stderr of the next start
    for number, disturbance in enumerate(plan, 1):
        ended, child = disturbances.disturb(workdir, line, disturbance)
        passed = ended.passed and expected in child.err
        missing = "" if expected in child.err else f"; {expected!r} is missing on stderr"
        name = f"{number}. {disturbance.kind} at step {disturbance.step:,}"
        print(f"  {name}: {ended.outcome}{missing}", flush=True)
        checks.append(Check(name, passed, ended.outcome + missing))
        expected = "is damaged and is passed over" if disturbance.kind == "truncated" else ""
    child = Child(workdir, line)
    code = child.wait()
    passed = code == 0 and expected in child.err
    return [*checks, Check("the last start finishes", passed, f"exit code {code}")]


def compare(alone: Path, disturbed: Path) -> list[Check]:
    """Compares all results that must not depend on the disturbances."""
    try:
        one, other = outcome(alone), outcome(disturbed)
    except Exception as error:  # a run that is unfinished or unreadable
        return [Check("the same outcome", False, str(error).splitlines()[0])]
    return [
        Check(f"the same {name}", one[name] == other[name], f"{len(one[name])} compared")
        for name in one
    ]


def outcome(workdir: Path) -> dict[str, Any]:
    """Returns settings, digests of all states, results and losses of a finished run."""
    run = runner.load(omniglot.EXPERIMENT, workdir)
    return {
        "settings": json.loads((workdir / "config.json").read_text()),
        "final states": {
            name: checkpoints.digest(checkpoints.to_host(state))
            for name, state in run.states.items()
        },
        "results": json.loads((workdir / "results.json").read_text())["rows"],
        "losses": [(e["stage"], e["step"], e["loss"]) for e in read_metrics(workdir)],
    }


def left_behind(workdir: Path, truncated: int) -> Check:
    """Checks that a finished run has no half-written files, nor more damaged ones than were cut."""
    names = [path.relative_to(workdir) for path in workdir.rglob("*")]
    bad = [str(name) for name in names if ".tmp" in name.name or "checkpoint-tmp" in name.name]
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        try:
            json.loads(line)
        except json.JSONDecodeError:
            bad.append("a line of metrics.jsonl")
    aside = [str(name) for name in names if name.suffix == ".damaged"]
    if len(aside) > truncated:
        bad += aside
    return Check(f"{workdir.name}: nothing half written", not bad, ", ".join(bad[:5]) or "nothing")
