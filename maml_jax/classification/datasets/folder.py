"""A user's own images: a folder for each class."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from maml_jax.classification.datasets import builder
from maml_jax.classification.datasets.images import SPLITS, ImageClasses, check_disjoint
from maml_jax.classification.datasets.listing import (
    LAYOUTS,
    class_folders,
    list_images,
    look_into,
    note_skipped,
    source_of_files,
    split_folders,
)
from maml_jax.classification.datasets.messages import DataError, DataWarning
from maml_jax.classification.datasets.reading import Reading


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
        data_dir: either with folders `train`, `test` and perhaps `val` (or other names of splits,
            see `listing.SPLIT_NAMES`), each with a folder for every class; or with the class
            folders themselves, which are then split at random. Links are followed.
        cache_dir: where what was read is kept.
        reading: size, channels and so on that images are brought to.
        fractions: of classes for train, val and test, where the folder has no splits.
        split_seed: of that splitting.

    Raises:
        DataError: no such folder, no class folders, folders in a class, a class in two splits, a
            file that is an image twice, links that lead nowhere, or files that are no images: names
            them.
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
    splits = split_folders(data_dir)
    for needed in ("train", "test"):
        if splits and needed not in splits:
            others = ", ".join(path.name for path in splits.values())
            raise DataError(
                f"{data_dir} has splits in {others}, but no folder {needed} beside them. "
                f"Layouts: {LAYOUTS}."
            )
    if splits:
        note_beside(data_dir, splits)
    classes = {split: class_folders(path) for split, path in splits.items()}
    classes = classes or {"unsplit": class_folders(data_dir)}
    for split, folders in classes.items():
        if not folders:
            where = splits.get(split, data_dir)
            raise DataError(
                f"{where} must hold a folder for each class; found none. Layouts: {LAYOUTS}."
            )
    return classes


def note_beside(folder: Path, splits: Mapping[str, Path]) -> None:
    """Warns of what lies in a folder beside its splits."""
    entries = look_into(folder)
    beside = [path for path in entries.folders if path not in splits.values()]
    note_skipped(folder, [*beside, *entries.images, *entries.others], "not splits")


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


def usual_size(data_dir: Path, at_most: int = 200) -> int:
    """The median of the shorter sides of a folder's images, pixels; 1 if none can be read.

    Args:
        data_dir: as in `load_folder`.
        at_most: files to look at, evenly spaced in the order of their names.

    Raises:
        DataError: no such folder, no class folders, or folders in a class.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # `load_folder` gives them
        classes = find_classes(data_dir)
        files = [file for folders in classes.values() for file in list_images(folders)]
    sides = []
    for file in files[:: -(-len(files) // at_most)]:
        # A broken image can raise nearly anything; `load_folder` names it.
        with contextlib.suppress(Exception), Image.open(file.path) as image:
            sides.append(min(image.size))
    return int(np.median(sides or [1]))
