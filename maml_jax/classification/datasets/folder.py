"""A user's own images: a folder for each class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from maml_jax.classification.datasets import builder
from maml_jax.classification.datasets.images import (
    SPLITS,
    DataError,
    ImageClasses,
    Reading,
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
        DataError: no such folder, no class folders, or files that are no images: names them.
    """
    splits = find_classes(data_dir)
    files = {split: list_images(folders) for split, folders in splits.items()}
    made_from = short_digest(
        f"{path.relative_to(data_dir)}:{path.stat().st_size}:{path.stat().st_mtime_ns}"
        for paths in files.values()
        for _, path in paths
    )
    source = builder.Source(
        "folder", made_from, lambda _: {split: contents(paths) for split, paths in files.items()}
    )
    parts = builder.load(source, reading, cache_dir)
    return (
        parts if "unsplit" not in parts else split_classes(parts["unsplit"], fractions, split_seed)
    )


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


def list_images(folders: Iterable[Path]) -> list[tuple[str, Path]]:
    """Class and path of every file in class folders whose name ends like an image's.

    Raises:
        DataError: a class folder has no such file.
    """
    Image.init()
    found = []
    for folder in folders:
        inside = sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in Image.EXTENSION and not path.name.startswith(".")
        )
        if not inside:
            raise DataError(f"class folder {folder} has no images in a format that Pillow knows.")
        found += [(folder.name, path) for path in inside]
    return found


def contents(paths: Iterable[tuple[str, Path]]) -> Iterator[builder.File]:
    """The files' bytes, read when they are asked for."""
    for class_name, path in paths:
        yield class_name, path.name, path.read_bytes()


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
