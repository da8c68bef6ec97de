"""Images of classes on the host: one uint8 array a split, its checks and its description."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from maml_jax.classification.datasets.messages import DataError, listed, note
from maml_jax.classification.episodes import ImageSet

SPLITS = ("train", "val", "test")
NEARLY_ONE_VALUE = 16  # of 255: what 12 bits in a 16-bit file come to
MODES = {  # Pillow's, in words, with what becomes of them
    "1": "black and white",
    "L": "grey",
    "P": "palette",
    "RGB": "colour",
    "I": "16-bit grey brought to 8 bits",
    "LA": "grey put on white where transparent",
    "RGBA": "colour put on white where transparent",
    "CMYK": "CMYK",
}

Example = tuple[str, str, np.ndarray, str]  # class, name, uint8 [H, W, C], kind of its file


class ImageClasses(NamedTuple):
    """The images of one split.

    Attributes:
        images: uint8 [classes, examples, H, W, C]; classes with fewer examples end in zeros.
        counts: int32 [classes], examples of each class.
        names: of the classes.
        files: what the images were read from, in words.
    """

    images: np.ndarray
    counts: np.ndarray
    names: tuple[str, ...]
    files: str = ""

    @property
    def image_set(self) -> ImageSet:
        """What episodes are drawn from; NumPy arrays, to be put on devices once."""
        return ImageSet(self.images, self.counts)  # pyright: ignore[reportArgumentType]

    def take(self, indices: Sequence[int] | np.ndarray) -> ImageClasses:
        """Some of the classes."""
        chosen = np.asarray(indices, np.int64)
        names = tuple(self.names[i] for i in chosen)
        return self._replace(images=self.images[chosen], counts=self.counts[chosen], names=names)


def stack(examples: Iterable[Example], where: str) -> ImageClasses:
    """One array of images, in order of the names of classes and examples.

    Warns of images that hold nearly one value.

    Args:
        examples: in any order.
        where: they come from, for messages.

    Raises:
        DataError: there is none.
        MemoryError: memory does not hold them.
    """
    by_class: dict[str, list[tuple[str, np.ndarray]]] = {}
    kinds: Counter[str] = Counter()
    for class_name, name, image, kind in examples:
        by_class.setdefault(class_name, []).append((name, image))
        kinds[kind] += 1
    if not by_class:
        raise DataError(f"expected images of some classes in {where}; received none.")
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
    """Indices of the images [n, H, W, C] whose pixels nearly all have one value."""
    flat = images.reshape(len(images), -1)
    return np.flatnonzero(np.ptp(flat, axis=1) <= NEARLY_ONE_VALUE)


def note_flat(flat: Sequence[str], total: int, where: str) -> None:
    """Warns of images that hold nearly one value."""
    if flat:
        note(
            f"{len(flat)} of {total} images of {where} decode to nearly one value (brightest and "
            f"darkest pixel differ by {NEARLY_ONE_VALUE} of 255 or less): {listed(flat, 3)}. Blank "
            "pages; or values that do not fill their range (12 bits in a 16-bit file), or ink as "
            "white as the paper behind a transparent image? Convert such files to 8-bit PNG."
        )


def describe_files(kinds: Mapping[str, int]) -> str:
    """Kinds of files (`Reading.decode_kind`) in words, with what their reading converted."""
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
    """A line for each split: classes, images of a class, and the files that they were read from."""
    lines = []
    for split, classes in splits.items():
        low, high = int(classes.counts.min()), int(classes.counts.max())
        images = f"{low}" if low == high else f"{low} to {high}"
        files = f" (files: {classes.files})" if classes.files else ""
        lines.append(f"  {split}: {len(classes.names)} classes of {images} images{files}")
    return "\n".join(lines)


def check_disjoint(splits: Mapping[str, ImageClasses]) -> None:
    """Raises a DataError if a class is in two splits: a test on it would flatter.

    Names that differ only in how Unicode writes them are one name.
    """
    split_of: dict[str, str] = {}
    for split, classes in sorted(splits.items(), key=lambda item: SPLITS.index(item[0])):
        names = {unicodedata.normalize("NFC", name): name for name in classes.names}
        if len(names) < len(classes.names):
            alike = sorted(set(classes.names) - set(names.values()))
            raise DataError(f"split {split!r} has names of classes that look alike: {alike}.")
        twice = [name for form, name in names.items() if form in split_of]
        if twice:
            other = split_of[unicodedata.normalize("NFC", twice[0])]
            raise DataError(
                f"{len(twice)} class(es) of split {split!r} are in split {other!r} too: "
                f"{listed(twice)}. Each class belongs to one split; if they are not the same, "
                "give them different names."
            )
        split_of |= dict.fromkeys(names, split)


def check_episodes(
    splits: Mapping[str, ImageClasses], num_ways: int, needed: Mapping[str, int]
) -> None:
    """Raises a DataError, before any training, if episodes cannot be drawn from each split.

    Args:
        splits: by name.
        num_ways: N.
        needed: for each split that is used, the examples that an episode takes of a class.
    """
    for split, per_class in needed.items():
        classes = splits[split]
        if len(classes.names) < num_ways:
            raise DataError(
                f"split {split!r} has {len(classes.names)} classes ({listed(classes.names)}); "
                f"{num_ways}-way episodes need {num_ways} or more."
            )
        few = [
            f"{name} ({count})"
            for name, count in zip(classes.names, classes.counts, strict=True)
            if count < per_class
        ]
        if few:
            raise DataError(
                f"an episode takes {per_class} examples of a class (shots and queries); split "
                f"{split!r} has classes with fewer: {listed(few)}."
            )
