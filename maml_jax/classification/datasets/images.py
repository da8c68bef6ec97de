"""Images of classes on the host: one uint8 array, and how files become it."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from maml_jax.classification.episodes import ImageSet

SPLITS = ("train", "val", "test")
RESAMPLINGS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}


_UNREADABLE = (
    UnidentifiedImageError,
    Image.DecompressionBombError,  # a header that claims hundreds of megapixels
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
)


class DataError(ValueError):
    """Data that cannot be used; the message names file or class, what was expected, and found."""


class ImageClasses(NamedTuple):
    """The images of one split.

    Attributes:
        images: uint8 [classes, examples, H, W, C]; classes with fewer examples end in zeros.
        counts: int32 [classes], examples of each class.
        names: of the classes.
    """

    images: np.ndarray
    counts: np.ndarray
    names: tuple[str, ...]

    @property
    def image_set(self) -> ImageSet:
        """What episodes are drawn from; NumPy arrays, to be put on devices once."""
        return ImageSet(self.images, self.counts)  # pyright: ignore[reportArgumentType]

    def take(self, indices: Sequence[int] | np.ndarray) -> ImageClasses:
        """Some of the classes."""
        chosen = np.asarray(indices, np.int64)
        names = tuple(self.names[i] for i in chosen)
        return ImageClasses(self.images[chosen], self.counts[chosen], names)


@dataclasses.dataclass(frozen=True)
class Reading:
    """How an image file becomes an array.

    Attributes:
        size: height and width in pixels; images are squeezed to a square.
        channels: 1 for grey, 3 for colour.
        invert: whether dark becomes 255: ink on paper, then, is 1 and paper 0.
        resample: a name in `RESAMPLINGS`.
    """

    size: int
    channels: int = 3
    invert: bool = False
    resample: str = "lanczos"

    def __post_init__(self):
        if self.size < 1 or self.channels not in (1, 3) or self.resample not in RESAMPLINGS:
            raise ValueError(
                "a reading has a size of 1 pixel or more, 1 or 3 channels, and a resampling of "
                f"{', '.join(RESAMPLINGS)}; received {self}."
            )

    def decode(self, data: bytes) -> np.ndarray:
        """The image in a file's bytes as uint8 [size, size, channels].

        Raises:
            DataError: this is no image, or a broken one; says what it looks like.
        """
        try:
            with Image.open(io.BytesIO(data)) as image:
                upright = ImageOps.exif_transpose(image)
                flat = _on_white(upright).convert("L" if self.channels == 1 else "RGB")
        except DataError:
            raise
        except _UNREADABLE as error:
            said = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
            raise DataError(describe_bytes(data) or f"a broken image{said}") from None
        if flat.size != (self.size, self.size):
            flat = flat.resize((self.size, self.size), RESAMPLINGS[self.resample])
        array = np.asarray(flat, np.uint8).reshape(self.size, self.size, self.channels)
        return 255 - array if self.invert else array


def _on_white(image: Image.Image) -> Image.Image:
    """Transparent parts become white; 16-bit grey becomes 8-bit."""
    if image.mode == "F":
        raise DataError("an image of floating-point pixels, whose range is not known: convert it")
    if image.mode.startswith("I"):  # 16 bits, whether Pillow says so or not
        values = np.asarray(image, np.float64) / 257
        return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, with_alpha)
    return image


def describe_bytes(data: bytes) -> str:
    """What a file that should be an image or an archive is instead; "" if that cannot be told."""
    start = data[:512].lstrip().lower()
    if not data:
        return "an empty file"
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        return "an HTML page: the download was of a web page, not of the file"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer: fetch the file itself with `git lfs pull`"
    return ""


def stack(examples: Iterable[tuple[str, str, np.ndarray]]) -> ImageClasses:
    """One array of images that come as (class, example, uint8 [H, W, C]), in order of names.

    Raises:
        DataError: there is none.
    """
    by_class: dict[str, list[tuple[str, np.ndarray]]] = {}
    for class_name, name, image in examples:
        by_class.setdefault(class_name, []).append((name, image))
    if not by_class:
        raise DataError("expected images of some classes; found none.")
    names = tuple(sorted(by_class))
    counts = np.array([len(by_class[name]) for name in names], np.int32)
    shape = next(iter(by_class.values()))[0][1].shape
    images = np.zeros((len(names), int(counts.max()), *shape), np.uint8)
    for i, name in enumerate(names):
        for j, (_, image) in enumerate(sorted(by_class.pop(name), key=lambda pair: pair[0])):
            images[i, j] = image
    return ImageClasses(images, counts, names)


def check_disjoint(splits: Mapping[str, ImageClasses]) -> None:
    """Raises a DataError if a class is in two splits: a test on it would flatter."""
    seen: dict[str, str] = {}
    for split, classes in sorted(splits.items(), key=lambda item: SPLITS.index(item[0])):
        twice = [name for name in classes.names if name in seen]
        if twice:
            raise DataError(
                f"{len(twice)} class(es) of split {split!r} are in split {seen[twice[0]]!r} too: "
                f"{_listed(twice)}. Each class belongs to one split; if they are not the same, "
                "give them different names."
            )
        seen |= dict.fromkeys(classes.names, split)


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
                f"split {split!r} has {len(classes.names)} classes ({_listed(classes.names)}); "
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
                f"{split!r} has classes with fewer: {_listed(few)}."
            )


def _listed(names: Sequence[str], most: int = 8) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def short_digest(parts: Iterable[str]) -> str:
    """A short name for what a data set was made from."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.encode() + b"\0")
    return sha.hexdigest()[:16]
