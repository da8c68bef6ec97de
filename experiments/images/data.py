"""Reads the images of a run: training, validation and test classes."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import filelock
import jax
import jax.numpy as jnp
import numpy as np

from maml_jax.classification import ImageSet
from maml_jax.text import printable

from ..core import places, process
from ..core.config import ConfigError

KINDS = {"colour": (3, False), "grey": (1, False), "ink": (1, True)}  # channels, inverted
SIZES = 16, 84  # pixels: smallest and largest default side of a folder's images
GLYPH_CLASSES = {"train": 200, "val": 60, "test": 100}  # synthetic
GLYPH_EXAMPLES = 20


class Images(NamedTuple):
    """The image sets of a run.

    Attributes:
        train: in host memory.
        validation: on the device; None for data without validation classes.
        test: on the device.
        classes: names of the training classes.
        test_classes: names of the test classes.
        spread: whether training spreads the classes of `train` over the devices.
    """

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet
    classes: tuple[str, ...]
    test_classes: tuple[str, ...]
    spread: bool = False


def load(config: Any) -> Images:
    """Reads the data set of a configuration and checks that it suffices for the episodes.

    Raises:
        ConfigError: the data is missing or unusable.
    """
    return _load(config.shared)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turns a data set's errors into `ConfigError` and its warnings into notes on stderr."""
    if importlib.util.find_spec("PIL") is None:
        raise ConfigError("images need Pillow: pip install 'maml-jax[images]'.")
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
    with explained():
        places.cache_dir().mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(places.cache_dir() / ".lock"):  # one process prepares the cache
            splits = _read(config)
        _describe(config, splits)
        _check(config, splits)
    sets = {name: classes.image_set for name, classes in splits.items()}
    spread = _is_spread(config, sets["train"])
    on_device = {n: jax.tree.map(jnp.asarray, s) for n, s in sets.items() if n != "train"}
    names = splits["train"].names, splits["test"].names
    return Images(sets["train"], on_device.get("val"), on_device["test"], *names, spread)


def _check(config: Any, splits: dict[str, Any]) -> None:
    """Raises unless the splits suffice for the episodes."""
    from maml_jax.classification import datasets

    for name in ("train", "test"):
        if name not in splits:
            raise datasets.DataError(f"the data has no split {name!r}; it has {', '.join(splits)}.")
    needed = {
        "train": config.num_shots + config.train_queries,
        "val": 2 * config.num_shots,
        "test": config.num_shots + max(q or config.num_shots for q in config.eval_queries),
    }
    needed = {name: count for name, count in needed.items() if name in splits}
    turns = 4 if config.rotations == "classes" else 1
    problems, classes, images = datasets.images.episode_problems(
        splits, -(-config.num_ways // turns), needed
    )
    if problems:
        advice = _advice(config, classes * turns, images)
        raise ConfigError(printable(f"{'; '.join(problems)}. {advice}", 4_000))


def _advice(config: Any, classes: int, images: int) -> str:
    """Suggests flags with which episodes fit.

    Args:
        config: of the run.
        classes: the fewest of a split.
        images: the fewest of a class.
    """
    if classes < 2 or images < 2:
        return "Episodes need 2 or more classes in each split, and 2 or more images of a class."
    few_classes, shots = classes < config.num_ways, min(config.num_shots, images // 2)
    of_images = []
    if shots < config.num_shots:
        of_images.append(f"--num_shots={shots}")
    if shots + config.train_queries > images:
        of_images.append(f"--train_queries={images - shots}")
    if shots + max(q or shots for q in config.eval_queries) > images:
        of_images.append(f"--set=eval_queries={images - shots}")
    what = [f"{images} images a class"] if of_images else []
    flags = of_images
    if few_classes:
        what, flags = [f"{classes} classes a split", *what], [f"--num_ways={classes}", *flags]
    text = f"For {' and '.join(what)}: {' '.join(flags)}"
    if config.dataset == "folder" and few_classes:
        text += " (--set=split_fractions=A,B,C changes the shares of classes split at random)"
    return text


def _describe(config: Any, splits: dict[str, Any]) -> None:
    """Prints the data's source and size; for a folder also the flags that change the reading."""
    from maml_jax.classification import datasets

    what = "synthetic glyphs"
    if config.dataset != "synthetic":
        what = f"{config.dataset} from {places.data_dir()}, read as {reading(config)}"
    if config.dataset == "folder":
        what += f" (--image_size={config.image_size} --image_kind={config.image_kind})"
    print(printable(f"data: {what}"), datasets.describe(splits), sep="\n", flush=True)


def _is_spread(config: Any, image_set: ImageSet) -> bool:
    """Whether classes are spread over devices; auto: if they exceed half of the free memory."""
    if config.data_placement != "auto":
        return config.data_placement == "sharded"
    available = process.available_memory()
    if available is None or config.plain_methods or jax.device_count() == 1:
        return False
    if jax.default_backend() == "cpu":  # CPU devices share one memory
        available //= jax.local_device_count()
    return np.asarray(image_set.images).nbytes > available / 2


def _read(config: Any) -> dict[str, Any]:
    from maml_jax.classification import datasets

    data, cache = places.data_dir(), places.cache_dir()
    if config.dataset == "synthetic":
        print("synthetic glyphs: results do not carry over to real data", file=sys.stderr)
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
                f"Omniglot's archives are not in {data}: unless decoded images are cached, "
                f"15 MB are downloaded from {omniglot.URL}",
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
    """How image files are decoded: size, channels, inversion, resampling."""
    from maml_jax.classification.datasets import Reading

    return Reading(config.image_size, *KINDS[config.image_kind], config.resample)


def size_of_folder() -> int:
    """The default side of a folder's images, pixels: their usual shorter side, within `SIZES`.

    Raises:
        ConfigError: the data folder has no images.
    """
    with explained():
        from maml_jax.classification.datasets.folder import usual_size

        return int(np.clip(usual_size(places.data_dir()), *SIZES))
