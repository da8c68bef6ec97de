"""The flags of a configuration: one per public field, and `--set` for the internal fields."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from .config import ConfigError, describe_range, field_kind, public_fields

ITEMS = {int: "whole numbers", float: "numbers", str: "names"}  # of a list, in an error


def define_flags(config_class: type, presets: Mapping[str, Mapping[str, Any]], module: str) -> None:
    """Defines the flags of a configuration, which `--help` lists under `module`."""
    hints = typing.get_type_hints(config_class)
    for field in public_fields(config_class):
        kind = field_kind(hints[field.name])
        allowed = describe_range(field.metadata)
        if kind is tuple:
            allowed = allowed.replace("one of", "any of")
        per_preset = ", ".join(
            f"{name}: {_shown(values[field.name])}"
            for name, values in presets.items()
            if field.name in values
        )
        text = field.metadata["help"]
        text += f" Allowed: {allowed}." if allowed else ""
        text += f" In presets: {per_preset}." if per_preset else ""
        default = field.default
        if field.metadata.get("sweep"):
            text += " Each of several values, separated by commas, makes a member of the run."
            shown = None if default is None else [str(default)]
            flags.DEFINE_list(field.name, shown, text, module_name=module)
        elif kind is bool:
            flags.DEFINE_boolean(field.name, default, text, module_name=module)
        elif kind is int:
            flags.DEFINE_integer(field.name, default, text, module_name=module)
        elif kind is float:
            flags.DEFINE_float(field.name, default, text, module_name=module)
        elif kind is tuple:
            shown = [str(item) for item in default]
            flags.DEFINE_list(field.name, shown, text, module_name=module)
        else:
            flags.DEFINE_string(field.name, default, text, module_name=module)

    rest = [f for f in dataclasses.fields(config_class) if f.metadata.get("internal")]
    names = "".join(f"\n  {_described(field)}" for field in rest)
    flags.DEFINE_multi_string(
        "set",
        [],
        "Changes a setting that has no flag, as NAME=VALUE; the default is rarely wrong. May be "
        f"given several times. Names, with defaults:{names}",
        module_name=module,
    )


def _described(field: dataclasses.Field[Any]) -> str:
    """Describes an internal setting in a line: name, default and meaning."""
    default = "" if field.default in (None, ()) else f"={_shown(field.default)}"
    return f"{field.name}{default}: {field.metadata['help']}"


def check_names(config_class: type, arguments: Sequence[str]) -> None:
    """Checks that the command line does not give an internal setting as a flag.

    Raises:
        ConfigError: it does; the message shows `--set`.
    """
    rest = {f.name for f in dataclasses.fields(config_class) if f.metadata.get("internal")}
    for argument in arguments:
        name = argument.lstrip("-").partition("=")[0]
        if argument.startswith("-") and name in rest:
            raise ConfigError(f"--{name} is not a flag; use --set={name}=VALUE.")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def overrides_from_flags(
    config_class: type, values: flags.FlagValues
) -> tuple[dict[str, Any], dict[str, tuple[float, ...]]]:
    """Collects the fields given on the command line, converted to their types.

    Returns:
        Two dicts: the fields, with the first value of each swept one; and all values of the swept
        fields.

    Raises:
        ConfigError: a value is of another type, or a setting is given twice.
    """
    hints = typing.get_type_hints(config_class)
    given, swept = {}, {}
    for field in public_fields(config_class):
        name = field.name
        if not values[name].present:
            continue
        value = values[name].value
        kind = field_kind(hints[name])
        if field.metadata.get("sweep"):
            numbers = _parse_list(f"--{name}", value, float)
            if not numbers:
                raise ConfigError(f"--{name} must be one number or several; received none.")
            value = numbers[0]
            if len(numbers) > 1:
                swept[name] = numbers
        elif kind is tuple:
            value = _parse_list(f"--{name}", value, typing.get_args(hints[name])[0])
        given[name] = value
    for text in values["set"].value:
        name, value = _parse_setting(config_class, hints, text)
        if name in given:
            raise ConfigError(f"--set={text}: {name} is given twice.")
        given[name] = value
    return given, swept


def given_flags(
    config_class: type, values: flags.FlagValues, used: Sequence[str] = ()
) -> list[str]:
    """Lists the flags on the command line that choose a run's settings: `--NAME`, `--set=NAME`.

    Those `used` by a mode are left out.
    """
    names = ("preset", "seed", "num_seeds", *(field.name for field in public_fields(config_class)))
    internal = [text.partition("=")[0] for text in values["set"].value]
    return [
        *(f"--{name}" for name in names if values[name].present and name not in used),
        *(f"--set={name}" for name in internal),
    ]


def _parse_setting(config_class: type, hints: Mapping[str, Any], text: str) -> tuple[str, Any]:
    """Parses NAME=VALUE of `--set`."""
    name, equals, value = text.partition("=")
    rest = [f.name for f in dataclasses.fields(config_class) if f.metadata.get("internal")]
    if not equals or name not in rest:
        flag = f" Use --{name}=VALUE." if name in hints and name not in rest else ""
        raise ConfigError(
            f"--set must be NAME=VALUE with a NAME of {', '.join(rest)}; received {text!r}.{flag}"
        )
    kind = field_kind(hints[name])
    if kind is tuple:
        return name, _parse_list(f"--set={name}", value.split(","), typing.get_args(hints[name])[0])
    if kind is bool:
        if value not in ("true", "false"):
            raise ConfigError(f"--set={name} must be true or false; received {value!r}.")
        return name, value == "true"
    try:
        return name, kind(value)
    except ValueError:
        expected = {int: "an integer", float: "a number"}.get(kind, kind.__name__)
        raise ConfigError(f"--set={name} must be {expected}; received {value!r}.") from None


def _parse_list(flag: str, parts: list[str], item: Any) -> tuple[Any, ...]:
    try:
        return tuple(item(part) for part in parts)
    except ValueError:
        raise ConfigError(
            f"{flag} must be {ITEMS[item]} separated by commas; received {','.join(parts)!r}."
        ) from None


def check_finite_flags(values: flags.FlagValues) -> None:
    """Checks that all flags with float values are finite.

    Raises:
        ConfigError: one is not; the message names it.
    """
    for name in values:
        value = values[name].value
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"--{name} must be a finite number; received {value!r}.")
