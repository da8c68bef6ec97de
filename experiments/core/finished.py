"""Runs whose training is done, for the modes that use them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maml_jax.fitting import Selection

from .. import invocation
from . import members
from .checkpoints import Checkpoints
from .config import from_json, swept_fields
from .files import FileError
from .identity import (
    FORMAT,
    OLDER,
    RunError,
    check_info,
    check_same,
    has_begun,
    identity_of,
    read_config,
)
from .logbook import warn
from .members import make_members, take, to_this_process
from .stages import Experiment, Stage


def alone(stage: Stage, selection: Selection | None) -> Selection:
    """The selection of a run's one member, without the axis of members."""
    return take(to_this_process(members.finished(stage, selection)), 0)


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run of one member whose training is done.

    Attributes:
        workdir: where a mode writes; the run's directory, if that can be written.
        settings: its configuration.
        seed: its seed.
        states: the final `Selection` of each stage, by name.
    """

    workdir: Path
    settings: Any
    seed: int
    states: Mapping[str, Selection]


def load(experiment: Experiment, workdir: Path) -> FinishedRun:
    """The trained states of a run, for the modes that use them.

    Raises:
        RunError: there is no run of this experiment, a stage of it is not done, it has several
            members, or this process has other settings of JAX.
        FileError: a file of the run is not as a run writes it.
        CheckpointError: a checkpoint is of another run or step.
    """
    path = workdir / "config.json"
    if not path.exists():
        if has_begun(workdir):
            raise RunError(f"{path} is missing; the command that trained the run makes it anew.")
        raise RunError(f"no run at {workdir}; train one first: --workdir={workdir} --mode=train.")
    identity = read_config(workdir)
    if identity["experiment"] != experiment.name:
        raise RunError(
            f"{workdir} holds a run of {identity['experiment']}, not {experiment.name}: use "
            f"{invocation(identity['experiment'])}."
        )
    if identity.get("format") != FORMAT:
        raise RunError(f"{workdir} holds {OLDER}")
    settings = _read_settings(experiment, workdir, identity)
    asked = identity_of(experiment.name, identity["preset"], identity["seed"], settings)
    check_same(workdir, asked)
    everyone = make_members(settings, identity["seed"])
    states = {}
    for stage in experiment.stages(settings):
        store = Checkpoints(workdir / "checkpoints" / stage.name)
        start = lambda stage=stage: members.begin(stage, everyone)  # noqa: E731
        fits = check_info(asked, stage.name)
        restored = store.restore(start, warn=warn, read_only=True, check=fits)
        store.close()
        step = restored.step if restored else 0
        if restored is None or step < stage.num_steps:
            raise RunError(
                f"stage {stage.name} of {workdir} is at step {step} of {stage.num_steps}; finish "
                "training first, with the same command as before (remove results.json if that says "
                "that the run is done)."
            )
        states[stage.name] = alone(stage, restored.state)
    return FinishedRun(_output_directory(workdir), settings, identity["seed"], states)


def _read_settings(experiment: Experiment, workdir: Path, identity: Mapping[str, Any]) -> Any:
    """The settings of a run of one member."""
    values = dict(identity["config"])
    swept = [n for n in swept_fields(experiment.config) if isinstance(values.get(n), list)]
    if values.pop("num_seeds", 1) != 1 or swept:
        first = next(iter(sorted(path.parent for path in workdir.glob("*/config.json"))), None)
        example = f", such as --workdir={first}" if first else ""
        raise RunError(f"{workdir} holds a run of several members; name one{example}.")
    try:
        return from_json(experiment.config, values)
    except ValueError as error:
        raise FileError(
            f"{workdir / 'config.json'} has a configuration that this version does not take: "
            f"{error} Use the version that trained the run (results.json names its commit), or "
            "train again."
        ) from None


def _output_directory(workdir: Path) -> Path:
    """Where a mode writes: the run's directory, or one of its name here if that is read-only."""
    if os.access(workdir, os.W_OK):
        return workdir
    here = Path(f"{workdir.resolve().name}_output").absolute()
    here.mkdir(exist_ok=True)
    warn(f"{workdir} cannot be written; files are written to {here}.")
    return here
