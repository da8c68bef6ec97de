"""Learning thresholds: slow, and far enough from what is reached to be no matter of luck."""

import pytest

from experiments import runner, sinusoid

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
