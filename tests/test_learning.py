"""Thresholds of learning: slow tests, whose margins exceed the variation between seeds."""

import pytest

from experiments import navigation, sinusoid
from experiments.core import runner

pytestmark = pytest.mark.slow


def errors(workdir, **settings):
    config = sinusoid.Config(methods=("maml", "pretrained", "oracle"), **settings)
    rows = runner.run(sinusoid.EXPERIMENT, workdir, config)["rows"]
    return {(r["method"], r["setting"], r["gradient_steps"]): r["mean"] for r in rows}


def test_maml_learns_to_learn_sinusoids(tmp_path):
    """Trains for a seventh of the paper's meta-steps."""
    result = errors(tmp_path / "run", meta_steps=10_000, eval_tasks=200)
    assert result["maml", "K=10", 0] > 2.0  # theta itself fits no function
    assert result["maml", "K=10", 1] < 1.2
    assert result["maml", "K=10", 10] < 0.7
    assert result["pretrained", "K=10", 1] > 1.5 * result["maml", "K=10", 1]
    assert result["oracle", "K=10", 0] < 0.1


def test_maml_learns_to_navigate(tmp_path):
    """Trains for a fifth of the paper's meta-iterations; returns are about -41, -14 and -8."""
    fields = navigation.PRESETS["quick"] | {"methods": ("maml", "random"), "meta_steps": 20}
    config = navigation.Config(**fields)
    rows = runner.run(navigation.EXPERIMENT, tmp_path / "run", config)["rows"]
    result = {(r["method"], r["gradient_steps"]): r["mean"] for r in rows}
    assert result["maml", 1] > -25
    assert result["maml", 2] > -20
    assert result["maml", 1] > result["maml", 0] + 15
    assert result["maml", 1] > result["random", 1] + 20
