"""Tables and figures of finished runs: `python -m experiments.report DIR...`.

A DIR is a run's directory, or one with runs below it. Runs that differ in the seed only are
averaged; runs of different settings have separate tables.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import show_invocation
from .core import places, results, streams, tables, usage
from .core.config import ConfigError
from .core.files import FileError
from .core.identity import NUMBERS


def group_runs(runs: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Groups runs that differ in their seed only; each seed counts once in a group."""
    groups, covered = defaultdict(list), defaultdict(set)
    for run in sorted(runs, key=lambda run: -run["config"].get("num_seeds", 1)):
        settings = {k: v for k, v in run["config"].items() if k != "num_seeds"}
        key = json.dumps([run["experiment"], settings, _unusual(run)], sort_keys=True)
        seeds = set(range(run["seed"], run["seed"] + run["config"].get("num_seeds", 1)))
        if seeds & covered[key]:
            continue
        covered[key] |= seeds
        groups[key].append(run)
    return list(groups.values())


def find_runs(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Reads the results of all runs at or below some directories.

    A run of several members is left out if its members' results are below it. Members that
    diverged in training have no results; standard error names them.

    Args:
        paths: directories, or `results.json` files.

    Raises:
        FileNotFoundError: a directory holds no results.
    """
    runs = []
    for path in paths:
        files = [path] if path.is_file() else sorted(path.rglob("results.json"))
        if not files:
            raise FileNotFoundError(f"no results.json at or below {path}; is the run finished?")
        for file in files:
            run = results.read_results(file)
            _note_diverged(file.parent, run)
            if not any(
                (file.parent / label) / "results.json" in files for label in run.get("members", ())
            ):
                runs.append(run)
    return runs


def _note_diverged(workdir: Path, run: dict[str, Any]) -> None:
    for label, member in run.get("members", {}).items():
        step = member.get("diverged_after") if isinstance(member, dict) else None
        if step is not None:
            text = f"note: {workdir / label}: diverged after meta-step {step}; it has no results."
            print(text, file=sys.stderr)


def main(argv: Sequence[str]) -> None:
    """Runs the command: prints tables of the runs in `argv[1:]`, and draws `--figure`."""
    from absl import flags

    if len(argv) < 2:
        usage.fail("name one or more directories of runs.")
    try:
        _report([Path(arg) for arg in argv[1:]], flags.FLAGS.figure)
        streams.check_output()
    except (FileNotFoundError, FileError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: {error.strerror or error}: {error.filename or 'output'}", file=sys.stderr)
        sys.exit(2)


def _report(paths: Sequence[Path], figure: str | None) -> None:
    out = None if figure is None else places.expanded(figure, "--figure")
    if out is not None:
        if out.suffix.lower() != ".png" or out.is_dir():
            raise ConfigError(f"--figure must be a file, NAME.png; received {figure!r}.")
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise ConfigError(f"--figure={figure}: {out.parent} is not a folder.") from None
    runs = find_runs(paths)
    groups = group_runs(runs)
    covered = len(runs) - sum(map(len, groups))
    if covered:
        text = f"skipped {covered} run(s) whose settings and seed another run has already."
        print(f"note: {text}", file=sys.stderr)
    for group in groups:
        first = group[0]
        seeds = ", ".join(str(run["seed"]) for run in group)
        settings = "  ".join(f"{k}={v}" for k, v in {**first["config"], **_unusual(first)}.items())
        devices = "; ".join(sorted({run["environment"]["device"] for run in group}))
        commits = ", ".join(sorted({run["environment"]["commit"] for run in group}))
        seconds = ", ".join(f"{sum(run['wall_clock_s'].values()):.0f} s" for run in group)
        print(f"{first['experiment']} ({first['preset']}), seed {seeds}: {settings}")
        print(f"on {devices}; commit {commits}; {seconds} in all\n")
        print(tables.group_table(group) + "\n")
    if out is not None:
        from .core import report_figure

        report_figure.compare_runs(out, groups)
        print(f"figure: {out}")


def _unusual(run: dict[str, Any]) -> dict[str, Any]:
    """Returns JAX's settings of numbers that are not defaults, by their variables' names."""
    numbers = run.get("numbers", {})
    return {k.upper(): v for k, v in numbers.items() if v != NUMBERS.get(k)}


if __name__ == "__main__":
    from absl import flags

    flags.DEFINE_string(
        "figure",
        None,
        "PNG file for the figure: the metric by gradient steps.",
        module_name="options",
    )
    show_invocation()
    streams.protect("")
    usage.run(main, ["options"])
