"""Figures of image runs: accuracy, training and an episode; and a contact sheet of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from ..core import plotting
from ..core.plotting import plt
from ..core.results import pool

RIGHT, WRONG, NEUTRAL = "#009E73", "#D55E00", "#999999"
MOST_SHOWN = 10  # columns of pictures in a figure
PER_SHEET_ROW = 8
MOST_ON_SHEET = 200


def images_figure(
    path: Path,
    run: dict[str, Any],
    arrays: Mapping[str, np.ndarray],
    metrics: list[dict[str, Any]],
) -> None:
    """Draws accuracy against gradient steps, the training curves, and one test episode."""
    pooled = pool([run])
    settings = list(dict.fromkeys(row["setting"] for row in run["rows"]))
    label = plotting.METRIC_LABELS["accuracy"]
    with plt.rc_context(plotting.STYLE):
        drawn = "episode/support" in arrays
        figure = plt.figure(figsize=(13, 8.0 if drawn else 4.2), layout="constrained")
        parts = figure.subfigures(2, 1, height_ratios=[1, 0.9]) if drawn else [figure]
        left, middle, right = parts[0].subplots(1, 3)
        middle.sharey(left)
        plotting.draw_curves(left, pooled, settings[0], "accuracy")
        title = "training (thin) and validation (thick)"
        thin = {"lw": 1.0, "alpha": 0.6, "ms": 2, "label": None}
        plotting.draw_training(middle, metrics, "query/accuracy", label, title, **thin)
        thick = {"lw": 2.0, "label": None}
        plotting.draw_training(middle, metrics, "validation/accuracy", label, title, **thick)
        plotting.draw_training(right, metrics, "loss", plotting.LOSS_LABELS["accuracy"])
        plotting.legend_outside(parts[0], [left, middle, right])
        if drawn:
            _draw_episode(parts[1], arrays)
        plotting.save(figure, path)


def _draw_episode(figure: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Draws support images in a row by class, and query images below with their answers.

    Args:
        figure: or subfigure.
        arrays: of the evaluation. `"episode/class_names"` [N] is optional: user data has names.
    """
    support, labels = arrays["episode/support"], arrays["episode/support_labels"]
    query, truth = arrays["episode/query"], arrays["episode/query_labels"]
    probabilities = arrays["episode/probabilities"]
    first = [int(np.flatnonzero(labels == c)[0]) for c in np.unique(labels)][:MOST_SHOWN]
    shown = np.linspace(0, len(query) - 1, min(MOST_SHOWN, len(query))).astype(int)
    columns = max(len(first), len(shown))
    numbers = [f"class {c + 1}" for c in range(probabilities.shape[1])]
    room = min(32, 140 // columns)  # letters
    names = [_short(str(name), room) for name in arrays.get("episode/class_names", numbers)]
    axes = figure.subplots(2, columns, squeeze=False)
    figure.suptitle(
        "one test episode: support images above; query images below, with the predicted class and "
        "its probability",
        fontsize=10,
    )
    for ax in axes.ravel():
        ax.set_axis_off()
    for ax, index in zip(axes[0], first, strict=False):
        _draw_image(ax, support[index], NEUTRAL, names[labels[index]])
    for ax, index in zip(axes[1], shown, strict=False):
        guess = int(np.argmax(probabilities[index]))
        title = f"{names[guess]}, {probabilities[index][guess]:.0%}"
        if guess != truth[index]:
            title += f"\ntrue: {names[truth[index]]}"
        _draw_image(ax, query[index], RIGHT if guess == truth[index] else WRONG, title)


def _draw_image(ax: Axes, image: np.ndarray, color: str, title: str) -> None:
    """Draws an image, uint8 [H, W, C], with a coloured frame."""
    height, width = image.shape[:2]
    if image.shape[-1] == 1:
        ax.imshow(image[..., 0], cmap="gray_r", vmin=0, vmax=255)
    else:
        ax.imshow(image)
    frame = (-0.5, -0.5), width, height
    ax.add_patch(Rectangle(*frame, fill=False, ec=color, lw=3, clip_on=False))
    ax.set_title(title, fontsize=8, parse_math=False)  # names may hold dollar signs
    ax.set_axis_off()


def contact_sheet(
    path: Path,
    names: Sequence[str],
    labels: np.ndarray,
    support: np.ndarray,
    files: Sequence[str],
    images: np.ndarray,
    probabilities: np.ndarray,
) -> None:
    """Draws the labelled images of each class, and the classified images with their answers.

    Args:
        path: of the PNG.
        names: of the N classes.
        labels: [n], of the support.
        support: uint8 [n, H, W, C].
        files: names of the classified images; the first 200 are drawn.
        images: uint8 [m, H, W, C].
        probabilities: [m, N], of each class for each image.
    """
    shown = min(len(images), MOST_ON_SHEET)
    colors = [plt.get_cmap("tab10")(i % 10) for i in range(len(names))]
    columns = min(PER_SHEET_ROW, max(shown, *np.bincount(labels)))
    rows = len(names) + -(-shown // columns)
    with plt.rc_context(plotting.STYLE):
        figure, axes = plt.subplots(
            rows,
            columns,
            figsize=(1.35 * columns, 1.75 * rows),
            squeeze=False,
            layout="constrained",
        )
        for ax in axes.ravel():
            ax.set_axis_off()
        for c, name in enumerate(names):
            for ax, index in zip(axes[c], np.flatnonzero(labels == c), strict=False):
                _draw_image(ax, support[index], colors[c], f"labelled\n{_short(name)}")
        for i in range(shown):
            row, column = divmod(i, columns)
            best = int(np.argmax(probabilities[i]))
            title = f"{_short(files[i])}\n{_short(names[best])}\n{probabilities[i][best]:.0%}"
            _draw_image(axes[len(names) + row][column], images[i], colors[best], title)
        if shown < len(images):
            figure.supxlabel(f"the first {shown} of {len(images)} images; predictions.csv has all")
        plotting.save(figure, path)


def _short(name: str, most: int = 16) -> str:
    """Leaves out the middle of a long name: names of files and characters differ at their ends."""
    if len(name) <= most:
        return name
    return f"{name[: (most - 1) // 2]}…{name[-(most // 2) :]}"
