"""A user's own images: a folder for each class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from maml_jax.classification.datasets import builder
from maml_jax.classification.datasets.images import (
    SPLITS,
    DataError,
    ImageClasses,
    Reading,
    check_disjoint,
    short_digest,
)


def load_folder(
    data_dir: Path,
    cache_dir: Path,
    reading: Reading,
    *,
    fractions: Sequence[float] = (0.64, 0.16, 0.2),
    split_seed: int = 0,
) -> dict[str, ImageClasses]:
    """Images in class folders, in any format that Pillow reads.

    Args:
        data_dir: either with folders `train`, `test` and perhaps `val`, each with a folder for
            every class; or with the class folders themselves, which are then split at random.
        cache_dir: where what was read is kept.
        reading: size, channels and so on that images are brought to.
        fractions: of classes for train, val and test, where the folder has no splits.
        split_seed: of that splitting.

    Raises:
        DataError: no such folder, no class folders, a class in two splits, or files that are no
            images: names them.
    """
    splits = find_classes(data_dir)
    files = {split: list_images(folders) for split, folders in splits.items()}
    source = source_of_files("folder", files)
    parts = builder.load(source, reading, cache_dir)
    if "unsplit" in parts:
        return split_classes(parts["unsplit"], fractions, split_seed)
    check_disjoint(parts)
    return parts


def find_classes(data_dir: Path) -> dict[str, list[Path]]:
    """The class folders of each split, or of the one split "unsplit"."""
    if not data_dir.is_dir():
        raise DataError(f"--data_dir={data_dir} is not a folder.")
    if (data_dir / "train").is_dir():
        found = {s: subfolders(data_dir / s) for s in SPLITS if (data_dir / s).is_dir()}
        if "test" not in found:
            raise DataError(f"{data_dir} has a folder train, but no folder test beside it.")
    else:
        found = {"unsplit": subfolders(data_dir)}
    for split, folders in found.items():
        if not folders:
            where = data_dir if split == "unsplit" else data_dir / split
            raise DataError(f"{where} must hold a folder for each class; found none.")
    return found


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, in order, hidden ones left out."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


class Listed(NamedTuple):
    """An image file.

    Attributes:
        class_name: its class.
        name: of the example, unique in its class.
        path: of the file.
    """

    class_name: str
    name: str
    path: Path


def list_images(folders: Iterable[Path]) -> list[Listed]:
    """Every file in class folders, or below them, whose name ends like an image's.

    Raises:
        DataError: a class folder has no such file.
    """
    Image.init()
    found = []
    for folder in folders:
        inside = sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in Image.EXTENSION
            and not path.name.startswith(".")
            and path.is_file()
        )
        if not inside:
            raise DataError(f"folder {folder} has no images in a format that Pillow knows.")
        found += [Listed(folder.name, p.relative_to(folder).as_posix(), p) for p in inside]
    return found


def contents(files: Iterable[Listed]) -> Iterator[builder.File]:
    """The files' bytes, read when they are asked for."""
    for file in files:
        yield file.class_name, file.name, file.path.read_bytes()


def source_of_files(name: str, files: Mapping[str, Sequence[Listed]]) -> builder.Source:
    """A source of image files by split; another content or labelling has another fingerprint."""
    made_from = short_digest(
        f"{split}:{file.class_name}:{file.name}:{stat.st_size}:{stat.st_mtime_ns}"
        for split, listed in files.items()
        for file in listed
        for stat in [file.path.stat()]
    )
    return builder.Source(
        name, made_from, lambda _: {split: contents(listed) for split, listed in files.items()}
    )


def split_classes(
    classes: ImageClasses, fractions: Sequence[float], seed: int
) -> dict[str, ImageClasses]:
    """Train, val and test classes at random; a split whose fraction is 0 is left out.

    Raises:
        DataError: fractions that are not three shares of one, or a split without a class.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise DataError(
            f"fractions must be three numbers of 0 or more that add up to 1; received {fractions}."
        )
    total = len(classes.names)
    order = np.random.Generator(np.random.PCG64(seed)).permutation(total)
    bounds = np.rint(np.cumsum(fractions)[:2] * total).astype(int)
    parts = dict(zip(SPLITS, np.split(order, bounds), strict=True))
    for split, fraction in zip(SPLITS, fractions, strict=True):
        if fraction and not len(parts[split]):
            raise DataError(
                f"{total} classes are too few to give {fraction:g} of them to split {split!r}."
            )
    return {split: classes.take(part) for split, part in parts.items() if len(part)}
