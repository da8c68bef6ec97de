"""The image sets that few-shot experiments train, validate and test on."""

from __future__ import annotations

import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp

from experiments import places
from experiments.config import ConfigError
from experiments.few_shot import Images

GLYPH_CLASSES = {"train": 200, "val": 60, "test": 100}  # synthetic


def load(config: Any) -> Images:
    """Reads the data set of a configuration and checks that its episodes can be drawn.

    Raises:
        ConfigError: the data is missing or is not what it should be.
    """
    import importlib.util

    if importlib.util.find_spec("PIL") is None:
        raise ConfigError("image data sets need the extra `data`: pip install 'maml-jax[data]'.")
    from maml_jax.classification.datasets import DataError

    try:
        return _load(config)
    except (DataError, ImportError) as error:
        raise ConfigError(str(error)) from None


@functools.lru_cache(maxsize=1)
def _load(config: Any) -> Images:
    from maml_jax.classification import datasets

    splits = _read(config, datasets)
    missing = [name for name in ("train", "test") if name not in splits]
    if missing:
        raise datasets.DataError(f"the data has no split {missing[0]!r}; it has {list(splits)}.")
    needed = {
        "train": config.num_shots + config.train_queries,
        "val": 2 * config.num_shots,
        "test": config.num_shots + max(q or config.num_shots for q in config.eval_queries),
    }
    needed = {name: count for name, count in needed.items() if name in splits}
    datasets.check_episodes(splits, config.num_ways, needed)
    sets = {
        name: jax.tree.map(jnp.asarray, classes.image_set) for name, classes in splits.items()
    }
    return Images(sets["train"], sets.get("val"), sets["test"])


def _read(config: Any, datasets: Any) -> dict[str, Any]:
    if config.dataset == "synthetic":
        print("  synthetic glyphs: results say nothing about real data", file=sys.stderr)
        return {
            name: datasets.synthetic_glyphs(
                count, 20, config.image_size, config.channels, seed=3 * config.split_seed + i
            )
            for i, (name, count) in enumerate(GLYPH_CLASSES.items())
        }
    if config.dataset == "omniglot":
        return datasets.load_omniglot(
            places.data_dir(),
            places.cache_dir(),
            splitting=config.splitting,
            split_seed=config.split_seed,
            image_size=config.image_size,
            resample=config.resample,
        )
    raise NotImplementedError(config.dataset)
