"""The sentence below a run's table that compares MAML with pretraining."""

import numpy as np
import pytest

from experiments.core.closing import closing
from experiments.core.results import make_row


def run_of(metric, means, spread=0.1, preset="quick"):
    noise = spread * np.array([-1.0, 1.0, -1.0, 1.0])
    rows = [
        make_row(method, setting, step, metric, mean + noise + 100 * (setting == "K=10"))
        for setting in ("K=5", "K=10")
        for method, mean in means.items()
        for step in (0, 1)
    ]
    return {"preset": preset, "rows": rows}


@pytest.mark.parametrize(
    ("metric", "maml", "pretrained", "verdict"),
    [
        ("mse", 1.0, 2.0, "MAML leads: its parameters are trained to adapt."),
        ("return", -1.0, -2.0, "MAML leads: its parameters are trained to adapt."),
        ("return", -2.0, -1.0, "MAML does not lead in this run. --preset=paper trains longer."),
        ("mse", 1.0, 1.05, "MAML leads, by less than the 95 % intervals."),
    ],
)
def test_the_verdict_is_that_of_the_numbers(metric, maml, pretrained, verdict):
    text = closing(run_of(metric, {"maml": maml, "pretrained": pretrained}))
    assert text == (
        f"Compare after 1 gradient step (K=5): {metric} {maml:.3f} for MAML, {pretrained:.3f} for "
        f"a network pretrained on all tasks. {verdict}"
    )


def test_longer_presets_are_advised_to_quick_runs_only():
    run = run_of("mse", {"maml": 2.0, "pretrained": 1.0}, preset="paper")
    assert closing(run).endswith("MAML does not lead in this run.")


def test_runs_without_both_methods_have_no_verdict():
    assert closing(run_of("mse", {"maml": 1.0, "oracle": 0.1})) == ""
    assert closing(run_of("mse", {"pretrained": 1.0})) == ""
    diverged = run_of("mse", {"maml": np.nan, "pretrained": 1.0})
    assert closing(diverged) == ""
