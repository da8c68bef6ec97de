"""MiniImagenet: 100 classes of 600 images, 84x84, split 64/16/20 (Ravi and Larochelle 2017).

The images come from ImageNet, whose terms forbid redistribution: this module downloads nothing. It
reads the three layouts in common use.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from maml_jax.classification.datasets import builder, pickles
from maml_jax.classification.datasets.folder import note_beside
from maml_jax.classification.datasets.images import SPLITS, ImageClasses, check_disjoint
from maml_jax.classification.datasets.listing import (
    Listed,
    class_folders,
    list_images,
    look_into,
    note_skipped,
    source_of_files,
    split_folders,
)
from maml_jax.classification.datasets.messages import (
    DataError,
    describe_bytes,
    listed,
    note,
    short_digest,
)
from maml_jax.classification.datasets.reading import Reading

CLASSES = {"train": 64, "val": 16, "test": 20}
IMAGES = 600
COLUMNS = ("filename", "label")
PICKLES = {split: f"mini-imagenet-cache-{split}.pkl" for split in SPLITS}
LAYOUTS = (
    "class folders {train,val,test}/CLASS/*, a folder images/ beside train.csv, val.csv and "
    "test.csv, or mini-imagenet-cache-{train,val,test}.pkl"
)


def load_mini_imagenet(
    data_dir: str | Path, cache_dir: str | Path, image_size: int = 84
) -> dict[str, ImageClasses]:
    """Loads MiniImagenet in colour.

    Args:
        data_dir: a folder with one of the `LAYOUTS`, or its parent if its name is `mini_imagenet`.
        cache_dir: the folder of the cache of decoded images.
        image_size: height and width, pixels.

    Returns:
        Images by split: train, val and test.

    Raises:
        DataError: no such layout, wrong counts, images in a pickle that are not 84x84, a pickle
            with other content than arrays and dictionaries, or an HTML page in place of a file.

    Example:
        >>> from pathlib import Path
        >>> from maml_jax.classification.datasets import describe, load_mini_imagenet
        >>> splits = load_mini_imagenet(Path("data"), Path("cache"))  # doctest: +SKIP
        >>> [len(classes.names) for classes in splits.values()]  # doctest: +SKIP
        [64, 16, 20]
    """
    reading = Reading(image_size, 3)
    parts = builder.load(find_source(Path(data_dir)), reading, cache_dir)
    check_disjoint(parts)
    return {split: parts[split] for split in SPLITS}


def find_source(data_dir: Path) -> builder.Source:
    """Returns the source of the first layout in a folder; warns of other layouts beside it."""
    for folder in (data_dir, data_dir / "mini_imagenet"):
        layouts = dict(_layouts(folder)) if folder.is_dir() else {}
        if layouts:
            chosen, *others = layouts
            if others:
                note(f"{folder} has several layouts: read {chosen}, skipped {', '.join(others)}.")
            return layouts[chosen]()
    raise DataError(
        f"found no MiniImagenet in {data_dir} or {data_dir / 'mini_imagenet'}; expected {LAYOUTS}."
    )


def _layouts(folder: Path) -> Iterator[tuple[str, Callable[[], builder.Source]]]:
    splits = split_folders(folder)
    if splits.keys() == set(SPLITS):
        yield "class folders", lambda: _class_folders(folder, splits)
    if (folder / "images").is_dir() and all((folder / f"{s}.csv").exists() for s in SPLITS):
        yield "lists of images", lambda: _image_lists(folder)
    if all((folder / name).exists() for name in PICKLES.values()):
        yield "pickles", lambda: _pickles(folder)


def _class_folders(folder: Path, splits: Mapping[str, Path]) -> builder.Source:
    note_beside(folder, splits)
    files = {split: list_images(class_folders(splits[split])) for split in SPLITS}
    return _from_paths(folder, files)


def _image_lists(folder: Path) -> builder.Source:
    files = {split: list(_read_list(folder, folder / f"{split}.csv")) for split in SPLITS}
    named = {
        path
        for images in files.values()
        for file in images
        for path in (file.path, *file.path.parents)
    }
    _note_unnamed(folder / "images", named)
    return _from_paths(folder, files)


def _note_unnamed(folder: Path, named: set[Path]) -> None:
    """Warns of files and folders that no list names."""
    paths = [path for each in look_into(folder) for path in each]
    note_skipped(folder, [path for path in paths if path not in named], "in no list")
    for path in paths:
        if path in named and path.is_dir():
            _note_unnamed(path, named)


def _read_list(folder: Path, path: Path) -> Iterator[Listed]:
    """Yields the images that a CSV file lists as paths below `images`."""
    data = path.read_bytes()
    if describe_bytes(data):
        raise DataError(f"{path} is {describe_bytes(data)}.")
    try:
        header, *rows = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        raise DataError(f"{path} is not a CSV text file in UTF-8: {error}.") from None
    if sorted(set(header) & set(COLUMNS)) != sorted(c for c in header if c in COLUMNS):
        raise DataError(f"{path} has a column twice: {header}.")
    if not set(COLUMNS) <= set(header):
        raise DataError(f"{path} must have the columns filename and label; found {header}.")
    absent = []
    for number, row in enumerate(rows, 2):
        if not row:
            continue
        where = f"{path}, row {number}"
        if len(row) != len(header) or not all(cell and cell == cell.strip() for cell in row):
            raise DataError(
                f"{where} must have {len(header)} cells, none empty and none with space at its "
                f"ends; received {row}."
            )
        name, label = (row[header.index(column)] for column in COLUMNS)
        parts = PurePosixPath(name).parts
        if not parts or parts[0] == "/" or ".." in parts or "\\" in name or ":" in parts[0]:
            raise DataError(f"{where}: {name!r} must be a path below {folder / 'images'}.")
        file = Listed(label, "/".join(parts), folder / "images" / Path(*parts))
        if file.path.is_file():
            yield file
        else:
            absent.append(str(file.path))
    if absent:
        raise DataError(
            f"{path} names {len(absent)} images that are missing or links that lead nowhere, "
            f"the first: {absent[0]}."
        )


def _from_paths(folder: Path, files: dict[str, list[Listed]]) -> builder.Source:
    for split, images in files.items():
        check_counts(folder, split, Counter(file.class_name for file in images))
    return source_of_files("mini_imagenet", files)


def check_counts(where: Path, split: str, counts: Counter[str]) -> None:
    """Raises a DataError unless a split has its number of classes, with 600 images each."""
    if len(counts) != CLASSES[split]:
        raise DataError(
            f"split {split!r} of {where} must have {CLASSES[split]} classes; found {len(counts)}. "
            "Read other images as a folder of images."
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
    """Yields the images of a `mini-imagenet-cache` file, class by class."""
    images, by_class = read_pickle(path)
    check_counts(path, split, Counter({name: len(each) for name, each in by_class.items()}))
    _check_indices(path, by_class, len(images))
    for name, indices in by_class.items():
        for index in indices:
            png = io.BytesIO()
            Image.fromarray(images[index]).save(png, "png")
            yield name, f"{index:06d}", png.getvalue()


def _check_indices(path: Path, by_class: Mapping[str, Iterable[int]], count: int) -> None:
    """Raises a DataError unless each image exists and belongs to exactly one class."""
    class_of: dict[int, str] = {}
    for name, indices in by_class.items():
        for index in indices:
            if not 0 <= index < count:
                raise DataError(
                    f"{path}: class {name} names image {index}; there are {count} images."
                )
            if index in class_of:
                raise DataError(
                    f"{path}: image {index} is in classes {class_of[index]} and {name}."
                )
            class_of[index] = name
    if len(class_of) < count:
        raise DataError(f"{path}: {count - len(class_of)} of {count} images have no class.")


def read_pickle(path: Path) -> tuple[np.ndarray, dict[str, list[int]]]:
    """Returns images [n, 84, 84, 3] and, for each class, the indices of its images.

    Raises:
        DataError: the file holds other types than arrays, dictionaries, lists and numbers, or lacks
            a valid `image_data` or `class_dict`.
    """
    content = pickles.read(path)
    if not isinstance(content, dict) or not {"image_data", "class_dict"} <= content.keys():
        raise DataError(
            f"{path} must hold a dictionary with image_data and class_dict; found {_form(content)}."
        )
    images, by_class = content["image_data"], content["class_dict"]
    fits = isinstance(images, np.ndarray) and images.shape[1:] == (84, 84, 3)
    if not fits or images.dtype != np.uint8 or not isinstance(by_class, dict):
        raise DataError(
            f"{path}: image_data must be uint8 [n, 84, 84, 3] and class_dict a dictionary of lists "
            f"of indices; found {_form(images)} and {_form(by_class)}."
        )
    others = [key for key in content if key not in ("image_data", "class_dict")]
    if others:
        note(f"skipped in {path} (not images or classes): {listed(others, 4)}.")
    if sum(len(value) for value in by_class.values() if _sized(value)) > len(images):
        raise DataError(
            f"{path}: class_dict names more than the {len(images)} images of image_data."
        )
    indices: dict[str, list[int]] = {}
    for key, value in by_class.items():
        if not isinstance(key, (str, int)) or isinstance(key, bool) or key == "":
            raise DataError(f"{path}: a class name must be text or a number; found {key!r}.")
        if str(key) in indices:
            raise DataError(f"{path}: class_dict has the class {key} twice, as text and number.")
        indices[str(key)] = _indices(f"{path}: class {key}", value)
    return images, indices


def _indices(where: str, value: Any) -> list[int]:
    """Converts a sequence or an array [n] to a list of integers."""
    if not _sized(value):
        raise DataError(
            f"{where} must be a list of indices (class_dict is a dictionary of lists of indices); "
            f"found {_form(value)}."
        )
    indices = value.tolist() if isinstance(value, np.ndarray) else list(value)
    for index in indices:
        if type(index) is not int:
            raise DataError(f"{where} must be a list of integers; found {_form(index)} in it.")
    return indices


def _sized(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim == 1)


def _form(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array, {value.dtype} {value.shape}"
    if isinstance(value, dict):
        return f"a dictionary with keys {listed(sorted(map(str, value)), 5)}"
    if isinstance(value, (int, float, str)):
        return f"{str(value)[:40]!r}, a {type(value).__name__}"
    return f"a {type(value).__name__}"
