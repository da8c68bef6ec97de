"""Panels of meta-reinforcement learning: returns against gradient steps, and training."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

from ..core import plotting
from ..core.results import pool
from .config import ADAPTED


def draw_returns(ax: Axes, run: dict[str, Any]) -> None:
    """Draws the return against gradient steps for each method, with intervals over tasks."""
    plotting.draw_curves(ax, pool([run]), run["rows"][0]["setting"], "return")


def draw_training(ax: Axes, metrics: list[dict[str, Any]]) -> None:
    """Draws the return in training against meta-steps, for each stage."""
    title, label = "training (dotted: before adaptation)", plotting.METRIC_LABELS["return"]
    adapted = [entry for entry in metrics if entry["stage"] in ADAPTED]
    before = {"ls": ":", "lw": 1, "label": None}
    plotting.draw_training(ax, adapted, "before/return", label, title, **before)
    plotting.draw_training(ax, metrics, "after/return", label, title)
