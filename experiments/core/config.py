"""Configurations: one frozen dataclass per experiment, with the range of each field, and presets.

The dataclass alone holds the defaults; flags, `--help`, range checks and `config.json` derive from
it.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np

from maml_jax import MODES
from maml_jax.kernels.preferences import preferred

from .files import NUMBER, check_object, is_of


def option(
    default: Any,
    help: str,
    *,
    above: float | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] | None = None,
    repeats: bool = False,
    sweep: bool = False,
    internal: bool = False,
) -> Any:
    """Declares a field of a configuration: its default, its help text and its range.

    Args:
        default: the default value.
        help: the meaning, with the unit.
        above: an exclusive lower bound of a number.
        minimum: the smallest number allowed.
        maximum: the largest number allowed.
        choices: the strings allowed.
        repeats: whether a list may hold a value twice.
        sweep: whether the flag takes several numbers, `--inner_lr=0.001,0.01`, each of which makes
            a member of the run. Programs take such a setting as an argument: a float.
        internal: whether the setting has one good value, and so no flag of its name.
            `--set=NAME=VALUE` and Python code can set it; `config.json` records it.
    """
    metadata = {
        "repeats": repeats,
        "sweep": sweep,
        "internal": internal,
        "help": help,
        "above": above,
        "minimum": minimum,
        "maximum": maximum,
        "choices": choices,
    }
    return dataclasses.field(default=default, metadata=metadata)


META_GRADIENTS = ("auto", *MODES)  # choices of --meta_gradient
INT32_MAX = 2**31 - 1
MAX_VALUES = 1_000  # of a list, in a stranger's file, too; JAX needs 6 ms to describe a layer


class ConfigError(ValueError):
    """A setting is not allowed; the message names the expected and the received value."""


BATCHING_HELP = (
    "How a device computes its tasks: in sequence (scan), as one batch (vmap), or a number of them "
    "at a time; auto: scan on a CPU, else vmap. Does not change results."
)


def parse_batching(value: str) -> str | int:
    """Parses the setting `task_batching`: auto, scan, vmap or a number of tasks.

    Raises:
        ConfigError: the value is none of these.
    """
    if value in ("auto", "scan", "vmap"):
        return value
    if value.isdecimal() and int(value) > 0:
        return int(value)
    raise ConfigError(
        f"--set=task_batching must be auto, scan, vmap or a number of tasks; received {value!r}."
    )


def batching_of(value: str) -> str | int:
    """Parses `task_batching` and replaces auto by the platform's choice, for which JAX starts."""
    parsed = parse_batching(value)
    return preferred("batching") if parsed == "auto" else parsed


def check_fields(config: Any) -> None:
    """Checks every field of a configuration against its range; for `__post_init__`.

    Raises:
        ConfigError: names the field, the allowed and the received value.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        flag = flag_of(config, field.name)
        if isinstance(value, tuple) and len(value) > MAX_VALUES:
            raise ConfigError(
                f"{flag} must have at most {MAX_VALUES:,} values; received {len(value):,}."
            )
        for part in value if isinstance(value, tuple) else (value,):
            expected = _violated(part, field.metadata)
            if expected:
                raise ConfigError(f"{flag} must be {expected}; received {part!r}.")
        if not isinstance(value, tuple):
            continue
        if not value:
            raise ConfigError(f"{flag} must name at least one value; received none.")
        if not field.metadata.get("repeats") and len({*map(_as_used, value)}) < len(value):
            shown = ",".join(map(str, value))
            raise ConfigError(f"{flag} must name each value once; received {shown}.")


def flag_of(config: Any, name: str) -> str:
    """Returns the flag of a setting: `--NAME`, or `--set=NAME` for an internal one."""
    fields = {field.name: field for field in dataclasses.fields(config)}
    return f"--set={name}" if fields[name].metadata.get("internal") else f"--{name}"


def _violated(value: Any, limits: Mapping[str, Any]) -> str | None:
    choices, above = limits.get("choices"), limits.get("above")
    minimum, maximum = limits.get("minimum"), limits.get("maximum")
    if choices is not None:
        return None if value in choices else "one of " + ", ".join(choices)
    if isinstance(value, bool) or not isinstance(value, NUMBER):
        return None
    if isinstance(value, int) and value > INT32_MAX:
        return f"at most {INT32_MAX}, the largest int32"
    if isinstance(value, int) and value < -INT32_MAX:
        return describe_range(limits) or f"at least {-INT32_MAX}"
    used = _as_used(value)
    if not math.isfinite(used):
        return " ".join(["a finite number", describe_range(limits)]).strip()
    inside = (
        (above is None or (value > above and used > above))
        and (minimum is None or value >= minimum)
        and (maximum is None or value <= maximum)
    )
    return None if inside else describe_range(limits)


def _as_used(value: Any) -> Any:
    """Rounds a float to float32, as programs do: two may become equal, and one may become 0."""
    if not isinstance(value, float):
        return value
    with np.errstate(over="ignore"):
        return np.float32(value)


def public_fields(config_class: type) -> list[dataclasses.Field[Any]]:
    """Lists the fields that have a flag of their name."""
    return [f for f in dataclasses.fields(config_class) if not f.metadata.get("internal")]


def swept_fields(config_class: type) -> tuple[str, ...]:
    """Names the settings that may differ between the members of a run."""
    return tuple(f.name for f in dataclasses.fields(config_class) if f.metadata.get("sweep"))


def without_swept(config: Any) -> Any:
    """Returns the configuration with every setting that can be swept set to 1.

    Programs take those settings as arguments. With this key in a cache, members share a program.
    """
    return dataclasses.replace(config, **dict.fromkeys(swept_fields(type(config)), 1.0))


def describe_range(limits: Mapping[str, Any]) -> str:
    """Describes the allowed values: "above 0", "from 1 to 10", "one of a, b"; "" for any."""
    if limits.get("choices"):
        return "one of " + ", ".join(limits["choices"])
    above, minimum, maximum = (limits.get(key) for key in ("above", "minimum", "maximum"))
    parts = []
    if above is not None:
        parts.append(f"above {above:g}")
    if minimum is not None and maximum is not None:
        return f"from {minimum:g} to {maximum:g}"
    if minimum is not None:
        parts.append(f"{minimum:g} or more")
    if maximum is not None:
        parts.append(f"at most {maximum:g}")
    return " and ".join(parts)


def field_kind(hint: Any) -> Any:
    """Returns the type of a field's values by its annotation; `tuple` for a list."""
    if isinstance(hint, types.GenericAlias):
        return typing.get_origin(hint)
    if isinstance(hint, types.UnionType):  # "int | None": None stands for a computed default
        return next(arg for arg in typing.get_args(hint) if arg is not types.NoneType)
    return hint


def build(
    config_class: type,
    presets: Mapping[str, Mapping[str, Any]],
    preset: str,
    overrides: Mapping[str, Any],
) -> Any:
    """Builds a configuration from the class's defaults, then a preset, then overrides.

    Args:
        config_class: the experiment's configuration class.
        presets: by name, the fields that differ from the defaults.
        preset: the name of the preset.
        overrides: the fields that differ from the preset.

    Raises:
        ConfigError: the preset or a field is unknown, or a value is out of range.
    """
    if preset not in presets:
        raise ConfigError(f"--preset must be one of {', '.join(presets)}; received {preset!r}.")
    names = {field.name for field in dataclasses.fields(config_class)}
    unknown = sorted(set(overrides) - names)
    if unknown:
        raise ConfigError(f"no such field: {', '.join(unknown)}; fields: {', '.join(names)}.")
    return config_class(**{**presets[preset], **overrides})


def from_json(config_class: type, values: Mapping[str, Any]) -> Any:
    """Reads the configuration of one member from the object in `config.json`.

    Raises:
        ValueError: a field is missing, unknown, of another type or out of range.
    """
    hints = typing.get_type_hints(config_class)
    kinds = {}
    for field in dataclasses.fields(config_class):
        kind = field_kind(hints[field.name])
        kinds[field.name] = {tuple: list, float: NUMBER}.get(kind, kind)
    try:
        check_object(values, kinds, {})
    except ValueError as error:
        raise ValueError(f"it {error}.") from None
    fields = {}
    for name, value in values.items():
        fields[name] = tuple(value) if isinstance(value, list) else value
        if not isinstance(value, list):
            continue
        item = typing.get_args(hints[name])[0]
        for part in value:
            if not is_of(part, NUMBER if item is float else item):
                raise ValueError(f"it has {part!r} in {name!r}; expected {item.__name__}.")
    return config_class(**fields)


def to_json(config: Any) -> dict[str, Any]:
    """Converts a configuration to the object in `config.json`: tuples become lists."""
    return {
        field.name: list(value) if isinstance(value, tuple) else value
        for field in dataclasses.fields(config)
        for value in [getattr(config, field.name)]
    }
