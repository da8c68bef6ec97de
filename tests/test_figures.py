"""Figures: readable axes and legends, and films."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.core import plotting, report_figure
from experiments.core.plotting import plt
from experiments.core.results import make_row, pool
from experiments.images import accuracy
from experiments.images.figure import images_figure
from maml_jax.classification import ImageSet


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Keeps the figure that a function saves, drawn once."""
    kept = SimpleNamespace(path=tmp_path / "figure.png", figure=None)

    def save(figure, path):
        del path
        figure.canvas.draw()
        kept.figure = figure

    monkeypatch.setattr(plotting, "save", save)
    yield kept
    plt.close("all")


def run_of(rows, **config):
    return {"experiment": "images", "preset": "quick", "config": config, "rows": rows}


def curve(method, setting, metric="accuracy", last=3, scale=1.0):
    values = np.linspace(0.2, 0.8, 4)
    return [make_row(method, setting, s, metric, scale * values * (s + 1)) for s in range(last + 1)]


def ticks(axis):
    low, high = sorted(axis.get_view_interval())
    return [t for t in axis.get_majorticklocs() if low <= t <= high]


@pytest.mark.parametrize("last", [1, 3, 4, 10])
def test_steps_are_whole_numbers(last):
    _, ax = plt.subplots()
    plotting.draw_curves(ax, pool([run_of(curve("maml", "s", last=last))]), "s", "accuracy")
    assert all(float(t).is_integer() for t in ticks(ax.xaxis))
    assert len(ticks(ax.xaxis)) >= 2
    assert ax.get_xlabel() == "gradient steps"
    assert ax.get_ylabel() == "accuracy on the query set"
    plt.close("all")


def test_a_short_training_has_a_visible_curve():
    _, ax = plt.subplots()
    plotting.draw_training(ax, [{"stage": "maml", "step": 7, "loss": 1.0}], "loss", "meta-loss")
    assert ax.lines[0].get_marker() == "o"
    assert ticks(ax.xaxis) == [7]
    plt.close("all")


def test_the_report_shares_axes_and_names_what_differs(drawn):
    settings = ("5-way 1-shot", "5-way 1-shot, 15 queries")
    groups = [
        [run_of([r for s in settings for r in curve("maml", s, scale=x)], inner_lr=rate)]
        for x, rate in ((0.2, 0.1), (1.0, 0.4))
    ]
    report_figure.compare_runs(drawn.path, groups)
    axes = [ax for ax in drawn.figure.axes if ax.get_visible()]
    assert len(axes) == 4
    assert len({ax.get_ylim() for ax in axes}) == 1
    assert [ax.get_title() for ax in axes[::2]] == [
        "images: 5-way 1-shot\ninner_lr=0.1",
        "images: 5-way 1-shot\ninner_lr=0.4",
    ]


def test_a_diverged_error_does_not_flatten_the_others(drawn):
    diverged = curve("maml", "K=5", "mse")
    diverged[-1]["mean"] = 1e18
    groups = [[run_of(curve("maml", "K=5", "mse"))], [run_of(diverged, inner_lr=1)]]
    report_figure.compare_runs(drawn.path, groups)
    assert {ax.get_ylim()[1] < 100 for ax in drawn.figure.axes} == {True}


def test_legends_cover_no_panel(drawn):
    metrics = [
        {"stage": "maml", "step": s, "query/accuracy": 0.5, "loss": 1.0, "validation/accuracy": 0.4}
        for s in (1, 2)
    ]
    names = np.array(["Angelic/character07", "Tifinagh/character12"])
    arrays = {
        "episode/support": np.zeros((2, 4, 4, 1), np.uint8),
        "episode/support_labels": np.arange(2),
        "episode/query": np.zeros((2, 4, 4, 1), np.uint8),
        "episode/query_labels": np.arange(2),
        "episode/probabilities": np.array([[0.9, 0.1], [0.8, 0.2]]),
        "episode/class_names": names,
    }
    images_figure(drawn.path, run_of(curve("maml", "2-way 1-shot")), arrays, metrics)
    legends = [x for part in drawn.figure.subfigs for x in part.legends]
    assert len(legends) == 1
    for ax in drawn.figure.axes:
        assert ax.get_legend() is None
        assert not ax.get_window_extent().overlaps(legends[0].get_window_extent())
    titles = [ax.get_title() for ax in drawn.figure.axes[-4:]]
    assert titles[:2] == ["Angelic/character07", "Tifinagh/character12"]
    assert titles[3] == "Angelic/character07, 80%\ntrue: Tifinagh/character12"


@pytest.mark.parametrize("rotations", ["none", "classes"])
def test_class_names_are_those_of_the_episode(rotations):
    settings = SimpleNamespace(num_ways=3, num_shots=2, rotations=rotations)
    shades = np.arange(300).reshape(300, 1, 1, 1, 1)  # of the classes, in two bytes
    pixels = np.concatenate([shades % 256, shades // 256], axis=-1).astype(np.uint8)
    images = np.broadcast_to(pixels, (300, 4, 2, 2, 2))
    image_set = ImageSet(jnp.asarray(images), jnp.full(300, 4))
    drawn = accuracy.episodes(settings, 1, 5, image_set, 4).support.images[0, ::2, 0, 0]
    expected = np.rint(255 * np.asarray(drawn)).astype(int) @ [1, 256]
    found = accuracy.first_episode_classes(settings, 1, 5, image_set, 4)
    assert found.tolist() == expected.tolist()
