"""`--mode=adapt`: adapts a trained classifier to a user's images and classifies others."""

from __future__ import annotations

import csv
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maml_jax import adapt
from maml_jax.classification import LabelledImages, cross_entropy
from maml_jax.classification.losses import query_outputs
from maml_jax.text import printable

from ..core.config import ConfigError
from .config import Config
from .data import explained, reading
from .evaluation import PROTOCOL_NOTES
from .figure import contact_sheet
from .network import make_network

FLAGS = (
    ("support", "", "Folder with a folder of labelled images for each class."),
    ("classify", "", "Folder of images to classify."),
    ("adapt_steps", 10, "Gradient steps."),
)
CLOSEST = (
    "one_query",
    "support_statistics",
    "transductive",
)  # protocols, the closest to ours first


def adapt_to_images(
    run: Any, support: str, classify: str, adapt_steps: int, inner_lr: float | None = None
) -> None:
    """Adapts to labelled images and classifies others.

    Each image is classified alone: batch statistics are those of the support and that image.
    Writes `predictions.csv` (file, predicted, a probability for each class) and `predictions.png`
    into the run's directory. The training data is not needed.

    Args:
        run: a finished run of one member.
        support: folder with a folder of labelled images for each class.
        classify: folder of images to classify.
        adapt_steps: gradient steps.
        inner_lr: alpha; by default that of the run.

    Raises:
        ConfigError: a folder is unusable or does not have N classes, or the run trained no MAML.
    """
    config = run.settings
    if inner_lr is not None:
        config = dataclasses.replace(config, inner_lr=inner_lr)
    if config.maml_name not in run.params:
        raise ConfigError("the run trained no MAML model (--methods) to adapt.")
    if not support or not classify:
        raise ConfigError("--mode=adapt needs --support=FOLDER and --classify=FOLDER.")
    if adapt_steps < 0:
        raise ConfigError(f"--adapt_steps must be 0 or more; received {adapt_steps}.")
    names, labels, shown = labelled_images(Path(support), config)
    names = [printable(name) for name in names]
    if len(names) != config.num_ways:
        raise ConfigError(
            f"the model distinguishes {config.num_ways} classes (--num_ways of its training); "
            f"{support} has {len(names)} class folders: {', '.join(names[:8])}."
        )
    files, images = plain_images(Path(classify), config)
    files = [printable(name) for name in files]
    probabilities = classify_images(
        config,
        run.params[config.maml_name],
        LabelledImages(_scaled(shown), jnp.asarray(labels)),
        _scaled(images),
        adapt_steps,
    )
    table = run.workdir / "predictions.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "predicted", *(f"p({name})" for name in names)])
        for file_name, row in zip(files, probabilities, strict=True):
            best = names[int(np.argmax(row))]
            writer.writerow([file_name, best, *(f"{value:.4f}" for value in row)])
    sheet = run.workdir / "predictions.png"
    contact_sheet(sheet, names, labels, shown, files, images, probabilities)
    print(
        f"adapted to {len(labels)} images of {len(names)} classes in {adapt_steps} steps, "
        f"classified {len(files)} images\npredictions: {table}\ncontact sheet: {sheet}"
    )
    if inner_lr is None:
        print(expected_accuracy(config, run.rows, adapt_steps), end="")


def expected_accuracy(config: Config, rows: Sequence[Mapping[str, Any]], steps: int) -> str:
    """A line with the test accuracy closest to an adaptation; "" without test results.

    Args:
        config: of the run.
        rows: of its results.
        steps: gradient steps of the adaptation.
    """
    rows = [r for r in rows if r["method"] == config.maml_name and r["mean"] is not None]
    for note in (PROTOCOL_NOTES[name] for name in CLOSEST):
        # Every name ends in "": the protocol without a note is tried last.
        similar = [row for row in rows if row["setting"].endswith(note)]
        if similar:
            row = min(similar, key=lambda row: abs((row["gradient_steps"] or 0) - steps))
            ci95 = "" if row["ci95"] is None else f" +/-{row['ci95']:.1%}"
            return (
                f"expected accuracy on images like the test images: {row['mean']:.1%}{ci95} "
                f"({printable(row['setting'])}, after {row['gradient_steps']} steps, "
                f"{row['num_tasks']} episodes)\n"
            )
    return ""


def classify_images(
    config: Config,
    params: Any,
    support: LabelledImages,
    images: jax.Array,
    num_inner_steps: int,
) -> np.ndarray:
    """Class probabilities [n, N] of images [n, H, W, C], after adaptation to a support."""
    network = make_network(config)

    @jax.jit
    def answer(params: Any, support: LabelledImages, images: jax.Array) -> jax.Array:
        adapted, _ = adapt(
            cross_entropy(network.apply),
            params,
            support,
            config.inner_lr,
            num_inner_steps,
            mask=network.mask,
        )
        return jax.nn.softmax(
            query_outputs(network.apply, "one_query", adapted, support.images, images)
        )

    return np.asarray(answer(params, support, images))


def labelled_images(folder: str | Path, config: Config) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Reads a folder of class folders.

    Returns:
        Names of the classes, labels int32 [n], and images uint8 [n, H, W, C].

    Raises:
        ConfigError: the folder is missing, has no images, broken images, or nested class folders.
    """
    with explained():
        from maml_jax.classification.datasets import DataError, listing

        files = listing.list_images(listing.class_folders(folder))
        if not files:
            raise DataError(f"{folder} must hold a folder of images for each class; it has none.")
        listing.check_once({"support": files})
        images = _decode(files, config, f"support {folder}")
    names = sorted({file.class_name for file in files})
    labels = np.array([names.index(file.class_name) for file in files], np.int32)
    return names, labels, images


def plain_images(folder: Path, config: Config) -> tuple[list[str], np.ndarray]:
    """Reads all images in a folder and below it.

    Returns:
        Names of the files, and images uint8 [n, H, W, C].

    Raises:
        ConfigError: the folder is missing, has no images, or has broken ones.
    """
    with explained():
        from maml_jax.classification.datasets import listing

        files = listing.list_below(folder)
        images = _decode(files, config, f"images {folder}")
    return [file.name for file in files], images


def _decode(files: list[Any], config: Config, where: str) -> np.ndarray:
    """Decodes files to images uint8 [n, H, W, C]; reports their kinds and nearly blank ones."""
    from maml_jax.classification.datasets import builder, listing
    from maml_jax.classification.datasets import images as image_sets

    _, names, arrays, kinds = zip(
        *builder.decoded(listing.contents(files), reading(config)), strict=True
    )
    images = np.stack(arrays)
    flat = [names[i] for i in image_sets.nearly_one_value(images)]
    image_sets.note_flat(flat, len(images), where)
    described = image_sets.describe_files(Counter(kinds))
    print(
        printable(f"{where}: {len(images)} images read as {reading(config)} (files: {described})")
    )
    return images


def _scaled(images: np.ndarray) -> jax.Array:
    return jnp.asarray(images, jnp.float32) / 255
