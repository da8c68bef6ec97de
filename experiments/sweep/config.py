"""The settings of a sweep: those of an experiment, with lists where members differ."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import itertools
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.core.config import ConfigError, check_fields, option
from experiments.core.runner import Experiment

EXPERIMENTS = ("sinusoid", "omniglot", "mini_imagenet")
OTHERS = ("navigation", "locomotion")  # which train several seeds at once by themselves
METHODS = ("maml", "first_order")
RATES = ("inner_lr", "meta_lr")


class Member(NamedTuple):
    """One run of a sweep.

    Attributes:
        label: what tells it from the others, and its directory's name.
        settings: its configuration, as if it were run alone.
        seed: its seed.
    """

    label: str
    settings: Any
    seed: int


def find_experiment(name: str | None) -> Experiment:
    """An experiment that can be swept.

    Raises:
        ConfigError: there is none of this name.
    """
    if name in OTHERS:
        raise ConfigError(
            f"--experiment={name} cannot be swept; several seeds at once: "
            f"python -m experiments.{name} --num_seeds=N."
        )
    if name not in EXPERIMENTS:
        allowed = ", ".join(EXPERIMENTS)
        raise ConfigError(f"--experiment must be one of {allowed}; received {name or 'none'}.")
    return importlib.import_module(f"experiments.{name}").EXPERIMENT


@functools.cache
def sweep_config(name: str) -> type:
    """The configuration class of the sweep of an experiment."""
    base = find_experiment(name).config
    hints = typing.get_type_hints(base)
    named = option(name, "What is swept.", choices=(name,))
    seeds = option((0,), "Seeds of the members.", minimum=0, maximum=999_999)
    fields: list[Any] = [("experiment", str, named), ("seeds", tuple[int, ...], seeds)]
    for field in dataclasses.fields(base):
        kind, default, metadata = hints[field.name], field.default, field.metadata
        if field.name == "num_seeds":
            continue  # --seeds says it
        if field.name in RATES:
            kind, default = tuple[float, ...], (default,)
        elif field.name == "methods":
            default, metadata = METHODS[:1], {**metadata, "help": "The method: maml, first_order."}
        fields.append((field.name, kind, dataclasses.field(default=default, metadata=metadata)))
    return dataclasses.make_dataclass(
        "Config", fields, frozen=True, namespace={"__post_init__": _check}
    )


def _check(config: Any) -> None:
    """Checks the settings, and takes from the experiment what it works out."""
    check_fields(config)
    if len(config.methods) > 1 or config.methods[0] not in METHODS:
        raise ConfigError(
            f"--methods of a sweep must be one of {', '.join(METHODS)}; "
            f"received {','.join(config.methods)}."
        )
    first = make_members(config)[0].settings
    for field in dataclasses.fields(config):
        if getattr(config, field.name) is None:
            object.__setattr__(config, field.name, getattr(first, field.name))


def sweep_presets(base: Experiment) -> dict[str, Mapping[str, Any]]:
    """The experiment's presets, without the methods that they compare."""
    return {
        preset: {
            name: (value,) if name in RATES else value
            for name, value in values.items()
            if name not in ("methods", "num_seeds")
        }
        for preset, values in base.presets.items()
    }


def make_members(config: Any) -> list[Member]:
    """The members of a sweep: every combination of the seeds and rates listed.

    Raises:
        ConfigError: the experiment refuses the settings of one.
    """
    base = find_experiment(config.experiment).config
    names = {field.name for field in dataclasses.fields(base)} - {"num_seeds"}
    fields = {name: getattr(config, name) for name in names}
    members = []
    for seed, *values in itertools.product(config.seeds, *(fields[name] for name in RATES)):
        rates = dict(zip(RATES, values, strict=True))
        label = ",".join(f"{name}={value!r}" for name, value in {"seed": seed, **rates}.items())
        members.append(Member(label, base(**{**fields, **rates}), seed))
    return members
