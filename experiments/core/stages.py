"""What an experiment is made of: stages as data, and what its evaluation returns.

The runner owns the loop, validation, the choice of the best parameters, checkpoints and results.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.sharding import Mesh, PartitionSpec

from maml_jax.types import Array, Params

if TYPE_CHECKING:
    from maml_jax.fitting import Selection
    from maml_jax.types import MetaUpdate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One meta-training of a run, for one member; the runner adds the axis of members.

    Attributes:
        name: the method, and the name of its checkpoints.
        init: `init(key) -> params`. The runner splits a member's key, `jax.random.key(seed)`, into
            the key for this and the key of training.
        sample: `sample(params, key, *data) -> Task`, one task.
        update: how meta-parameters move.
        num_tasks: T, tasks of a meta-batch.
        num_steps: meta-steps in all.
        steps_per_call: meta-steps of one dispatch; runs validate, stop and save between dispatches.
        steps_per_draw: for how many meta-steps tasks are drawn at a time, see `make_train_fn`.
        data: `data(mesh)`, a tuple of arrays that all members share, placed on the mesh.
        data_specs: how `data` lies on the mesh, as in `make_train_fn`.
        member_data: `member_data(key)`, a tuple of arrays that belong to one member, from its key
            `jax.random.key(seed)`. They follow `data` in the arguments of `sample`.
        score: `score(params)` on validation tasks, higher is better; None takes the parameters of
            the last meta-step.
        score_name: in `metrics.jsonl`: `validation/NAME` and `validation/best_NAME`.
        validate_every: meta-steps between validations; there is one at the end, too.
        one_by_one: whether a device trains its members one after the other, rather than as a batch.
        shown: metrics for the progress bar, by their names in `metrics.jsonl`.
        check: `check(metrics)` returns a warning about the metrics of a dispatch, or None.
        before_training: `before_training(mesh)` runs once, before `data`: advice on memory, say.
        prepare: `prepare()` runs in a thread while the program compiles: draws validation tasks.
    """

    name: str
    init: Callable[[Array], Params]
    sample: Callable[..., Any]
    update: MetaUpdate
    num_tasks: int
    num_steps: int
    steps_per_call: int
    steps_per_draw: int | None = None
    data: Callable[[Mesh], tuple[Any, ...]] | None = None
    data_specs: Any = PartitionSpec()  # noqa: RUF009
    member_data: Callable[[Array], tuple[Any, ...]] | None = None
    score: Callable[[Params], Any] | None = None
    score_name: str = "accuracy"
    validate_every: int = 0
    one_by_one: bool = False
    shown: tuple[str, ...] = ("loss",)
    check: Callable[[Mapping[str, Any]], str | None] | None = None
    before_training: Callable[[Mesh], None] | None = None
    prepare: Callable[[], Any] | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the evaluation of one member returns.

    Attributes:
        rows: of `results.json`, each from `results.make_row`.
        arrays: what the figure needs beyond the rows; saved as `evaluation.npz`.
    """

    rows: list[dict[str, Any]]
    arrays: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment, as the runner and the command line need it.

    Attributes:
        name: as in `python -m experiments.NAME`.
        summary: a sentence on what it does, for the first line of a run and of `--help`.
        config: a frozen dataclass with a `config.option` for each field.
        presets: by name, the fields that differ from the defaults.
        stages: `stages(config)`. Settings that can be swept may be traced scalars.
        evaluate: `evaluate(config, seed, selections) -> Outcome` of one member, with a `Selection`
            (state, best_params, ...) for each stage by name.
        figure: `figure(path, results, arrays, metrics)` draws `figure.png` of one member.
        modes: further modes, `mode(run: FinishedRun, **arguments)`, by name.
        mode_flags: for each further mode its flags: name, default and help.
        cpu_threads: threads for XLA on a CPU, or None for one a core. Programs of many kernels
            that take microseconds each are faster with one.
        cpu_devices: `cpu_devices(config, num_members, cores)`, into how many JAX devices a CPU is
            split; None for one.
        small_kernels: whether its programs have small kernels only, see `process.lay_out_cpu`.
    """

    name: str
    summary: str
    config: type
    presets: Mapping[str, Mapping[str, Any]]
    stages: Callable[[Any], list[Stage]]
    evaluate: Callable[[Any, int, Mapping[str, Selection]], Outcome]
    figure: Callable[[Path, dict[str, Any], Mapping[str, np.ndarray], list[dict[str, Any]]], None]
    modes: Mapping[str, Callable[..., None]] = dataclasses.field(default_factory=dict)
    mode_flags: Mapping[str, tuple[tuple[str, Any, str], ...]] = dataclasses.field(
        default_factory=dict
    )
    cpu_threads: int | None = None
    cpu_devices: Callable[[Any, int, int], int] | None = None
    small_kernels: bool = False
