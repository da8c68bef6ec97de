"""Trained models for Python programs: `load_model`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from maml_jax import adapt
from maml_jax.checks import describe
from maml_jax.text import printable
from maml_jax.types import Batch, Params

from . import config as config_lib
from .files import FileError
from .identity import numbers_of
from .model_files import FOLDER, read_params, read_record
from .stages import Blueprint, Experiment, experiment_named


@dataclasses.dataclass(frozen=True, repr=False)
class Model:
    """A trained model, ready to adapt to new tasks.

    Attributes:
        params: the meta-trained parameters, a pytree.
        blueprint: the network and its inner loop.
        settings: the configuration of the run.
        record: the content of the JSON file: experiment, seed, classes, test results, ...
    """

    params: Params
    blueprint: Blueprint
    settings: Any
    record: Mapping[str, Any]

    def __repr__(self) -> str:
        """Names the model; the fields would fill pages."""
        record, leaves = self.record, jax.tree.leaves(self.params)
        size = sum(leaf.size for leaf in leaves)
        return f"Model({record['experiment']}, {record['method']}, {size:,} parameters)"

    @property
    def network(self) -> Any:
        """Has `init(key)` and `apply(params, inputs)`; a `Policy` in reinforcement learning."""
        return self.blueprint.network

    @property
    def problem(self) -> Any:
        """Has `inner_loss(params, batch)`; a `ReinforcementProblem` in reinforcement learning."""
        return self.blueprint.problem

    def adapt(
        self, support: Batch, num_inner_steps: int | None = None, inner_lr: float | None = None
    ) -> Params:
        """Adapts the parameters to the support of one task by gradient steps.

        Args:
            support: `regression.Examples`, `classification.LabelledImages`, or reinforcement's
                `Samples` with a leading axis of S.
            num_inner_steps: S; default `record["num_inner_steps"]`.
            inner_lr: alpha; default `record["inner_lr"]`, the rate of meta-training.

        Returns:
            Adapted parameters, in the structure of `params`.

        Raises:
            ValueError: the method takes no gradient steps, or has no default for an argument.
            TypeError: `support` is not of the type that the model's loss takes.
        """
        method, plan = self.record["method"], self.blueprint
        if plan.problem is None:
            raise ValueError(f"the method {method!r} takes no gradient steps; use network.apply.")
        num_inner_steps = plan.num_inner_steps if num_inner_steps is None else num_inner_steps
        inner_lr = plan.inner_lr if inner_lr is None else inner_lr
        if num_inner_steps is None or inner_lr is None:
            raise ValueError(
                f"the method {method!r} was trained without an inner loop; adapt needs both "
                "num_inner_steps= and inner_lr=."
            )
        try:
            return self._adapt(self.params, support, inner_lr, num_inner_steps)
        except AttributeError as error:
            if type(error.obj) is not type(support):
                raise
            raise TypeError(
                f"support must be {_batch_with(error.name)}; received {describe(support)}."
            ) from error

    @functools.cached_property
    def _adapt(self) -> Callable[..., Params]:
        loss, inner = self.blueprint.problem.inner_loss, self.blueprint.inner

        def adapted(params: Params, support: Batch, inner_lr: Any, num_inner_steps: int) -> Params:
            return adapt(loss, params, support, inner_lr, num_inner_steps, **inner)[0]

        return jax.jit(adapted, static_argnums=3)


def load_model(path: str | Path, experiment: Experiment | None = None) -> Model:
    """Loads a model that a finished run wrote: `load_model("runs/x/model/maml.json")`.

    Reading executes nothing from the files, and takes memory only for parameters of the network
    that the JSON file describes.

    Args:
        path: of the model's JSON file; its `.safetensors` file lies beside it.
        experiment: of the run; default the experiment of this package with the recorded name.

    Raises:
        FileError: a file is missing, damaged, of another version, of another experiment, or of
            another setting of JAX_ENABLE_X64.
    """
    path = Path(path)
    if path.is_dir():
        raise FileError(f"{path} is a folder; expected a file, such as {_example(path)}.")
    record = read_record(path)
    experiment = experiment or _experiment(record["experiment"], path)
    if record["experiment"] != experiment.name:
        raise FileError(
            f"{path} is of the experiment {printable(record['experiment'], 60)}; expected "
            f"{experiment.name}."
        )
    if experiment.blueprint is None:
        raise FileError(f"{path} cannot be loaded: {experiment.name} defines no blueprint.")
    _check_numbers(path, record)
    commit = "its 'environment' names the commit"
    settings = read_settings(experiment, path, record["config"], commit)
    try:
        blueprint = experiment.blueprint(settings, record["method"], tuple(record["classes"]))
        like = jax.eval_shape(blueprint.network.init, jax.random.key(0))
    except (ValueError, TypeError, OverflowError, MemoryError, RecursionError) as error:
        text = printable(str(error) or type(error).__name__, 300)
        raise FileError(f"{path} describes a network that cannot be built: {text}") from None
    params = read_params(path.with_suffix(".safetensors"), like, record["sha256"])
    return Model(params, blueprint, settings, record)


def read_settings(
    experiment: Experiment,
    path: Path,
    values: Mapping[str, Any],
    commit: str = "results.json names its commit",
) -> Any:
    """The configuration of one member, as a file of its run records it.

    Args:
        experiment: of the run.
        path: of the file, for errors.
        values: the file's `"config"`.
        commit: where the commit that trained the run is recorded, for errors.

    Raises:
        FileError: this version does not take the configuration.
    """
    try:
        settings = {name: value for name, value in values.items() if name != "num_seeds"}
        return config_lib.from_json(experiment.config, settings)
    except ValueError as error:
        raise FileError(
            f"{path} has a configuration that this version does not take: "
            f"{printable(str(error), 300)} Use the version that trained the run ({commit}), or "
            "train again."
        ) from None


def _batch_with(field: str) -> str:
    """Names the type of a support batch with a field, or every type if none has the field."""
    from maml_jax.classification import LabelledImages
    from maml_jax.regression import Examples
    from maml_jax.reinforcement import Samples

    kinds = {
        f"maml_jax.{package}.{kind.__name__}({', '.join(kind._fields)})": kind._fields
        for package, kind in (
            ("regression", Examples),
            ("classification", LabelledImages),
            ("reinforcement", Samples),
        )
    }
    return " or ".join([name for name, fields in kinds.items() if field in fields] or kinds)


def _check_numbers(path: Path, record: Mapping[str, Any]) -> None:
    """Raises unless this process has floats of the width that the model was trained with."""
    saved, ours = numbers_of(record)["jax_enable_x64"], bool(jax.config.jax_enable_x64)
    if saved != ours:
        raise FileError(
            f"{path} was trained with JAX_ENABLE_X64={printable(str(saved), 60)}; set it "
            f"(this process has {ours})."
        )


def _experiment(name: str, path: Path) -> Experiment:
    """An experiment of this package, by the name in a file."""
    experiment = experiment_named(name)
    if experiment is None:
        raise FileError(
            f"{path} is of the experiment {printable(name, 60)}, which this package lacks; pass "
            "it as experiment=."
        )
    return experiment


def _example(folder: Path) -> Path:
    """A model file in a run's folder, or the usual name of one."""
    for inside in (folder, folder / FOLDER):
        for path in sorted(inside.glob("*.safetensors")):
            return path.with_suffix(".json")
    return folder / FOLDER / "maml.json"
