"""Learning thresholds: slow, and far enough from what is reached to be no matter of luck."""

import pytest

from experiments import navigation, sinusoid
from experiments.core import runner

pytestmark = pytest.mark.slow


def errors(workdir, **settings):
    config = sinusoid.Config(methods=("maml", "pretrained", "oracle"), **settings)
    rows = runner.run(sinusoid.EXPERIMENT, workdir, config)["rows"]
    return {(r["method"], r["setting"], r["gradient_steps"]): r["mean"] for r in rows}


def test_maml_learns_to_learn_sinusoids(tmp_path):
    """A seventh of the paper's meta-steps."""
    found = errors(tmp_path / "run", meta_steps=10_000, eval_tasks=200)
    assert found["maml", "K=10", 0] > 2.0  # theta itself fits no function
    assert found["maml", "K=10", 1] < 1.2
    assert found["maml", "K=10", 10] < 0.7
    assert found["pretrained", "K=10", 1] > 1.5 * found["maml", "K=10", 1]
    assert found["oracle", "K=10", 0] < 0.1


def test_maml_learns_to_navigate(tmp_path):
    """A fifth of the paper's meta-iterations; it reaches about -41, -14 and -8."""
    fields = navigation.PRESETS["quick"] | {"methods": ("maml", "random"), "meta_steps": 20}
    config = navigation.Config(**fields)
    rows = runner.run(navigation.EXPERIMENT, tmp_path / "run", config)["rows"]
    found = {(r["method"], r["gradient_steps"]): r["mean"] for r in rows}
    assert found["maml", 1] > -25
    assert found["maml", 2] > -20
    assert found["maml", 1] > found["maml", 0] + 15
    assert found["maml", 1] > found["random", 1] + 20
