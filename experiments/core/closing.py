"""A closing sentence for a run's table: the comparison that the reader should look for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .results import METHOD_TITLES, pool

ADAPTED, BASELINE = ("maml", "first_order"), "pretrained"
LOWER_IS_BETTER = ("mse",)


def closing(run: Mapping[str, Any]) -> str:
    """Compares MAML with pretraining after one gradient step; "" if the run has not both.

    Args:
        run: with the rows of `results.json`; the first setting is compared.
    """
    setting, metric = run["rows"][0]["setting"], run["rows"][0]["metric"]
    pooled = pool([dict(run)])
    cells = {key[0]: cell for key, cell in pooled.items() if key[1:] == (setting, 1, metric)}
    method = next((name for name in ADAPTED if name in cells), None)
    if method is None or BASELINE not in cells:
        return ""
    ours, theirs = cells[method], cells[BASELINE]
    gain = ours["mean"] - theirs["mean"]
    if metric in LOWER_IS_BETTER:
        gain = -gain
    if not math.isfinite(gain):
        return ""
    title = METHOD_TITLES[method]
    if gain <= 0:
        verdict = f"{title} does not lead in this run."
        if run["preset"] == "quick":
            verdict += " --preset=paper trains longer."
    elif gain < math.hypot(ours["ci95"], theirs["ci95"]):
        verdict = f"{title} leads, by less than the 95 % intervals."
    else:
        verdict = f"{title} leads: its parameters are trained to adapt."
    return (
        f"Compare after 1 gradient step ({setting}): {metric} {ours['mean']:.3f} for {title}, "
        f"{theirs['mean']:.3f} for a network {METHOD_TITLES[BASELINE]}. {verdict}"
    )
