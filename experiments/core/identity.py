"""The identity of a run: its experiment, settings, seed, and JAX's settings of numbers.

`config.json`, `results.json` and each checkpoint record it. A directory in which one of them
records another run than the requested one is refused, before anything is written or moved.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from maml_jax.text import printable

from .. import invocation
from . import config as config_lib
from . import results
from .files import NUMBER, FileError, check_object, read_json, write_json

# JAX's settings that change a program's numbers, with JAX's defaults, which hold for files without
# them. Settings that change the order of sums only, as the number of devices does, are left out.
NUMBERS: dict[str, Any] = {
    "jax_enable_x64": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_high_dynamic_range_gumbel": False,
    "jax_default_matmul_precision": None,
    "jax_allow_f16_reductions": True,
    "jax_numpy_dtype_promotion": "standard",
}
KEYS = {"experiment": str, "preset": str, "seed": int, "config": dict}
OPTIONAL = {"numbers": dict, "format": int}
FORMAT = 2  # of checkpoints and settings; runs of format 1 record none
OLDER = (
    "a run of an earlier version of maml_jax, which this one cannot resume. Nothing was changed. "
    "Use that version (0.1.0; results.json, if it exists, names its commit), or another --workdir. "
    f"`{invocation('report')}` still shows its results."
)
CUSTOM = "custom"  # the preset of runs that Python code starts
MAX_SEED = 999_999  # larger seeds are those of test and validation tasks
_REBUILD = "Remove it or repair it: the command of the run writes it again."


class RunError(RuntimeError):
    """A run cannot start or continue; the message is for the user, and made `printable`."""

    def __init__(self, message: str):
        super().__init__(printable(message, 8_000))


def identity_of(
    experiment: str,
    preset: str,
    seed: int,
    settings: Any,
    num_seeds: int = 1,
    swept: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, Any]:
    """Returns the identity of a run in this process, the object in `config.json`.

    Args:
        experiment: the experiment's name.
        preset: the name of the preset.
        seed: the seed of the first member.
        settings: the configuration of the first member.
        num_seeds: the number of seeds.
        swept: the values of settings that differ between members; recorded as lists.
    """
    several = {name: list(values) for name, values in (swept or {}).items()}
    return {
        "experiment": experiment,
        "preset": preset,
        "seed": seed,
        "config": {**config_lib.to_json(settings), **several, "num_seeds": num_seeds},
        "format": FORMAT,
        "numbers": {name: getattr(jax.config, name, NUMBERS[name]) for name in NUMBERS},
    }


def differences(
    saved: Mapping[str, Any], asked: Mapping[str, Any], asking: str = "the command says"
) -> list[str]:
    """Lists the settings in which two runs differ, as "NAME=SAVED, the command says ASKED".

    The presets may differ.

    Args:
        saved: the identity that a file records.
        asked: the identity of the requested run.
        asking: where the requested settings come from, with a verb.
    """
    missing = object()
    parts = [
        (
            {"experiment": run["experiment"], "seed": run["seed"]},
            run["config"],
            numbers_of(run),
        )
        for run in (saved, asked)
    ]
    pairs = [
        (key, theirs.get(key, missing), ours.get(key, missing))
        for theirs, ours in zip(*parts, strict=True)
        for key in dict.fromkeys([*ours, *theirs])
    ]

    def described(key: str, theirs: Any, ours: Any) -> str:
        name, verb = key, asking
        if key in NUMBERS:
            name, verb = key.upper(), "this process has"
        has = f"no {name}" if theirs is missing else f"{name}={_shown(theirs)}"
        return f"{has}, {verb} {'nothing' if ours is missing else _shown(ours)}"

    return [described(*pair) for pair in pairs if pair[1] != pair[2]]


def _shown(value: Any) -> str:
    """Formats a setting as its flag takes it."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def numbers_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """Returns JAX's settings of numbers in a run; those that it does not record are defaults."""
    named = run.get("numbers")
    return {**NUMBERS, **(named if isinstance(named, dict) else {})}


def read_config(workdir: Path) -> dict[str, Any]:
    """Reads the identity in a run's `config.json`.

    Raises:
        FileError: the file is not as a run writes it.
    """
    path = workdir / "config.json"
    identity = read_json(path, KEYS, OPTIONAL, advice=_REBUILD)
    if not 0 <= identity["seed"] <= MAX_SEED:
        raise FileError(
            f"{path} has the seed {identity['seed']}; expected 0 to {MAX_SEED}. {_REBUILD}"
        )
    return identity


def has_begun(workdir: Path) -> bool:
    """Returns whether a directory holds checkpoints or results of a run."""
    checkpoints = workdir / "checkpoints"
    return (workdir / "results.json").exists() or any(checkpoints.glob("*/*"))


def claim(workdir: Path, asked: Mapping[str, Any], write: bool = True) -> None:
    """Writes `config.json` for a new run, or checks that the directory's files are of this run.

    Args:
        workdir: the run's directory.
        asked: the run's identity.
        write: whether the directory can be written.

    Raises:
        RunError: a file is of another run, or no file records the run of the checkpoints.
        FileError: a file cannot be read.
    """
    path = workdir / "config.json"
    if not has_begun(workdir):
        if path.exists():
            read_config(workdir)  # raises rather than overwrite another kind of file
        write_json(path, dict(asked))
        return
    records = check_same(workdir, asked)
    if path.exists():
        return
    if not records:
        raise RunError(
            f"{workdir} has checkpoints that cannot be read and no config.json, so that their run "
            "is unknown. Use another --workdir, or move them away."
        )
    source, saved = records[-1]
    if write:
        write_json(path, {key: saved[key] for key in (*KEYS, *OPTIONAL) if key in saved})
        print(f"warning: {path} was missing; it is restored from {source}.", file=sys.stderr)


def check_same(
    workdir: Path, asked: Mapping[str, Any], asking: str = "the command says"
) -> list[tuple[Path, dict[str, Any]]]:
    """Checks that every file that records a run records this one; `asking` as in `differences`.

    Returns:
        The files, each with the identity in it.

    Raises:
        RunError: a file records another run.
        FileError: `config.json` or `results.json` cannot be read.
    """
    records = list(_records(workdir))
    for source, saved in records:
        problem = misfit(saved, asked, asking)
        if problem:
            what = f"{workdir} holds" if source.name == "config.json" else f"{source} is of"
            if problem != OLDER and (workdir / "results.json").exists():
                problem += f" `{invocation('report')} {workdir}` shows its results."
            raise RunError(f"{what} {problem}")
    return records


def misfit(
    saved: Mapping[str, Any], asked: Mapping[str, Any], asking: str = "the command says"
) -> str | None:
    """Describes the differences of two runs and a remedy, after "X is of"; None if equal."""
    if saved.get("format") != FORMAT:
        return OLDER
    if saved["experiment"] != asked["experiment"]:
        return (
            f"a run of {saved['experiment']}, not of {asked['experiment']}. Nothing was changed. "
            "Use another --workdir."
        )
    changed = differences(saved, asked, asking)
    if not changed:
        return None
    same = "flags"
    if any(name.upper() in text for text in changed for name in NUMBERS):
        same = "settings of JAX (environment variables)"
    elif CUSTOM not in (saved["preset"], asked["preset"]) and saved["preset"] != asked["preset"]:
        same = f"flags (the run began with --preset={saved['preset']})"
    return (
        f"a run with another configuration: the run has {'; '.join(changed)}. Nothing was changed. "
        f"Use another --workdir, or the same {same} to continue the saved run."
    )


def check_info(
    asked: Mapping[str, Any], stage: str, asking: str = "the command says"
) -> Callable[[Mapping[str, Any]], str | None]:
    """Makes the check of a checkpoint's information for a stage of a run.

    The check describes another run or stage, and returns None for this one.
    """

    def check(info: Mapping[str, Any]) -> str | None:
        check_object(dict(info), {"run": dict, "train_s": NUMBER, "compile_s": NUMBER}, None)
        check_object(info["run"], KEYS, None)
        if info.get("stage", stage) != stage:
            return (
                f"stage {info['stage']!r} where that of stage {stage!r} is expected. "
                "Nothing was changed. Restore the name of its folder."
            )
        return misfit(info["run"], asked, asking)

    return check


def _records(workdir: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yields the files that record a run, each with the identity in it; `config.json` first.

    Checkpoints that cannot be read are skipped; restoring reports them.
    """
    path = workdir / "config.json"
    if path.exists():
        yield path, read_config(workdir)
    path = workdir / "results.json"
    if path.exists():
        yield path, results.read_results(path)
    for path in sorted((workdir / "checkpoints").glob("*/*/info/metadata")):
        try:
            run = read_json(path, {"run": dict}, advice="")["run"]
            check_object(run, KEYS, None)
        except (FileError, ValueError):
            continue
        yield path, run
