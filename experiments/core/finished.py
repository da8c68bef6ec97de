"""Finished runs, for the modes that use their trained parameters."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maml_jax.fitting import Selection
from maml_jax.types import Params

from .. import invocation
from . import members, results
from .checkpoints import Checkpoints
from .config import ConfigError, swept_fields
from .identity import (
    FORMAT,
    OLDER,
    RunError,
    check_info,
    check_same,
    differences,
    has_begun,
    identity_of,
    read_config,
)
from .logbook import warn
from .members import make_members, take, to_this_process
from .model_files import FOLDER
from .models import load_model, read_settings
from .stages import Experiment, Stage


def alone(stage: Stage, selection: Selection | None) -> Selection:
    """The selection of a run's only member, without the axis of members."""
    return take(to_this_process(members.finished(stage, selection)), 0)


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run of one member whose training is finished.

    Attributes:
        workdir: where a mode writes: the run's directory, if it is writable.
        settings: the run's configuration.
        seed: the run's seed.
        params: the selected parameters of each method.
        rows: test results, as in `results.json`; empty without that file.
        states: the final `Selection` of each stage, by name; empty unless read from checkpoints.
    """

    workdir: Path
    settings: Any
    seed: int
    params: Mapping[str, Params]
    rows: Sequence[Mapping[str, Any]] = ()
    states: Mapping[str, Selection] = dataclasses.field(default_factory=dict)


def load(experiment: Experiment, workdir: Path) -> FinishedRun:
    """Restores the training states of a run from its checkpoints.

    Stages of images need the training data; `load_params` does not.

    Raises:
        RunError: the directory holds no run of this experiment, a stage is not finished, the run
            has several members, or this process has other settings of JAX.
        FileError: a file of the run is damaged.
        CheckpointError: a checkpoint belongs to another run or step.
    """
    identity, settings = _read_run(experiment, workdir)
    everyone = make_members(settings, identity["seed"])
    states = {}
    for stage in experiment.stages(settings):
        store = Checkpoints(workdir / "checkpoints" / stage.name)
        start = lambda stage=stage: members.begin(stage, everyone)  # noqa: E731
        fits = check_info(identity, stage.name, "config.json says")
        restored = store.restore(start, warn=warn, read_only=True, check=fits)
        store.close()
        step = restored.step if restored else 0
        if restored is None or step < stage.num_meta_steps:
            raise RunError(
                f"stage {stage.name} of {workdir} is at step {step} of {stage.num_meta_steps}; "
                "finish training first, with the same command as before (remove results.json if "
                "that command reports that the run is done)."
            )
        states[stage.name] = alone(stage, restored.state)
    params = {name: state.best_params for name, state in states.items()}
    directory, rows = _output_directory(workdir), _rows(workdir)
    return FinishedRun(directory, settings, identity["seed"], params, rows, states)


def load_params(experiment: Experiment, workdir: Path) -> FinishedRun:
    """Reads the parameters of a run from its model files, without training data.

    Runs of versions that wrote no model files are restored from their checkpoints.

    Raises:
        RunError: as `load`; or a model file is of another run; or there are no model files, and
            the checkpoints need training data that is missing.
        FileError, CheckpointError: as `load`.
    """
    paths = sorted((workdir / FOLDER).glob("*.json"))
    if not paths:
        try:
            return load(experiment, workdir)
        except ConfigError as error:
            raise RunError(
                f"{workdir} has no model files ({FOLDER}/*.json), and its checkpoints cannot be "
                f"used without the training data: {error} Where the data is, remove results.json "
                "and repeat the command of the run: it writes the model files."
            ) from None
    identity, settings = _read_run(experiment, workdir)
    params = {}
    for path in paths:
        model = load_model(path, experiment)
        changed = differences(model.record, identity, "config.json says")
        if changed:
            raise RunError(f"{path} is of another run: it has {'; '.join(changed)}. Remove it.")
        params[model.record["method"]] = model.params
    directory, rows = _output_directory(workdir), _rows(workdir)
    return FinishedRun(directory, settings, identity["seed"], params, rows)


def _read_run(experiment: Experiment, workdir: Path) -> tuple[dict[str, Any], Any]:
    """The identity in this process and the settings of the run in a directory.

    Raises:
        RunError: the directory holds no run of one member of this experiment, or this process has
            other settings of JAX.
        FileError: a file of the run is damaged.
    """
    path = workdir / "config.json"
    if not path.exists():
        if has_begun(workdir):
            raise RunError(f"{path} is missing; the command that trained the run writes it again.")
        raise RunError(f"no run at {workdir}; train one first: --workdir={workdir} --mode=train.")
    identity = read_config(workdir)
    if identity["experiment"] != experiment.name:
        raise RunError(
            f"{workdir} holds a run of {identity['experiment']}, not {experiment.name}: use "
            f"{invocation(identity['experiment'])}."
        )
    if identity.get("format") != FORMAT:
        raise RunError(f"{workdir} holds {OLDER}")
    values = identity["config"]
    swept = [n for n in swept_fields(experiment.config) if isinstance(values.get(n), list)]
    if values.get("num_seeds", 1) != 1 or swept:
        first = next(iter(sorted(path.parent for path in workdir.glob("*/config.json"))), None)
        example = f", such as --workdir={first}" if first else ""
        raise RunError(f"{workdir} holds a run of several members; name one{example}.")
    settings = read_settings(experiment, path, values)
    asked = identity_of(experiment.name, identity["preset"], identity["seed"], settings)
    check_same(workdir, asked, "config.json says")
    return asked, settings


def _rows(workdir: Path) -> Sequence[Mapping[str, Any]]:
    """The test results of a run; none without `results.json`."""
    if not (workdir / "results.json").exists():
        return ()
    return results.read_results(workdir)["rows"]


def _output_directory(workdir: Path) -> Path:
    """Where a mode writes: the run's directory; if read-only, a folder of its name here."""
    if os.access(workdir, os.W_OK):
        return workdir
    here = Path(f"{workdir.resolve().name}_output").absolute()
    here.mkdir(exist_ok=True)
    warn(f"{workdir} cannot be written; files are written to {here}.")
    return here


__all__ = ["FinishedRun", "alone", "load", "load_params"]
