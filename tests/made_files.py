"""Writes files that imitate user input, and reads data sets made of them."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from maml_jax.classification.datasets import DataWarning, Reading, load_folder

RNG = np.random.default_rng(0)


def encoded(array, kind="png", mode=None, **options):
    file = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def noise(side=8, channels=3):
    shape = (side, side, channels) if channels > 1 else (side, side)
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def write(path, data=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(noise()) if data is None else data)
    return path


def notes(action):
    """Returns an action's result and the text of its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = action()
    assert all(issubclass(w.category, DataWarning) for w in caught), caught
    return result, "\n".join(str(w.message) for w in caught)


SMALL = Reading(4, 1)


def read_folder(where, cache, reading=SMALL, **options):
    return notes(lambda: load_folder(where, cache, reading, **options))


@pytest.fixture
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def splits(tmp_path):
    """Writes a folder with the splits train and test, each of one class of two images."""
    where = tmp_path / "mine"
    for split in ("train", "test"):
        for i in range(2):
            write(where / split / f"of_{split}" / f"{i}.png")
    return where
