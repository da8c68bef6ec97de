"""MiniImagenet: 100 classes of 600 images, 84x84, split 64/16/20 (Ravi and Larochelle 2017).

The images come from ImageNet, whose terms allow research and no passing on: nothing is downloaded
here. Three layouts that are in use are read.
"""

from __future__ import annotations

import csv
import io
import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maml_jax.classification.datasets import builder
from maml_jax.classification.datasets.folder import (
    Listed,
    list_images,
    source_of_files,
    subfolders,
)
from maml_jax.classification.datasets.images import (
    SPLITS,
    DataError,
    ImageClasses,
    Reading,
    check_disjoint,
    describe_bytes,
    short_digest,
)

CLASSES = {"train": 64, "val": 16, "test": 20}
IMAGES = 600
PICKLES = {split: f"mini-imagenet-cache-{split}.pkl" for split in SPLITS}
LAYOUTS = (
    "class folders {train,val,test}/CLASS/*, a folder images/ beside train.csv, val.csv and "
    "test.csv, or mini-imagenet-cache-{train,val,test}.pkl"
)


def load_mini_imagenet(
    data_dir: Path, cache_dir: Path, image_size: int = 84
) -> dict[str, ImageClasses]:
    """MiniImagenet in colour.

    Args:
        data_dir: the folder of one of the layouts, or one that holds it as `mini_imagenet`.
        cache_dir: where what was read is kept.
        image_size: height and width, pixels.

    Returns:
        Train, val and test.

    Raises:
        DataError: no such layout, wrong counts, images of another size than 84x84 in a pickle, a
            pickle with anything but arrays and dictionaries in it, an HTML page for a file.
    """
    reading = Reading(image_size, 3)
    parts = builder.load(find_source(data_dir), reading, cache_dir)
    check_disjoint(parts)
    return {split: parts[split] for split in SPLITS}


def find_source(data_dir: Path) -> builder.Source:
    """The layout that is there."""
    for folder in (data_dir, data_dir / "mini_imagenet"):
        if all((folder / split).is_dir() for split in SPLITS):
            return _class_folders(folder)
        if (folder / "images").is_dir() and all((folder / f"{s}.csv").exists() for s in SPLITS):
            return _image_lists(folder)
        if all((folder / name).exists() for name in PICKLES.values()):
            return _pickles(folder)
    raise DataError(
        f"found no MiniImagenet in {data_dir} or {data_dir / 'mini_imagenet'}; expected {LAYOUTS}."
    )


def _class_folders(folder: Path) -> builder.Source:
    files = {split: list_images(subfolders(folder / split)) for split in SPLITS}
    return _from_paths(folder, files)


def _image_lists(folder: Path) -> builder.Source:
    files, listed_in = {}, {}
    for split in SPLITS:
        path = folder / f"{split}.csv"
        text = path.read_bytes()
        if describe_bytes(text):
            raise DataError(f"{path} is {describe_bytes(text)}.")
        lines = csv.DictReader(io.StringIO(text.decode("utf-8-sig", errors="replace")))
        if not {"filename", "label"} <= set(lines.fieldnames or ()):
            raise DataError(
                f"{path} must have the columns filename and label; found {lines.fieldnames}."
            )
        files[split] = [
            Listed(line["label"], line["filename"], folder / "images" / line["filename"])
            for line in lines
        ]
        absent = [str(file.path) for file in files[split] if not file.path.exists()]
        if absent:
            raise DataError(
                f"{path} names {len(absent)} images that are not there, the first: {absent[0]}."
            )
        for file in files[split]:
            here = f"{path.name} as {file.class_name}"
            if file.name in listed_in:
                raise DataError(
                    f"{file.name} is listed twice in {folder}: in {listed_in[file.name]}, and in "
                    f"{here}. An image belongs to one class of one split."
                )
            listed_in[file.name] = here
    return _from_paths(folder, files)


def _from_paths(folder: Path, files: dict[str, list[Listed]]) -> builder.Source:
    for split, listed in files.items():
        check_counts(folder, split, Counter(file.class_name for file in listed))
    return source_of_files("mini_imagenet", files)


def check_counts(where: Path, split: str, counts: Counter[str]) -> None:
    """Raises a DataError unless a split has its classes of 600 images each."""
    if len(counts) != CLASSES[split]:
        raise DataError(
            f"split {split!r} of {where} must have {CLASSES[split]} classes; found {len(counts)}. "
            "For other images use --dataset=folder."
        )
    for name, count in counts.items():
        if count != IMAGES:
            raise DataError(
                f"class {name} in split {split!r} of {where} must have {IMAGES} images; "
                f"found {count}."
            )


def _pickles(folder: Path) -> builder.Source:
    paths = {split: folder / name for split, name in PICKLES.items()}
    made_from = short_digest(
        f"{path.name}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in paths.values()
    )
    return builder.Source(
        "mini_imagenet",
        made_from,
        lambda _: {split: _unpickled(path, split) for split, path in paths.items()},
    )


def _unpickled(path: Path, split: str) -> Iterator[builder.File]:
    """The images of a `mini-imagenet-cache` file, class by class."""
    images, by_class = read_pickle(path)
    check_counts(path, split, Counter({name: len(found) for name, found in by_class.items()}))
    _check_indices(path, by_class, len(images))
    for name, indices in by_class.items():
        for index in indices:
            png = io.BytesIO()
            Image.fromarray(images[index]).save(png, "png")
            yield str(name), f"{index:06d}", png.getvalue()


def _check_indices(path: Path, by_class: dict[str, Any], count: int) -> None:
    """Raises a DataError unless each image is named once, and is there."""
    owner: dict[int, str] = {}
    for name, indices in by_class.items():
        for index in map(int, indices):
            if not 0 <= index < count:
                raise DataError(
                    f"{path}: class {name} names image {index}; there are {count} images."
                )
            if index in owner:
                raise DataError(f"{path}: image {index} is in classes {owner[index]} and {name}.")
            owner[index] = name


def read_pickle(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Images [n, 84, 84, 3] and, by class, which of them; from `image_data` and `class_dict`.

    Raises:
        DataError: the file holds anything but arrays, dictionaries, lists and numbers, or has
            another form.
    """
    with path.open("rb") as file:
        start = file.read(512)
        if describe_bytes(start):
            raise DataError(f"{path} is {describe_bytes(start)}.")
        file.seek(0)
        try:
            content = _PlainUnpickler(file, encoding="latin1").load()
        except DataError as error:
            raise DataError(f"{path} {error}") from None
        except Exception as error:  # a broken pickle can raise nearly anything
            raise DataError(f"{path} is no pickle, or a broken one ({error}).") from None
    try:
        images, by_class = content["image_data"], content["class_dict"]
    except (TypeError, KeyError):
        raise DataError(
            f"{path} must hold a dictionary with image_data and class_dict; found {_form(content)}."
        ) from None
    expected = (84, 84, 3)
    fits = isinstance(images, np.ndarray) and images.shape[1:] == expected
    lists = isinstance(by_class, dict) and all(
        isinstance(found, (list, tuple, np.ndarray)) for found in by_class.values()
    )
    if not fits or images.dtype != np.uint8 or not lists:
        raise DataError(
            f"{path}: image_data must be uint8 [n, 84, 84, 3] and class_dict a dictionary of lists "
            f"of indices; found {_form(images)} and {_form(by_class)}."
        )
    return images, by_class


class _PlainUnpickler(pickle.Unpickler):
    """Reads arrays, dictionaries and what they are made of, and nothing that could run code."""

    ALLOWED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            *(
                (f"numpy.{core}.multiarray", name)
                for core in ("core", "_core")
                for name in ("_reconstruct", "scalar")
            ),
            ("_codecs", "encode"),
            ("collections", "OrderedDict"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise DataError(
                f"holds {module}.{name}; only arrays and dictionaries are read, because a pickle "
                "can run any code."
            )
        return super().find_class(module, name)


def _form(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    if isinstance(value, dict):
        return f"a dictionary with keys {sorted(map(str, value))[:5]}"
    return f"a {type(value).__name__}"
