"""Figures of image runs: accuracy, training, an episode; and a contact sheet of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from ..core import plotting
from ..core.plotting import plt
from ..core.results import METHOD_TITLES, pool

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
    """Accuracy against gradient steps, the training curves, and one test episode."""
    pooled = pool([run])
    settings = list(dict.fromkeys(row["setting"] for row in run["rows"]))
    with plt.rc_context(plotting.STYLE):
        drawn = "episode/support" in arrays
        figure = plt.figure(figsize=(13, 7.2 if drawn else 3.8), layout="constrained")
        parts = figure.subfigures(2, 1, height_ratios=[1, 0.9]) if drawn else [figure]
        left, middle, right = parts[0].subplots(1, 3)
        plotting.draw_curves(left, pooled, settings[0], "accuracy")
        left.set_ylabel("accuracy on the query set")
        left.legend(loc="lower right")
        _draw_training(middle, metrics, "query/accuracy", "accuracy on the query set")
        _draw_training(right, metrics, "loss", "meta-loss, nats")
        if drawn:
            _draw_episode(parts[1], arrays)
        plotting.save(figure, path)


def _draw_training(ax: Axes, metrics: list[dict[str, Any]], name: str, label: str) -> None:
    """A metric in training, and accuracy in validation, against meta-steps, for each stage."""
    for stage in dict.fromkeys(entry["stage"] for entry in metrics):
        entries = [entry for entry in metrics if entry["stage"] == stage]
        color, title = plotting.COLORS.get(stage, "black"), METHOD_TITLES.get(stage, stage)
        steps = np.array([entry["step"] for entry in entries])
        trained = np.array([entry[name] for entry in entries])
        window = max(1, len(trained) // 100)
        smooth = np.convolve(trained, np.ones(window) / window, "valid")
        ax.plot(steps[window - 1 :], smooth, color=color, alpha=0.45, lw=1.2,
                label=f"{title}: training")  # fmt: skip
        validations = [e for e in entries if "validation/accuracy" in e and "accuracy" in name]
        if validations:
            ax.plot(
                [e["step"] for e in validations],
                [e["validation/accuracy"] for e in validations],
                color=color,
                lw=1.4,
                marker="o" if len(validations) == 1 else None,
                label=f"{title}: validation",
            )
    ax.set_title("during training")
    ax.set_xlabel("meta-steps")
    ax.set_ylabel(label)
    ax.grid(axis="y", color="#dddddd", lw=0.6)
    ax.legend(loc="lower right" if "accuracy" in name else "upper right")


def _draw_episode(figure: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Support images in a row by class, query images below with prediction and truth."""
    support, labels = arrays["episode/support"], arrays["episode/support_labels"]
    query, truth = arrays["episode/query"], arrays["episode/query_labels"]
    probabilities = arrays["episode/probabilities"]
    first = [int(np.flatnonzero(labels == c)[0]) for c in np.unique(labels)][:MOST_SHOWN]
    shown = np.linspace(0, len(query) - 1, min(MOST_SHOWN, len(query))).astype(int)
    columns = max(len(first), len(shown))
    axes = figure.subplots(2, columns, squeeze=False)
    figure.suptitle("one test episode: support above, query below", fontsize=10)
    for ax in axes.ravel():
        ax.set_axis_off()
    for ax, index in zip(axes[0], first, strict=False):
        _draw_image(ax, support[index], NEUTRAL, f"class {labels[index] + 1}")
    for ax, index in zip(axes[1], shown, strict=False):
        guess = int(np.argmax(probabilities[index]))
        title = f"says {guess + 1} ({probabilities[index][guess]:.0%})"
        if guess != truth[index]:
            title += f"\nis {truth[index] + 1}"
        _draw_image(ax, query[index], RIGHT if guess == truth[index] else WRONG, title)


def _draw_image(ax: Axes, image: np.ndarray, color: str, title: str) -> None:
    """An image, uint8 [H, W, C], with a coloured frame."""
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
    """The labelled images of each class, and each image that was classified with its answer.

    Args:
        path: of the PNG.
        names: of the N classes.
        labels: [n], of the support.
        support: uint8 [n, H, W, C].
        files: names of the classified images; the first 200 are drawn.
        images: uint8 [m, H, W, C].
        probabilities: [m, N].
    """
    shown = min(len(images), MOST_ON_SHEET)
    colors = [plt.get_cmap("tab10")(i % 10) for i in range(len(names))]
    rows = len(names) + -(-shown // PER_SHEET_ROW)
    with plt.rc_context(plotting.STYLE):
        figure, axes = plt.subplots(
            rows,
            PER_SHEET_ROW,
            figsize=(1.35 * PER_SHEET_ROW, 1.6 * rows),
            squeeze=False,
            layout="constrained",
        )
        for ax in axes.ravel():
            ax.set_axis_off()
        for c, name in enumerate(names):
            for ax, index in zip(axes[c], np.flatnonzero(labels == c), strict=False):
                _draw_image(ax, support[index], colors[c], f"labelled {_short(name)}")
        for i in range(shown):
            row, column = divmod(i, PER_SHEET_ROW)
            best = int(np.argmax(probabilities[i]))
            title = f"{_short(files[i])}\n{_short(names[best])} {probabilities[i][best]:.0%}"
            _draw_image(axes[len(names) + row][column], images[i], colors[best], title)
        if shown < len(images):
            figure.supxlabel(f"the first {shown} of {len(images)}; all are in predictions.csv")
        plotting.save(figure, path)


def _short(name: str, most: int = 16) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
