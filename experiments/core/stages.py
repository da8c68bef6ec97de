"""The parts of an experiment, as data: stages to train, outcomes of evaluation, models to load.

The runner owns the loop, checkpoints, validation and results; an experiment describes itself with
the classes below.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jax.sharding import Mesh, PartitionSpec

from maml_jax.types import Array, Params

if TYPE_CHECKING:
    from maml_jax.fitting import Selection
    from maml_jax.types import MetaUpdate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One meta-training of a run, described for one member; the runner adds the axis of members.

    Attributes:
        name: the method; names the stage's checkpoints and model files.
        init: `init(key) -> params`. The runner splits the member's key, `jax.random.key(seed)`,
            into a key for `init` and a key for training.
        sample: `sample(params, key, *data) -> Task`, one task.
        update: how meta-parameters move.
        num_tasks: T, tasks of a meta-batch.
        num_meta_steps: meta-steps in total.
        steps_per_call: meta-steps of one dispatch. A run validates, stops and saves between
            dispatches.
        steps_per_draw: meta-steps whose tasks are drawn in one call, see `make_train_fn`.
        data: `data(mesh)`, a tuple of arrays that all members share, placed on the mesh.
        data_specs: how `data` lies on the mesh, as in `make_train_fn`.
        member_data: `member_data(key)`, a tuple of arrays for one member, from the member's key
            `jax.random.key(seed)`. They follow `data` in the arguments of `sample`.
        score: `score(params)` on validation tasks, higher is better. None selects the parameters of
            the last meta-step.
        score_name: names the score in `metrics.jsonl`: `validation/NAME`, `validation/best_NAME`.
        validate_every: meta-steps between validations. The last meta-step is validated, too.
        one_by_one: whether a device trains its members in sequence rather than as a batch.
        shown: metrics of the progress bar, by their names in `metrics.jsonl`.
        check: `check(metrics)` returns a warning about the metrics of a dispatch, or None.
        before_training: `before_training(mesh)` runs once, before `data`; to estimate memory, say.
        prepare: `prepare()` runs in a thread while the program compiles; to draw validation tasks,
            say.
    """

    name: str
    init: Callable[[Array], Params]
    sample: Callable[..., Any]
    update: MetaUpdate
    num_tasks: int
    num_meta_steps: int
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
    """The evaluation of one member.

    Attributes:
        rows: rows of `results.json`, made by `results.make_row`.
        arrays: further arrays for the figure; saved as `evaluation.npz`.
        classes: names of the training classes, in the order of their labels; empty without classes.
        params: by stage, parameters to give away in place of the stage's best ones.
    """

    rows: list[dict[str, Any]]
    arrays: dict[str, np.ndarray]
    classes: tuple[str, ...] = ()
    params: Mapping[str, Params] = dataclasses.field(default_factory=dict)


class Blueprint(NamedTuple):
    """How to use the parameters of a method; built from settings alone, without training data.

    Attributes:
        network: has `init(key) -> params`; an `apply(params, inputs)`, or the parts of a policy.
        description: of the network (key `"network"`) and its inputs, as JSON; the other keys of the
            model's file take precedence.
        problem: has `inner_loss`; None for a method without gradient steps.
        inner_lr: alpha; None for a method without an inner loop in training.
        num_inner_steps: gradient steps of `adapt` by default.
        inner: further arguments of `maml_jax.adapt`.
        methods: names of the method in the rows of results; empty for the name of its stage.
    """

    network: Any
    description: Mapping[str, Any]
    problem: Any = None
    inner_lr: float | None = None
    num_inner_steps: int | None = None
    inner: Mapping[str, Any] = {}
    methods: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment, as the runner and the command line use it.

    Attributes:
        name: as in `python -m experiments.NAME`.
        summary: one sentence, for the first line of a run and of `--help`.
        config: a frozen dataclass with a `config.option` for each field.
        presets: by name, the fields that differ from the defaults.
        stages: `stages(config)`. Settings that can be swept may be traced scalars.
        evaluate: `evaluate(config, seed, selections) -> Outcome` of one member, with a `Selection`
            (state, best_params, ...) for each stage by name.
        figure: `figure(path, results, arrays, metrics)` draws `figure.png` of one member.
        blueprint: `blueprint(config, method, classes) -> Blueprint` of a stage's parameters, with
            the names of the training classes. None writes no model files.
        modes: further modes, `mode(run: FinishedRun, **arguments)`, by name.
        mode_flags: the flags of each further mode: name, default and help.
        mode_settings: the settings that each further mode takes from the command line, as
            arguments of these names. It uses the run's values of the others.
        reads_data: whether it reads a data set from --data_dir.
        cpu_threads: XLA's threads on a CPU; None for one a core. Programs of many kernels of
            microseconds each are faster with one.
        cpu_devices: `cpu_devices(config, num_members, cores)`, the number of JAX devices that a CPU
            is split into; None for one.
        small_kernels: whether all kernels of its programs are small, see `process.lay_out_cpu`.
    """

    name: str
    summary: str
    config: type
    presets: Mapping[str, Mapping[str, Any]]
    stages: Callable[[Any], list[Stage]]
    evaluate: Callable[[Any, int, Mapping[str, Selection]], Outcome]
    figure: Callable[[Path, dict[str, Any], Mapping[str, np.ndarray], list[dict[str, Any]]], None]
    blueprint: Callable[[Any, str, tuple[str, ...]], Blueprint] | None = None
    modes: Mapping[str, Callable[..., None]] = dataclasses.field(default_factory=dict)
    mode_flags: Mapping[str, tuple[tuple[str, Any, str], ...]] = dataclasses.field(
        default_factory=dict
    )
    mode_settings: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    reads_data: bool = False
    cpu_threads: int | None = None
    cpu_devices: Callable[[Any, int, int], int] | None = None
    small_kernels: bool = False


def experiment_named(name: str) -> Experiment | None:
    """Imports the experiment of this package with a name; None if there is none."""
    package = __package__.rpartition(".")[0]
    names = importlib.import_module(f"{package}.__main__").COMMANDS
    if name not in names:  # the name may be of a file: nothing else of it decides what is imported
        return None
    return getattr(importlib.import_module(f"{package}.{name}"), "EXPERIMENT", None)
