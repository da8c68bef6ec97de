"""Model files: `model/METHOD.safetensors` with the parameters, `model/METHOD.json` with the rest.

A finished run writes them for each method. They need neither the training data nor the
checkpoints, and reading them executes nothing, so files of strangers are safe to read.
docs/sharing.md documents both files.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from maml_jax.fitting import Selection
from maml_jax.text import printable
from maml_jax.types import Params

from .files import NUMBER, FileError, check_object, is_of, read_json, write_json
from .identity import FORMAT, KEYS, OPTIONAL
from .stages import Experiment, Outcome

FOLDER = "model"
MAX_JSON = 16_000_000  # bytes; 1,200 class names take 50,000
MAX_HEADER = 1_000_000  # bytes of a .safetensors file beyond its numbers; 10 tensors take 1,000
MAX_NAMED = 3  # differences in an error
_KEYS = {
    **KEYS,
    "format": int,
    "method": str,
    "meta_step": int,
    "inner_lr": (*NUMBER, type(None)),
    "num_inner_steps": (int, type(None)),
    "network": dict,
    "classes": list,
    "environment": dict,
    "rows": list,
    "sha256": str,
}
_ADVICE = "Copy both files of the model again."


def write_models(
    workdir: Path,
    experiment: Experiment,
    settings: Any,
    record: Mapping[str, Any],
    selections: Mapping[str, Selection],
    outcome: Outcome,
) -> None:
    """Writes the files of every method of a run; nothing for an experiment without blueprint.

    Args:
        workdir: of the run.
        experiment: of the run.
        settings: of the run.
        record: the content of `results.json`.
        selections: the final `Selection` of each stage, by name.
        outcome: of the evaluation.

    Raises:
        ValueError: as `file_names`.
    """
    if experiment.blueprint is None:
        return
    files = file_names(selections)
    folder = workdir / FOLDER
    folder.mkdir(exist_ok=True)
    kept = {key: record[key] for key in (*KEYS, *OPTIONAL, "environment")}
    for method, selection in selections.items():
        blueprint = experiment.blueprint(settings, method, outcome.classes)
        params = outcome.params.get(method, selection.best_params)
        content = safetensors.numpy.save(named_arrays(params))
        names = blueprint.methods or (method,)
        path = folder / f"{files[method]}.json"
        _write_bytes(path.with_suffix(".safetensors"), content)
        write_json(
            path,
            {
                **blueprint.description,
                **kept,
                "method": method,
                "meta_step": int(selection.best_step),
                "inner_lr": blueprint.inner_lr,
                "num_inner_steps": blueprint.num_inner_steps,
                "classes": list(outcome.classes),
                "rows": [row for row in record["rows"] if row["method"] in names],
                "sha256": hashlib.sha256(content).hexdigest(),
            },
        )


def file_names(methods: Iterable[str]) -> dict[str, str]:
    """The names of the methods' files, without suffix: lower-case letters, digits, underscores.

    Raises:
        ValueError: a name is empty, or two methods have the same.
    """
    names: dict[str, str] = {}
    for method in methods:
        name = re.sub(r"[^a-z0-9]+", "_", method.lower()).strip("_")
        if not name:
            raise ValueError(f"the name of a stage must have an ASCII letter; received {method!r}.")
        if name in names.values():
            raise ValueError(
                f"the names of stages must differ in letters or digits, for their files "
                f"{name}.json; received {method!r} and another such name."
            )
        names[method] = name
    return names


def named_arrays(params: Params) -> dict[str, np.ndarray]:
    """The leaves of parameters as NumPy arrays, by their path, `"Dense_0/kernel"`.

    Raises:
        ValueError: two leaves have the same path as text.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    arrays = {_name(path): np.asarray(leaf, order="C") for path, leaf in leaves}
    if len(arrays) < len(leaves):
        raise ValueError("parameters must have one name for each leaf; two have the same.")
    return arrays


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def read_record(path: Path) -> dict[str, Any]:
    """The content of a model's JSON file.

    Raises:
        FileError: the file cannot be read, is too large, or has another content.
    """
    if path.suffix != ".json":
        raise FileError(f"{path} is not a model's description; expected {path.stem}.json.")
    _check_size(path, MAX_JSON)
    record = read_json(path, _KEYS, advice=_ADVICE)
    if record["format"] != FORMAT:
        raise FileError(
            f"{path} has the format {record['format']}; this version of maml_jax reads {FORMAT}. "
            "Use the version that wrote it ('environment' names its commit)."
        )
    try:
        check_object(record["environment"], {"commit": str}, None, "'environment'")
        if not all(is_of(name, str) for name in record["classes"]):
            raise ValueError("has 'classes' that are not all text")
    except ValueError as error:
        raise FileError(f"{path} {error}. {_ADVICE}") from None
    return record


def read_params(path: Path, like: Params, sha256: str) -> Params:
    """The parameters in a `.safetensors` file.

    Args:
        path: of the file.
        like: arrays, or their shapes and dtypes, in the structure of the result.
        sha256: digest of the file, as its JSON file has it.

    Raises:
        FileError: the file cannot be read, has other names, shapes, dtypes or another digest, or
            holds numbers that are not finite.
    """
    expected = {_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(like)}
    numbers = sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in expected.values())
    _check_size(path, numbers + MAX_HEADER)  # before any memory is taken
    content = path.read_bytes()
    try:
        arrays = safetensors.numpy.load(content)
    except safetensors.SafetensorError as error:
        text = printable(str(error), 200)
        raise FileError(f"{path} is not a safetensors file ({text}). {_ADVICE}") from None
    except (KeyError, ValueError, OverflowError):
        raise FileError(f"{path} has a dtype or a shape that NumPy lacks. {_ADVICE}") from None
    differences = [
        f"{printable(name, 60)}: expected {_kind(expected.get(name))}, "
        f"received {_kind(arrays.get(name))}"
        for name in dict.fromkeys([*expected, *sorted(arrays)])
        if _kind(expected.get(name)) != _kind(arrays.get(name))
    ]
    if differences:
        more = len(differences) - MAX_NAMED
        rest = f"; and {more} more" if more > 0 else ""
        raise FileError(
            f"{path} does not hold the parameters of the network that its JSON file describes "
            f"({'; '.join(differences[:MAX_NAMED])}{rest}). {_ADVICE}"
        )
    if hashlib.sha256(content).hexdigest() != sha256:
        raise FileError(f"{path} is damaged or of another run: its SHA-256 differs. {_ADVICE}")
    bad = next((name for name, array in arrays.items() if not np.isfinite(array).all()), None)
    if bad is not None:
        raise FileError(f"{path} holds numbers that are not finite, in {bad}. {_ADVICE}")
    return jax.tree_util.tree_map_with_path(lambda p, _: jnp.asarray(arrays[_name(p)]), like)


def _kind(leaf: Any) -> str:
    return "nothing" if leaf is None else f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"


def _check_size(path: Path, most: int) -> None:
    """Raises unless a file exists and has at most so many bytes."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise FileError(f"{path} is not a file.")
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}.") from None
    if size > most:
        raise FileError(f"{path} has {size:,} bytes; expected at most {most:,}. {_ADVICE}")


def _write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
