"""`--mode=adapt`: adapts a trained regression model to points in a user's CSV file."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from maml_jax import adapt
from maml_jax.networks import Network
from maml_jax.regression import Examples, mean_squared_error
from maml_jax.regression.sinusoid import INPUTS
from maml_jax.text import printable

from ..core.config import ConfigError
from . import figure

# Plain decimal numbers; `float` also accepts "1_0" and the digits of every script.
NUMBER = re.compile(
    r"[+-]?(nan|inf(inity)?|(\d+\.?\d*|\.\d+)(e[+-]?\d+)?)", re.ASCII | re.IGNORECASE
)


class PointsError(ConfigError):
    """A file of points is unusable; the message names file, line and column."""

    def __init__(self, message: str):
        super().__init__(printable(message))


def read_points(path: str | Path, columns: tuple[str, ...], at_least: int) -> np.ndarray:
    """Reads the named columns of a CSV file with a header line.

    Args:
        path: of the file.
        columns: names that the header must have, in any order; further columns are ignored.
        at_least: the required number of rows.

    Returns:
        [rows, columns], float32.

    Raises:
        PointsError: the file is missing, a column is missing or repeated, there are too few rows, a
            row has more cells than the header, or a value is not a finite number.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, line) for line in reader if any(c.strip() for c in line)]
    except FileNotFoundError:
        raise PointsError(f"no such file: {path}") from None
    except OSError as error:
        raise PointsError(f"{path} cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise PointsError(f"{path} is not a CSV text file: {error}.") from None
    if not lines:
        raise PointsError(f"{path} is empty; expected a header line {','.join(columns)} and rows.")
    header_line, header = lines[0][0], [name.strip().lower() for name in lines[0][1]]
    for name in columns:
        if header.count(name) > 1:
            raise PointsError(
                f"{path}, line {header_line}: the header must have one column {name!r}; "
                f"received {','.join(header)!r}."
            )
        if name not in header:
            raise PointsError(
                f"{path}, line {header_line}: the header must have a column {name!r}; "
                f"received {','.join(header)!r}."
            )
    for number, line in lines[1:]:
        if len(line) > len(header):
            raise PointsError(
                f"{path}, line {number}: expected {len(header)} cells, as the header has; received "
                f"{len(line)}: {','.join(line)!r}."
            )
    rows = [
        [_number(path, number, name, line, header.index(name)) for name in columns]
        for number, line in lines[1:]
    ]
    if len(rows) < at_least:
        raise PointsError(
            f"{path}, line {lines[-1][0]}: the file has {len(rows)} row(s) of points; "
            f"expected {at_least} or more."
        )
    return np.array(rows, np.float32)


def _number(path: Any, line_number: int, name: str, line: list[str], index: int) -> float:
    where = f"{path}, line {line_number}, column {name!r}"
    if index >= len(line) or not line[index].strip():
        raise PointsError(f"{where}: expected a number; received nothing.")
    text = line[index].strip()
    if not NUMBER.fullmatch(text):
        raise PointsError(f"{where}: expected a number; received {line[index]!r}.")
    value = float(text)
    if not math.isfinite(value) or abs(value) > float(np.finfo(np.float32).max):
        raise PointsError(f"{where}: expected a finite number; received {line[index]!r}.")
    return value


def adapt_to_points(
    network: Network,
    params: Any,
    inner_lr: float,
    num_steps: int,
    support: str,
    predict_at: str,
    workdir: Path,
) -> None:
    """Adapts to the points of one file and predicts at the inputs of another.

    Writes `predictions.csv` (columns x, before, after) and `adapted.png` into `workdir`.

    Args:
        network: of the model.
        params: of the model, before adaptation.
        inner_lr: alpha.
        num_steps: gradient steps.
        support: CSV file with columns x, y.
        predict_at: CSV file with a column x; "" for an even grid.
        workdir: folder for the files.

    Raises:
        PointsError: a file is unusable, there is no support file, or adaptation diverges.
    """
    if not support:
        raise PointsError("--mode=adapt needs --support=FILE, a CSV file with columns x,y.")
    if num_steps < 0:
        raise PointsError(f"--adapt_steps must be 0 or more; received {num_steps}.")
    points = read_points(support, ("x", "y"), at_least=2)
    if predict_at:
        inputs = read_points(predict_at, ("x",), at_least=1)
    else:
        low, high = min(INPUTS[0], points[:, 0].min()), max(INPUTS[1], points[:, 0].max())
        inputs = np.linspace(low, high, 201, dtype=np.float32)[:, None]
    examples = Examples(jnp.asarray(points[:, :1]), jnp.asarray(points[:, 1:]))
    loss_fn = mean_squared_error(network.apply)
    adapted, _ = adapt(loss_fn, params, examples, inner_lr, num_steps)
    before, after = (np.asarray(network.apply(p, inputs)[:, 0]) for p in (params, adapted))
    if not np.isfinite(after).all():
        raise PointsError(
            f"adapting to {support} diverged: the points are far from those of training "
            f"(x in [{INPUTS[0]:g}, {INPUTS[1]:g}], |y| up to 5). Rescale them."
        )
    path = workdir / "predictions.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["x", "before", "after"])
        for row in zip(inputs[:, 0], before, after, strict=True):
            writer.writerow([f"{value:.7g}" for value in row])
    figure.user_fit(workdir / "adapted.png", points, inputs[:, 0], before, after, num_steps)
    errors = [float(loss_fn(p, examples)[0]) for p in (params, adapted)]
    print(
        f"adapted to the {len(points)} points of {support} in {num_steps} steps: mean squared "
        f"error on them {errors[0]:.4g} before, {errors[1]:.4g} after\n"
        f"predictions: {path}\nplot: {workdir / 'adapted.png'}"
    )
    outside = np.abs(points[:, 0]).max() > INPUTS[1]
    if outside:
        print(f"note: the model was trained on x from {INPUTS[0]:g} to {INPUTS[1]:g} only.")
