"""Which run a directory holds: its experiment, settings, seed, and JAX's settings of numbers.

`config.json` says it, and so do `results.json` and each checkpoint. Whatever says another run than
the one asked for is refused, before anything is written or moved.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from .. import invocation
from . import config as config_lib
from . import results
from .files import NUMBER, FileError, check_object, read_json, write_json

# JAX's settings that change what a program computes, with JAX's defaults: those of runs whose
# files do not name them. What changes the order of sums alone, as devices do, is not among them.
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
FORMAT = 2  # of checkpoints and settings; runs of version 1 do not name theirs
OLDER = (
    "a run of an earlier version of maml_jax, which this one cannot take up. Nothing was changed. "
    "Use that version (0.1.0; results.json, once there, names its commit), or another --workdir. "
    f"`{invocation('report')}` still shows its results."
)
MAX_SEED = 999_999  # larger ones are those of tests and validation
_REBUILD = "Remove it, or repair it: the command that began the run makes it anew."


class RunError(RuntimeError):
    """A run that cannot begin or go on; the message is for the user."""


def identity_of(
    experiment: str,
    preset: str,
    seed: int,
    settings: Any,
    num_seeds: int = 1,
    swept: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, Any]:
    """What `config.json` holds of a run in this process.

    Args:
        experiment: its name.
        preset: that the settings began from.
        seed: of the first member.
        settings: of the first member.
        num_seeds: of the run.
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


def differences(there: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """What tells two runs apart, each as "NAME: there VALUE, asked for VALUE"; presets may."""
    missing = object()
    parts = [
        (
            {"experiment": run["experiment"], "seed": run["seed"]},
            run["config"],
            numbers_of(run),
        )
        for run in (there, asked)
    ]
    pairs = [
        (key, theirs.get(key, missing), ours.get(key, missing))
        for theirs, ours in zip(*parts, strict=True)
        for key in dict.fromkeys([*ours, *theirs])
    ]

    def shown(value: Any) -> str:
        return "no such setting" if value is missing else repr(value)

    return [
        f"{key.upper() if key in NUMBERS else key}: there {shown(theirs)}, asked for {shown(ours)}"
        for key, theirs, ours in pairs
        if theirs != ours
    ]


def numbers_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """JAX's settings of numbers in a run; those that it does not name are the defaults."""
    named = run.get("numbers")
    return {**NUMBERS, **(named if isinstance(named, dict) else {})}


def read_config(workdir: Path) -> dict[str, Any]:
    """The identity in a run's `config.json`.

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
    """Whether anything was saved; a run that stopped before that claims nothing."""
    checkpoints = workdir / "checkpoints"
    return (workdir / "results.json").exists() or any(checkpoints.glob("*/*"))


def claim(workdir: Path, asked: Mapping[str, Any], write: bool = True) -> None:
    """Writes `config.json` for a run, or checks that all that is there is of this run.

    Args:
        workdir: of the run.
        asked: its identity.
        write: whether the directory can be written.

    Raises:
        RunError: something there is of another run, or nothing says of which run it is.
        FileError: a file cannot be read.
    """
    path = workdir / "config.json"
    if not has_begun(workdir):
        if path.exists():
            read_config(workdir)  # a file of something else is not ours to overwrite
        write_json(path, dict(asked))
        return
    records = check_same(workdir, asked)
    if path.exists():
        return
    if not records:
        raise RunError(
            f"{workdir} has checkpoints that cannot be read and no config.json: nothing says of "
            "which run they are. Use another --workdir, or move them away."
        )
    source, there = records[-1]
    if write:
        write_json(path, {key: there[key] for key in (*KEYS, *OPTIONAL) if key in there})
        print(f"warning: {path} was missing; it is made anew from {source}.", file=sys.stderr)


def check_same(workdir: Path, asked: Mapping[str, Any]) -> list[tuple[Path, dict[str, Any]]]:
    """Checks that every file that names its run names this one, and returns what they say.

    Raises:
        RunError: one names another.
        FileError: `config.json` or `results.json` cannot be read.
    """
    records = list(_records(workdir))
    for source, there in records:
        problem = misfit(there, asked)
        if problem:
            what = f"{workdir} holds" if source.name == "config.json" else f"{source} is of"
            raise RunError(f"{what} {problem}")
    return records


def misfit(there: Mapping[str, Any], asked: Mapping[str, Any]) -> str | None:
    """What differs and what to do, to stand behind "X is of"; None for the same run."""
    if there.get("format") != FORMAT:
        return OLDER
    changed = differences(there, asked)
    if not changed:
        return None
    same = "flags"
    if any(name.upper() in text for text in changed for name in NUMBERS):
        same = "settings of JAX (environment variables)"
    return (
        f"a run with another configuration ({'; '.join(changed)}). Nothing was changed. "
        f"Use another --workdir, or the same {same} to go on with what is there."
    )


def check_info(asked: Mapping[str, Any], stage: str) -> Callable[[Mapping[str, Any]], str | None]:
    """Of the information beside a checkpoint: what does not fit a stage of a run, or None."""

    def check(info: Mapping[str, Any]) -> str | None:
        check_object(dict(info), {"run": dict, "train_s": NUMBER, "compile_s": NUMBER}, None)
        check_object(info["run"], KEYS, None)
        if info.get("stage", stage) != stage:
            return (
                f"stage {info['stage']!r} where that of stage {stage!r} is expected. "
                "Nothing was changed. Give its folder its name again."
            )
        return misfit(info["run"], asked)

    return check


def _records(workdir: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The files of a run that name it, with its identity as they say; `config.json` first.

    Checkpoints that cannot be read are left to who restores them.
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
