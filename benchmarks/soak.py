"""A long run, disturbed again and again, beside the same run left alone: all must come out equal.

    python -m benchmarks.soak --workdir=DIR [--minutes=30] [--disturbances=10]
    python -m benchmarks.soak --workdir=DIR --minutes=1 --dataset=synthetic -- --num_filters=8

Both runs are `python -m experiments.omniglot` with the same flags, those after `--` included. One
is left alone; the other is killed, stopped, given a full disk and robbed of half a checkpoint, at
random steps, and started again each time. Checked are: parameters, results and losses, bit for
bit; how each process ended and what it said; growth of memory and of open files in training; that
no file is half written. Exits with 1 if anything failed. Linux only.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags, logging

from benchmarks import soak_disturbances as disturbances
from benchmarks.soak_disturbances import Child, Disturbance
from experiments.core.results import format_table

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory for both runs; must not exist.")
_MINUTES = flags.DEFINE_float("minutes", 30.0, "About how long a run alone takes.", 0.1)
_DISTURBANCES = flags.DEFINE_integer(
    "disturbances", 10, "How many, of each kind at least one.", len(disturbances.KINDS)
)
_DATASET = flags.DEFINE_enum("dataset", "omniglot", ("omniglot", "synthetic"), "The images.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the schedule; the runs have seed 0.")
_STEPS = flags.DEFINE_integer(
    "meta_steps", None, "Meta-steps of a run; default as many as fill the minutes.", 1
)
_EVERY = flags.DEFINE_float("checkpoint_every_s", 60.0, "Seconds between checkpoints.", 0.0)

GROWTH_MB, GROWTH_SHARE = 20.0, 0.02  # of resident memory, that pass for none


class Check(NamedTuple):
    """One line of the last table.

    Attributes:
        what: was checked.
        passed: whether it is as it should be.
        found: what was found.
    """

    what: str
    passed: bool
    found: str


def main(argv: list[str]) -> None:
    """Both runs, and the table of checks."""
    logging.set_verbosity(logging.ERROR)
    if not _WORKDIR.value:
        raise app.UsageError("--workdir=DIR is required.")
    workdir = Path(_WORKDIR.value).resolve()
    if workdir.exists():
        raise app.UsageError(f"--workdir={workdir} must not exist.")
    workdir.mkdir(parents=True)
    line = [f"--dataset={_DATASET.value}", f"--checkpoint_every_s={_EVERY.value}"]
    line += ["--report_steps=1", "--eval_steps=1", "--eval_queries=0", "--protocols=transductive"]
    line += argv[1:]
    steps = _STEPS.value or steps_for(60 * _MINUTES.value, workdir / "speed", line)
    line.append(f"--meta_steps={steps}")
    plan = disturbances.schedule(_SEED.value, _DISTURBANCES.value, steps)
    print(f"{steps:,} meta-steps, twice; checkpoints every {_EVERY.value:g} s", flush=True)
    alone, disturbed = workdir / "alone", workdir / "disturbed"
    checks = [*run_alone(alone, line, steps), *run_disturbed(disturbed, line, plan)]
    checks += [*compare(alone, disturbed), left_behind(alone, 0)]
    checks.append(left_behind(disturbed, sum(d.kind == "truncated" for d in plan)))
    rows = [[c.what, "passed" if c.passed else "FAILED", c.found[:60]] for c in checks]
    print("\n" + format_table(["check", "", "found"], rows), flush=True)
    sys.exit(0 if all(check.passed for check in checks) else 1)


def steps_for(seconds: float, workdir: Path, line: list[str]) -> int:
    """Meta-steps that take so long, a whole number of dispatches, from a run that is then killed.

    The first two dispatches compile. It runs for a tenth of the time, or until it has dispatched
    as often as that takes.
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
    """The run that is left alone, and how its process grew."""
    child = Child(workdir, line)
    code = child.wait()
    if code != 0:
        raise SystemExit(f"the run that was left alone ended with {code}:\n{child.err}")
    return growth(child.samples, steps)


def growth(samples: list[disturbances.Sample], steps: int) -> list[Check]:
    """Memory and open files in the last third of training against those in the second.

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
    """The run that is disturbed and started again, and whether each process ended as it should."""
    checks, expected = [], ""  # what the next start has to say
    for number, disturbance in enumerate(plan, 1):
        ended, child = disturbances.disturb(workdir, line, disturbance)
        passed = ended.passed and expected in child.err
        found = ended.found if expected in child.err else f"{ended.found}; did not say {expected!r}"
        where = f"{number}. {disturbance.kind} at step {disturbance.step:,}"
        print(f"  {where}: {found}", flush=True)
        checks.append(Check(where, passed, found))
        expected = "is damaged and is passed over" if disturbance.kind == "truncated" else ""
    child = Child(workdir, line)
    code = child.wait()
    passed = code == 0 and expected in child.err
    return [*checks, Check("the last start finishes", passed, f"exit code {code}")]


def compare(alone: Path, disturbed: Path) -> list[Check]:
    """Everything that must not depend on how a run was disturbed."""
    try:
        one, other = outcome(alone), outcome(disturbed)
    except Exception as error:  # a run that is not done, or cannot be read
        return [Check("the same outcome", False, str(error).splitlines()[0])]
    return [
        Check(f"the same {name}", one[name] == other[name], f"{len(one[name])} compared")
        for name in one
    ]


def outcome(workdir: Path) -> dict[str, Any]:
    """Settings, digests of all states, results and losses of a finished run."""
    from experiments import omniglot
    from experiments.core import checkpoints, runner
    from experiments.core.logbook import read_metrics

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
    """Whether a finished run has files that are half written, or more set aside than were cut."""
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


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    os.environ.setdefault("XLA_FLAGS", "")
    app.run(main)
