"""Images by class on the host: one uint8 array a split, its checks and its description."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from maml_jax.classification.datasets.messages import DataError, listed, note
from maml_jax.classification.image_sets import ImageSet

SPLITS = ("train", "val", "test")
NEARLY_ONE_VALUE = 16  # of 255: the range of 12-bit values in a 16-bit file
MODES = {  # Pillow's modes in words, with the conversion
    "1": "black and white",
    "L": "grey",
    "P": "palette",
    "RGB": "colour",
    "I": "16-bit grey converted to 8 bits",
    "LA": "grey with transparency, on white",
    "RGBA": "colour with transparency, on white",
    "CMYK": "CMYK",
}

Example = tuple[str, str, np.ndarray, str]  # class, name, uint8 [H, W, C], kind of its file


class ImageClasses(NamedTuple):
    """The images of one split on the host, with class names.

    Attributes:
        images: uint8 [classes, examples, H, W, C]; classes with fewer examples end in zeros.
        counts: int32 [classes], number of examples of each class.
        names: of the classes.
        files: kinds and sizes of the image files, in words; empty for synthetic images.

    Example:
        >>> from maml_jax.classification.datasets import synthetic_glyphs
        >>> glyphs = synthetic_glyphs(num_classes=3, num_examples=2, image_size=8)
        >>> glyphs.take([0, 2]).names
        ('synthetic_0_0000', 'synthetic_0_0002')
        >>> glyphs.image_set.images.shape  # the input of `episode_sampler`
        (3, 2, 8, 8, 1)
    """

    images: np.ndarray
    counts: np.ndarray
    names: tuple[str, ...]
    files: str = ""

    @property
    def image_set(self) -> ImageSet:
        """The input of episode samplers, as NumPy arrays; put it on the devices once."""
        return ImageSet(self.images, self.counts)  # pyright: ignore[reportArgumentType]

    def take(self, indices: Sequence[int] | np.ndarray) -> ImageClasses:
        """Returns the classes at the given indices."""
        chosen = np.asarray(indices, np.int64)
        names = tuple(self.names[i] for i in chosen)
        return self._replace(images=self.images[chosen], counts=self.counts[chosen], names=names)


def stack(examples: Iterable[Example], where: str) -> ImageClasses:
    """Stacks examples to one array, in order of the names of classes and examples.

    Warns of images with nearly one value.

    Args:
        examples: in any order.
        where: their origin, for messages.

    Raises:
        DataError: no examples.
        MemoryError: the array does not fit into memory.
    """
    by_class: dict[str, list[tuple[str, np.ndarray]]] = {}
    kinds: Counter[str] = Counter()
    for class_name, name, image, kind in examples:
        by_class.setdefault(class_name, []).append((name, image))
        kinds[kind] += 1
    if not by_class:
        raise DataError(f"expected images in {where}; found none.")
    names = tuple(sorted(by_class))
    counts = np.array([len(by_class[name]) for name in names], np.int32)
    shape = (len(names), int(counts.max()), *next(iter(by_class.values()))[0][1].shape)
    try:
        images = np.zeros(shape, np.uint8)
    except MemoryError:
        raise MemoryError(
            f"the images of {where} need {np.prod(shape, dtype=float) / 1e9:,.1f} GB of memory: "
            f"{shape[0]} classes, each with room for the {shape[1]} images of the largest."
        ) from None
    flat: list[str] = []
    for i, class_name in enumerate(names):
        members = sorted(by_class.pop(class_name), key=lambda pair: pair[0])
        for j, (_, image) in enumerate(members):
            images[i, j] = image
        flat += [f"{class_name}/{members[j][0]}" for j in nearly_one_value(images[i, : j + 1])]
    note_flat(flat, int(counts.sum()), where)
    return ImageClasses(images, counts, names, describe_files(kinds))


def nearly_one_value(images: np.ndarray) -> np.ndarray:
    """Returns the indices of images [n, H, W, C] whose pixels have nearly one value."""
    flat = images.reshape(len(images), -1)
    return np.flatnonzero(np.ptp(flat, axis=1) <= NEARLY_ONE_VALUE)


def note_flat(flat: Sequence[str], total: int, where: str) -> None:
    """Warns of images with nearly one value."""
    if flat:
        note(
            f"{len(flat)} of {total} images of {where} decode to nearly one value (brightest and "
            f"darkest pixel differ by {NEARLY_ONE_VALUE} of 255 or less): {listed(flat, 3)}. "
            "Possible causes: blank images, 12-bit values in a 16-bit file, white ink on a "
            "transparent background. Convert such files to 8-bit PNG."
        )


def describe_files(kinds: Mapping[str, int]) -> str:
    """Describes kinds of files (`Reading.decode_kind`) in words, with their conversion."""
    modes: Counter[str] = Counter()
    for kind, count in kinds.items():
        mode = kind.partition(" ")[0]
        name, first = mode.removesuffix("+").partition(";")[0], mode.endswith("+")
        modes[MODES.get(name, name) + ", first frame of several" * first] += count
    sizes = {kind.partition(" ")[2] for kind in kinds}
    both = np.array([[int(n) for n in size.split("x")] for size in sizes])
    low, high = both.min(axis=0), both.max(axis=0)
    size = "x".join(f"{a}" if a == b else f"{a}..{b}" for a, b in zip(low, high, strict=True))
    if len(modes) == 1:
        return f"{next(iter(modes))}, {size} pixels"
    return "; ".join(f"{n} {mode}" for mode, n in modes.most_common()) + f"; {size} pixels"


def describe(splits: Mapping[str, ImageClasses]) -> str:
    """Describes each split on one line: classes, images of a class, and kinds of image files.

    Example:
        >>> from maml_jax.classification.datasets import describe, synthetic_glyphs
        >>> describe({"train": synthetic_glyphs(num_classes=3, num_examples=2, image_size=8)})
        '  train: 3 classes of 2 images'
    """
    lines = []
    for split, classes in splits.items():
        low, high = int(classes.counts.min()), int(classes.counts.max())
        images = f"{low}" if low == high else f"{low} to {high}"
        files = f" (files: {classes.files})" if classes.files else ""
        lines.append(f"  {split}: {len(classes.names)} classes of {images} images{files}")
    return "\n".join(lines)


def check_disjoint(splits: Mapping[str, ImageClasses]) -> None:
    """Raises a DataError if two splits share a class, which would inflate the test accuracy.

    Names that differ only in Unicode normalisation count as one name.
    """
    split_of: dict[str, str] = {}
    for split, classes in sorted(splits.items(), key=lambda item: SPLITS.index(item[0])):
        names = {unicodedata.normalize("NFC", name): name for name in classes.names}
        if len(names) < len(classes.names):
            alike = sorted(set(classes.names) - set(names.values()))
            raise DataError(
                f"split {split!r} has class names that differ in Unicode normalisation alone: "
                f"{alike}."
            )
        twice = [name for form, name in names.items() if form in split_of]
        if twice:
            other = split_of[unicodedata.normalize("NFC", twice[0])]
            raise DataError(
                f"{len(twice)} class(es) of split {split!r} are in split {other!r} too: "
                f"{listed(twice)}. Keep each class in one split; if the classes differ, rename one."
            )
        split_of |= dict.fromkeys(names, split)


def check_episodes(
    splits: Mapping[str, ImageClasses], num_ways: int, needed: Mapping[str, int]
) -> None:
    """Raises a DataError unless each split has the classes and examples that episodes need.

    Args:
        splits: by name.
        num_ways: N.
        needed: number of examples that an episode uses of a class, for each split to check.

    Example:
        >>> from maml_jax.classification.datasets import check_episodes, synthetic_glyphs
        >>> splits = {"train": synthetic_glyphs(num_classes=3, num_examples=2, image_size=8)}
        >>> check_episodes(splits, num_ways=3, needed={"train": 2})
        >>> check_episodes(splits, num_ways=5, needed={"train": 2})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        maml_jax.classification.datasets.messages.DataError: split 'train' has 3 classes ...
    """
    problems, fewest_classes, fewest_examples = episode_problems(splits, num_ways, needed)
    if not problems:
        return
    advice = []
    if fewest_classes < num_ways:
        advice.append(f"num_ways={fewest_classes} or less")
    if fewest_examples < max(needed.values()):
        advice.append(f"num_shots and num_queries that add up to {fewest_examples} or less")
    raise DataError(f"{'; '.join(problems)}. Use {', and '.join(advice)}; or add images.")


def episode_problems(
    splits: Mapping[str, ImageClasses], num_ways: int, needed: Mapping[str, int]
) -> tuple[list[str], int, int]:
    """Describes what each split lacks for episodes; arguments as of `check_episodes`.

    Returns:
        The descriptions, and the fewest classes of a split and examples of a class.
    """
    problems = []
    for split, per_class in needed.items():
        classes = splits[split]
        if len(classes.names) < num_ways:
            problems.append(
                f"split {split!r} has {len(classes.names)} classes "
                f"({listed(sorted(classes.names))}); {num_ways}-way episodes need {num_ways} or "
                "more"
            )
        counts = zip(classes.names, classes.counts, strict=True)
        few = [f"{name} ({count})" for name, count in sorted(counts) if count < per_class]
        if few:
            problems.append(
                f"split {split!r}: an episode takes {per_class} examples of a class (shots and "
                f"queries), and these have fewer: {listed(few)}"
            )
    chosen = [splits[split] for split in needed]
    return (
        problems,
        min((len(classes.names) for classes in chosen), default=num_ways),
        min((int(count) for classes in chosen for count in classes.counts), default=0),
    )
