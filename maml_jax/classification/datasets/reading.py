"""Decodes the bytes of an image file to an array of a given size."""

from __future__ import annotations

import dataclasses
import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from maml_jax.checks import check_counts
from maml_jax.classification.datasets.messages import DataError, describe_bytes

RESAMPLINGS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}
PROGRAMS = frozenset({"EPS", "WMF"})  # formats for which Pillow runs another program


@dataclasses.dataclass(frozen=True)
class Reading:
    """The settings that decode an image file to an array.

    Attributes:
        size: height and width, pixels; images that are not square are distorted.
        channels: 1 for grey, 3 for colour.
        invert: whether dark becomes 255, so that dark ink on white paper is 255 on 0.
        resample: a name in `RESAMPLINGS`.

    Raises:
        ValueError: a size below 1, other channels, or an unknown resampling.
        TypeError: a size that is not an integer.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> from maml_jax.classification.datasets import Reading
        >>> file = io.BytesIO()
        >>> Image.new("L", (40, 30), color=255).save(file, "png")
        >>> Reading(size=2, channels=1, invert=True).decode(file.getvalue()).tolist()
        [[[0], [0]], [[0], [0]]]
    """

    size: int
    channels: int = 3
    invert: bool = False
    resample: str = "lanczos"

    def __post_init__(self):
        check_counts(size=self.size, channels=self.channels)
        if self.channels not in (1, 3) or self.resample not in RESAMPLINGS:
            raise ValueError(
                "a Reading must have channels 1 or 3 and a resample of "
                f"{', '.join(RESAMPLINGS)}; received {self!r}."
            )

    def __str__(self) -> str:
        color = "grey" if self.channels == 1 else "colour"
        inverted = "inverted (dark is 255)" if self.invert else "not inverted (dark is 0)"
        return f"{self.size}x{self.size} pixels, {color}, {inverted}"

    def decode(self, data: bytes) -> np.ndarray:
        """Decodes the bytes of an image file to uint8 [size, size, channels].

        Raises:
            DataError: not an image, a broken image, or pixels of unknown range.
        """
        return self.decode_kind(data)[0]

    def decode_kind(self, data: bytes) -> tuple[np.ndarray, str]:
        """Decodes an image as `decode` and returns the kind of its file, such as "RGB 300x200".

        The kind is Pillow's mode, then `+` if the file has several frames, of which this reads the
        first, then width and height in pixels.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's warnings do not name the file
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                flat, kind = self._flatten(data)
                if flat.size != (self.size, self.size):
                    flat = flat.resize((self.size, self.size), RESAMPLINGS[self.resample])
        except DataError:
            raise
        except Exception as error:  # a broken image can raise nearly any exception
            reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
            raise DataError(describe_bytes(data) or f"a broken image{reason}") from None
        array = np.asarray(flat, np.uint8).reshape(self.size, self.size, self.channels)
        return (255 - array if self.invert else array), kind

    def _flatten(self, data: bytes) -> tuple[Image.Image, str]:
        Image.init()
        formats = [name for name in Image.ID if name not in PROGRAMS]
        with Image.open(io.BytesIO(data), formats=formats) as image:
            frames = "+" if getattr(image, "is_animated", False) else ""
            kind = f"{image.mode}{frames} {image.width}x{image.height}"
            upright = ImageOps.exif_transpose(image)
            return _eight_bits(upright).convert("L" if self.channels == 1 else "RGB"), kind


def _eight_bits(image: Image.Image) -> Image.Image:
    """Composites transparent images on white, and converts 16-bit grey to 8 bits."""
    if image.mode == "F":
        raise DataError("an image of floating-point pixels of unknown range: convert it to 8 bits")
    if image.mode.startswith("I"):  # 16 bits, also in Pillow's 32-bit mode
        values = np.asarray(image, np.float64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(
                f"an image of 32-bit integers from {values.min():.0f} to {values.max():.0f}, "
                "expected 0 to 65535: convert it to 8 bits"
            )
        return Image.fromarray((values / 257).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, with_alpha)
    return image if image.mode in ("1", "L", "P") else image.convert("RGB")
