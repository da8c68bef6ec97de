"""The sentence below a run's table that compares MAML with pretraining."""

import numpy as np
import pytest

from experiments import navigation
from experiments.core.closing import closing
from experiments.core.results import make_row


def run_of(metric, means, spread=0.1, experiment="sinusoid", steps=(0, 1), **config):
    noise = spread * np.array([-1.0, 1.0, -1.0, 1.0])
    rows = [
        make_row(method, setting, step, metric, mean + noise + 100 * (setting == "K=10"))
        for setting in ("K=5", "K=10")
        for method, mean in means.items()
        for step in steps
    ]
    return {"experiment": experiment, "config": {"meta_steps": 10, **config}, "rows": rows}


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


@pytest.mark.parametrize(
    ("experiment", "meta_steps", "advice"),
    [
        ("sinusoid", 69_999, "--preset=paper trains longer."),
        ("sinusoid", 70_000, "Other seeds may differ."),
        ("navigation", navigation.PRESETS["quick"].get("meta_steps", 100), "Other seeds may"),
        ("images", 1_000, "--preset=paper trains longer."),
        ("toy", 1, "Other seeds may differ."),  # an experiment of a user
    ],
)
def test_a_longer_preset_is_advised_only_if_it_is_longer(experiment, meta_steps, advice):
    means = {"maml": 2.0, "pretrained": 1.0}
    run = run_of("mse", means, experiment=experiment, meta_steps=meta_steps)
    assert f"MAML does not lead in this run. {advice}" in closing(run)


@pytest.mark.parametrize("maml", ["maml", "maml, not convolutional"])
def test_runs_on_images_compare_with_fine_tuning_after_the_steps_of_the_paper(maml):
    means = {maml: 0.9, "fine-tuning": 0.5}
    run = run_of("accuracy", means, experiment="images", steps=(0, 1, 5), report_steps=5)
    text = closing(run)
    assert text.startswith("Compare after 5 gradient steps (K=5): accuracy 0.900 for MAML")
    assert "0.500 for a network pretrained on all classes, then fine-tuned. MAML" in text


def test_runs_without_both_methods_have_no_verdict():
    assert closing(run_of("mse", {"maml": 1.0, "oracle": 0.1})) == ""
    assert closing(run_of("mse", {"pretrained": 1.0})) == ""
    diverged = run_of("mse", {"maml": np.nan, "pretrained": 1.0})
    assert closing(diverged) == ""
