"""A closing sentence for a run's table: the comparison that the reader should look for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .config import public_fields
from .results import METHOD_TITLES, pool
from .stages import experiment_named

ADAPTED = (
    *("maml", "first_order"),
    *("maml, not convolutional", "first_order, not convolutional"),
)
BASELINES = {
    "pretrained": "a network pretrained on all tasks",
    "fine-tuning": "a network pretrained on all classes, then fine-tuned",  # of images
}
LOWER_IS_BETTER = ("mse",)


def closing(run: Mapping[str, Any]) -> str:
    """Compares MAML with pretraining after gradient steps; returns "" unless the run has both.

    The number of steps is 1, or with images `report_steps`, as in the paper's tables.

    Args:
        run: the content of `results.json`; the first setting of its rows is compared.
    """
    setting, metric = run["rows"][0]["setting"], run["rows"][0]["metric"]
    pooled = pool([dict(run)])
    steps = run["config"].get("report_steps", 1)
    cells = {key[0]: cell for key, cell in pooled.items() if key[1:] == (setting, steps, metric)}
    method = next((name for name in ADAPTED if name in cells), None)
    baseline = next((name for name in BASELINES if name in cells), None)
    if method is None or baseline is None:
        return ""
    ours, theirs = cells[method], cells[baseline]
    gain = ours["mean"] - theirs["mean"]
    if metric in LOWER_IS_BETTER:
        gain = -gain
    if not math.isfinite(gain):
        return ""
    title = METHOD_TITLES[method]
    if gain <= 0:
        longer = _paper_trains_longer(run)
        advice = "--preset=paper trains longer." if longer else "Other seeds may differ."
        verdict = f"{title} does not lead in this run. {advice}"
    elif gain < math.hypot(ours["ci95"], theirs["ci95"]):
        verdict = f"{title} leads, by less than the 95 % intervals."
    else:
        verdict = f"{title} leads: its parameters are trained to adapt."
    return (
        f"Compare after {steps} gradient step{'s' * (steps != 1)} ({setting}): {metric} "
        f"{ours['mean']:.3f} for {title}, {theirs['mean']:.3f} for {BASELINES[baseline]}. {verdict}"
    )


def _paper_trains_longer(run: Mapping[str, Any]) -> bool:
    """Returns whether the preset `paper` of a run's experiment has more meta-steps than the run."""
    experiment = experiment_named(run["experiment"])
    if experiment is None or "paper" not in experiment.presets:
        return False
    defaults = {field.name: field.default for field in public_fields(experiment.config)}
    most = {**defaults, **experiment.presets["paper"]}.get("meta_steps", 0)
    ours = run["config"].get("meta_steps")
    return isinstance(ours, int) and ours < most
