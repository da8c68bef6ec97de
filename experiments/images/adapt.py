"""Adapting a trained classifier to a user's own images: a CSV of answers, and a contact sheet."""

from __future__ import annotations

import csv
from collections import Counter
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
from .figure import contact_sheet
from .network import make_network

FLAGS = (
    ("support", "", "With --mode=adapt: folder with a folder of labelled images for each class."),
    ("classify", "", "With --mode=adapt: folder of images to classify."),
    ("adapt_steps", 10, "With --mode=adapt: gradient steps."),
)


def adapt_to_images(run: Any, support: str, classify: str, adapt_steps: int) -> None:
    """Adapts to labelled images and classifies others.

    Each image is classified by itself: batch statistics are those of the support and that image.
    Writes `predictions.csv` (file, predicted, a probability for each class) and `predictions.png`
    into the run's directory.

    Raises:
        ConfigError: a folder that cannot be used, or another number of classes than N.
    """
    config = run.settings
    if config.maml_name not in run.states:
        raise ConfigError("the run trained no MAML model (--methods) to adapt.")
    if not support or not classify:
        raise ConfigError("--mode=adapt needs --support=FOLDER and --classify=FOLDER.")
    if adapt_steps < 0:
        raise ConfigError(f"--adapt_steps must be 0 or more; received {adapt_steps}.")
    names, labels, shown = labelled_images(Path(support), config)
    names = [printable(name) for name in names]
    if len(names) != config.num_ways:
        raise ConfigError(
            f"the model tells {config.num_ways} classes apart (--num_ways of its training); "
            f"{support} has {len(names)} class folders: {', '.join(names[:8])}."
        )
    files, images = plain_images(Path(classify), config)
    files = [printable(name) for name in files]
    probabilities = classify_images(
        config,
        run.states[config.maml_name].best_params,
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


def classify_images(
    config: Config,
    params: Any,
    support: LabelledImages,
    images: jax.Array,
    num_inner_steps: int,
) -> np.ndarray:
    """Probabilities [n, N] of images after adapting to a support."""
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


def labelled_images(folder: Path, config: Config) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of classes, labels [n] and images [n, H, W, C] of a folder of class folders.

    Raises:
        ConfigError: no such folder, no images, broken ones, or folders in a class folder.
    """
    with explained():
        from maml_jax.classification.datasets import DataError, listing

        files = listing.list_images(listing.class_folders(folder))
        if not files:
            raise DataError(f"{folder} must hold a folder of images for each class; found none.")
        listing.check_once({"support": files})
        images = _decode(files, config, f"support {folder}")
    names = sorted({file.class_name for file in files})
    labels = np.array([names.index(file.class_name) for file in files], np.int32)
    return names, labels, images


def plain_images(folder: Path, config: Config) -> tuple[list[str], np.ndarray]:
    """Names and images [n, H, W, C] of all images in a folder or below it.

    Raises:
        ConfigError: no such folder, no images, or broken ones.
    """
    with explained():
        from maml_jax.classification.datasets import listing

        files = listing.list_below(folder)
        images = _decode(files, config, f"images {folder}")
    return [file.name for file in files], images


def _decode(files: list[Any], config: Config, where: str) -> np.ndarray:
    """Images [n, H, W, C] of files; says what they were, and warns of those of nearly one value."""
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
