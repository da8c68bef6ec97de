"""Other libraries in the benchmarks do the same work as ours."""

import functools
import importlib.util
import re

import numpy as np
import pytest

from benchmarks import problems
from benchmarks.peers import comparison, foreign, images, regression
from benchmarks.peers.torch_contenders import torch_contenders

NO_TORCH = importlib.util.find_spec("torch") is None
needs_torch = pytest.mark.skipif(NO_TORCH, reason="no PyTorch; make test-peers installs it")


def test_a_variable_that_names_no_checkout_is_an_error(monkeypatch, tmp_path):
    monkeypatch.delenv("LEARN2LEARN", raising=False)
    assert foreign.find_maml("learn2learn") is None
    monkeypatch.setenv("LEARN2LEARN", str(tmp_path))
    with pytest.raises(SystemExit, match="LEARN2LEARN must be a checkout with learn2learn/"):
        foreign.find_maml("learn2learn")


@needs_torch
@pytest.mark.parametrize("steps", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_contenders_give_our_meta_gradient(steps):
    setup = problems.sinusoid("mixed", steps)
    exact, timed = (
        comparison.make_reference(setup, regression.layout, dtype)
        for dtype in ("float64", "float32")
    )
    makers = regression.contenders(steps)
    assert len(makers) >= 3
    for name, make in makers.items():
        if steps == 1 or "compiled" not in name:  # unrolling ten steps compiles for a minute
            comparison.assert_agrees(name, make(exact)[0], exact)
            make(timed)[1]()


@needs_torch
@pytest.mark.parametrize(
    "data", ["omniglot", pytest.param("mini_imagenet", marks=pytest.mark.slow)]
)
def test_contenders_on_images_give_our_meta_gradient(data):
    case = problems.OMNIGLOT_20._replace(ways=3, tasks=2, steps=2, data=data)
    exact = images.make_reference(case, "float64")
    makers = torch_contenders(functools.partial(images.torch_problem, case))
    for name, make in makers.items():
        if "compiled" not in name:  # takes minutes
            comparison.assert_agrees(name, make(exact)[0], exact)


def test_a_contender_that_disagrees_is_reported_and_the_others_go_on(monkeypatch):
    """Contenders without PyTorch: one is right, two scale the meta-gradient in float64."""
    checked = []

    def reference(dtype):
        return comparison.Reference([np.ones(3, dtype)], (), 0.5, [np.arange(1, 4, dtype=dtype)])

    def contender(factor):
        def make(given):
            def check():
                checked.append(given.params[0].dtype)
                return given.loss, [factor * g for g in given.gradient]

            return check, lambda: None

        return make

    monkeypatch.setattr(comparison, "sample_in_turns", lambda calls, *_: {n: [1.0] for n in calls})
    makers = {"off": contender(1.01), "off, compiled": contender(1.1), "right": contender(1)}
    program = problems.sinusoid().program(5)
    rows = comparison.compare("a case: {}".format, program, makers, reference, 1, 0.0)
    rows = {row["name"].split(": ")[1]: row for row in rows}
    assert rows["right"]["agree"] == rows["maml_jax"]["agree"] == "yes"
    assert re.match("NO: Max absolute difference", rows["off"]["agree"])
    assert rows["off, compiled"]["agree"].startswith("NO")
    assert checked == 3 * ["float64"]
    assert rows["maml_jax"]["median_ms"] == 200.0  # a call has five meta-steps
    assert rows["right"]["times_ours"] == 5.0
