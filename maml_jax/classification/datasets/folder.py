"""Loads images from a folder for each class."""

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
    data_dir: str | Path,
    cache_dir: str | Path,
    reading: Reading,
    *,
    fractions: Sequence[float] = (0.64, 0.16, 0.2),
    split_seed: int = 0,
) -> dict[str, ImageClasses]:
    """Loads images from class folders, in any format that Pillow reads.

    Warns (`DataWarning`) of each file and folder that it skips.

    Args:
        data_dir: a folder with either of two layouts. `SPLIT/CLASS/IMAGE` has the splits `train`,
            `test` and optionally `val`, or their other names in `listing.SPLIT_NAMES`.
            `CLASS/IMAGE` has no splits; classes are then split at random. Links are followed.
        cache_dir: the folder of the cache of decoded images.
        reading: size, channels and inversion of the arrays.
        fractions: of classes for train, val and test, for a folder without splits.
        split_seed: of the random split.

    Returns:
        Images by split: train, val and test. A split with a fraction of 0 is absent.

    Raises:
        DataError: no such folder, no class folders, folders in a class, a class in two splits, an
            image file in two places, broken links, or files that are not images. The error names
            them.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from maml_jax.classification.datasets import Reading, load_folder, synthetic_glyphs
        >>> glyphs = synthetic_glyphs(num_classes=4, num_examples=2, image_size=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mine, cache = Path(folder, "mine"), Path(folder, "cache")
        ...     for name, image in zip("abcd", glyphs.images[:, 0, :, :, 0]):
        ...         (mine / name).mkdir(parents=True)
        ...         Image.fromarray(image).save(mine / name / "1.png")
        ...     splits = load_folder(mine, cache, Reading(8, 1), fractions=(0.5, 0, 0.5))
        >>> {split: classes.images.shape for split, classes in splits.items()}
        {'train': (2, 1, 8, 8, 1), 'test': (2, 1, 8, 8, 1)}
    """
    splits = find_classes(data_dir)
    files = {split: list_images(folders) for split, folders in splits.items()}
    source = source_of_files("folder", files)
    parts = builder.load(source, reading, cache_dir)
    if "unsplit" in parts:
        return split_classes(parts["unsplit"], fractions, split_seed)
    check_disjoint(parts)
    return parts


def find_classes(data_dir: str | Path) -> dict[str, list[Path]]:
    """Returns the class folders of each split; without splits, of the single split "unsplit".

    Raises:
        DataError: no train or test beside other splits, or no class folders.
    """
    data_dir = Path(data_dir)
    splits = split_folders(data_dir)
    for needed in ("train", "test"):
        if splits and needed not in splits:
            others = ", ".join(path.name for path in splits.values())
            raise DataError(
                f"{data_dir} has splits in {others}, but no folder {needed}. Layouts: {LAYOUTS}."
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
    """Warns of files and folders beside the splits of a folder."""
    entries = look_into(folder)
    beside = [path for path in entries.folders if path not in splits.values()]
    note_skipped(folder, [*beside, *entries.images, *entries.others], "not splits")


def split_classes(
    classes: ImageClasses, fractions: Sequence[float], seed: int
) -> dict[str, ImageClasses]:
    """Splits classes at random into train, val and test; omits a split whose fraction is 0.

    Raises:
        DataError: the fractions are not three numbers that add up to 1, or a split gets no class.
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
    """Returns the median of the shorter sides of a folder's images, pixels; 1 if none is readable.

    Args:
        data_dir: as in `load_folder`.
        at_most: maximum number of files to open, evenly spaced in the order of their names.

    Raises:
        DataError: no such folder, no class folders, or folders in a class.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # `load_folder` repeats them
        classes = find_classes(data_dir)
        files = [file for folders in classes.values() for file in list_images(folders)]
    sides = []
    for file in files[:: -(-len(files) // at_most)]:
        # A broken image can raise nearly any exception; `load_folder` names the file.
        with contextlib.suppress(Exception), Image.open(file.path) as image:
            sides.append(min(image.size))
    return int(np.median(sides or [1]))
