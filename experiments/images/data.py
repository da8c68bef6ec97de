"""The images that a run trains, validates and tests on."""

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

KINDS = {"colour": (3, False), "grey": (1, False), "ink": (1, True)}  # channels; dark is 1
SIZES = 16, 84  # pixels that the images of a folder are brought to, at least and at most
GLYPH_CLASSES = {"train": 200, "val": 60, "test": 100}  # synthetic
GLYPH_EXAMPLES = 20


class Images(NamedTuple):
    """The image sets of a run.

    Attributes:
        train: in host memory.
        validation: on the device; None where the data has no such classes.
        test: on the device.
        spread: whether training spreads the classes of `train` over the devices.
    """

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet
    spread: bool = False


def load(config: Any) -> Images:
    """Reads the data set of a configuration and checks that its episodes can be drawn.

    Raises:
        ConfigError: the data is missing or is not what it should be.
    """
    return _load(config.shared)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Makes sentences for the command line of a data set's errors and warnings."""
    if importlib.util.find_spec("PIL") is None:
        raise ConfigError("images need Pillow: pip install 'maml-jax[images]'.")
    from maml_jax.classification.datasets import DataError, DataWarning

    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DataWarning)
            yield
    except (DataError, ImportError, MemoryError) as error:
        text = str(error) or "the images do not fit into memory."
        raise ConfigError(text.replace("by load_folder", "with --dataset=folder")) from None
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
        with filelock.FileLock(places.cache_dir() / ".lock"):  # one process prepares, others wait
            splits = _read(config)
        _describe(config, splits)
        _check(config, splits)
    sets = {name: classes.image_set for name, classes in splits.items()}
    spread = _is_spread(config, sets["train"])
    on_device = {n: jax.tree.map(jnp.asarray, s) for n, s in sets.items() if n != "train"}
    return Images(sets["train"], on_device.get("val"), on_device["test"], spread)


def _check(config: Any, splits: dict[str, Any]) -> None:
    """Raises unless episodes can be drawn from the splits."""
    from maml_jax.classification import datasets

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
            f"{error} See --num_ways, --num_shots, --train_queries, and in the test "
            "--set=eval_queries=N; for classes split at random, --set=split_fractions=A,B,C."
        ) from None


def _describe(config: Any, splits: dict[str, Any]) -> None:
    """Says what was read, and for a folder which flags would have it read in another way."""
    from maml_jax.classification import datasets

    what = "synthetic glyphs"
    if config.dataset != "synthetic":
        what = f"{config.dataset} from {places.data_dir()}, read as {reading(config)}"
    if config.dataset == "folder":
        what += f" (--image_size={config.image_size} --image_kind={config.image_kind})"
    print(printable(f"data: {what}"), datasets.describe(splits), sep="\n", flush=True)


def _is_spread(config: Any, image_set: ImageSet) -> bool:
    """Whether classes are spread over devices: if half of what is left does not hold them whole."""
    if config.data_placement != "auto":
        return config.data_placement == "sharded"
    available = process.available_memory()
    if available is None or config.plain_methods or jax.device_count() == 1:
        return False
    if jax.default_backend() == "cpu":  # whose devices share one memory
        available //= jax.local_device_count()
    return np.asarray(image_set.images).nbytes > available / 2


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

    return Reading(config.image_size, *KINDS[config.image_kind], config.resample)


def size_of_folder() -> int:
    """The side, pixels, that suits the images in the data folder: the usual shorter side of theirs.

    Raises:
        ConfigError: there are no images in it.
    """
    with explained():
        from maml_jax.classification.datasets.folder import usual_size

        return int(np.clip(usual_size(places.data_dir()), *SIZES))
