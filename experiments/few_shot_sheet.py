"""The figure of a few-shot run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments import plotting
from experiments.results import pool


def few_shot_sheet(
    path: Path,
    run: dict[str, Any],
    arrays: Mapping[str, np.ndarray],
    metrics: list[dict[str, Any]],
) -> None:
    """Accuracy against gradient steps, training curve, one episode."""
    figure, ax = plotting.plt.subplots()
    pooled = pool([run])
    plotting.draw_curves(ax, pooled, run["rows"][0]["setting"], "accuracy")
    plotting.save(figure, path)
