"""The images that few-shot experiments train, validate and test on, and those of a user."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import jax
import jax.numpy as jnp
import numpy as np

from experiments.core import places
from experiments.core.config import ConfigError
from maml_jax.classification import ImageSet
from maml_jax.text import printable

GLYPH_CLASSES = {"train": 200, "val": 60, "test": 100}  # synthetic
GLYPH_EXAMPLES = 20


class Images(NamedTuple):
    """The image sets of a run: those to train on in host memory, the others on the device."""

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet


def load(config: Any) -> Images:
    """Reads the data set of a configuration and checks that its episodes can be drawn.

    Raises:
        ConfigError: the data is missing or is not what it should be.
    """
    with _explained():
        return _load(config.shared)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Makes sentences for the command line of a data set's errors and warnings."""
    if importlib.util.find_spec("PIL") is None:
        raise ConfigError("images need the extra `data`: pip install 'maml-jax[data]'.")
    from maml_jax.classification.datasets import DataError, DataWarning

    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DataWarning)
            yield
    except (DataError, ImportError, MemoryError) as error:
        raise ConfigError(str(error) or "the images do not fit into memory.") from None
    finally:
        for warning in caught:
            if issubclass(warning.category, DataWarning):
                print(f"note: {warning.message}", file=sys.stderr, flush=True)
            else:
                warnings.warn_explicit(
                    warning.message, warning.category, warning.filename, warning.lineno
                )


@functools.lru_cache(maxsize=1)
def _load(config: Any) -> Images:
    from maml_jax.classification import datasets

    places.cache_dir().mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(places.cache_dir() / ".lock"):  # one process prepares, the others wait
        splits = _read(config)
    what = "synthetic glyphs"
    if config.dataset != "synthetic":
        what = f"{config.dataset} from {places.data_dir()}, read as {reading(config)}"
    print(printable(f"data: {what}"), datasets.describe(splits), sep="\n", flush=True)
    for name in ("train", "test"):
        if name not in splits:
            raise datasets.DataError(f"the data has no split {name!r}; it has {', '.join(splits)}.")
    needed = {
        "train": config.num_shots + config.train_queries,
        "val": 2 * config.num_shots,
        "test": config.num_shots + max(q or config.num_shots for q in config.eval_queries),
    }
    turns = 4 if config.rotations == "classes" else 1
    try:
        datasets.check_episodes(
            splits,
            -(-config.num_ways // turns),
            {name: count for name, count in needed.items() if name in splits},
        )
    except datasets.DataError as error:
        raise ConfigError(
            f"{error} See --num_ways, --num_shots, --train_queries and --eval_queries."
        ) from None
    sets = {name: classes.image_set for name, classes in splits.items()}
    judging = {n: jax.tree.map(jnp.asarray, s) for n, s in sets.items() if n != "train"}
    return Images(sets["train"], judging.get("val"), judging["test"])


def _read(config: Any) -> dict[str, Any]:
    from maml_jax.classification import datasets

    data, cache = places.data_dir(), places.cache_dir()
    if config.dataset == "synthetic":
        print("synthetic glyphs: results say nothing about real data", file=sys.stderr)
        return {
            name: datasets.synthetic_glyphs(
                count,
                GLYPH_EXAMPLES,
                config.image_size,
                config.channels,
                seed=len(GLYPH_CLASSES) * config.split_seed + i,
            )
            for i, (name, count) in enumerate(GLYPH_CLASSES.items())
        }
    if config.dataset == "omniglot":
        from maml_jax.classification.datasets import omniglot

        if not omniglot.has_archives(data):
            print(
                f"Omniglot's archives are not in {data}: if they were not read before, 15 MB are "
                f"downloaded from {omniglot.URL}",
                file=sys.stderr,
                flush=True,
            )
        return datasets.load_omniglot(
            data,
            cache,
            splitting=config.splitting,
            split_seed=config.split_seed,
            image_size=config.image_size,
            resample=config.resample,
        )
    if config.dataset == "mini_imagenet":
        return datasets.load_mini_imagenet(data, cache, config.image_size)
    return datasets.load_folder(
        data,
        cache,
        reading(config),
        fractions=config.split_fractions,
        split_seed=config.split_seed,
    )


def reading(config: Any) -> Any:
    """How the image files of a configuration's data set are read."""
    from maml_jax.classification.datasets import Reading

    return Reading(config.image_size, config.channels, config.invert, config.resample)


def labelled_images(folder: Path, config: Any) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of classes, labels [n] and images [n, H, W, C] of a folder of class folders.

    Raises:
        ConfigError: no such folder, no images, broken ones, or folders in a class folder.
    """
    from maml_jax.classification.datasets import listing
    from maml_jax.classification.datasets.messages import DataError

    with _explained():
        files = listing.list_images(listing.class_folders(folder))
        if not files:
            raise DataError(f"{folder} must hold a folder of images for each class; found none.")
        listing.check_once({"support": files})
        images = _decode(files, config, f"support {folder}")
    names = sorted({file.class_name for file in files})
    labels = np.array([names.index(file.class_name) for file in files], np.int32)
    return names, labels, images


def plain_images(folder: Path, config: Any) -> tuple[list[str], np.ndarray]:
    """Names and images [n, H, W, C] of all images in a folder or below it.

    Raises:
        ConfigError: no such folder, no images, or broken ones.
    """
    from maml_jax.classification.datasets import listing

    with _explained():
        files = listing.list_below(folder)
        images = _decode(files, config, f"images {folder}")
    return [file.name for file in files], images


def _decode(files: list[Any], config: Any, where: str) -> np.ndarray:
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
