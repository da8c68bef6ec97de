"""How the bytes of an image file become an array of one size."""

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
PROGRAMS = frozenset({"EPS", "WMF"})  # formats that Pillow has another program draw


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
        check_counts(size=self.size, channels=self.channels)
        if self.channels not in (1, 3) or self.resample not in RESAMPLINGS:
            raise ValueError(
                f"a reading has 1 or 3 channels, and a resampling of {', '.join(RESAMPLINGS)}; "
                f"received {self!r}."
            )

    def __str__(self) -> str:
        color = "grey" if self.channels == 1 else "colour"
        inverted = "inverted (dark is 255)" if self.invert else "not inverted (dark is 0)"
        return f"{self.size}x{self.size} pixels, {color}, {inverted}"

    def decode(self, data: bytes) -> np.ndarray:
        """The image in a file's bytes as uint8 [size, size, channels].

        Raises:
            DataError: this is no image, or a broken one, or one whose pixels have no known range.
        """
        return self.decode_kind(data)[0]

    def decode_kind(self, data: bytes) -> tuple[np.ndarray, str]:
        """The image as `decode` returns it, and what the file was, as "RGB 300x200".

        The kind is Pillow's mode, `+` where only the first of several frames was read, and width
        and height in pixels.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's do not name the file
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                flat, kind = self._flatten(data)
                if flat.size != (self.size, self.size):
                    flat = flat.resize((self.size, self.size), RESAMPLINGS[self.resample])
        except DataError:
            raise
        except Exception as error:  # a broken image can raise nearly anything
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
    """Transparent parts become white; 16-bit grey becomes 8-bit."""
    if image.mode == "F":
        raise DataError("an image of floating-point pixels, whose range is not known: convert it")
    if image.mode.startswith("I"):  # 16 bits, whether Pillow says so or not
        values = np.asarray(image, np.float64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(
                f"an image of 32-bit integers from {values.min():.0f} to {values.max():.0f}, "
                "expected 0 to 65535: convert it"
            )
        return Image.fromarray((values / 257).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, with_alpha)
    return image if image.mode in ("1", "L", "P") else image.convert("RGB")
