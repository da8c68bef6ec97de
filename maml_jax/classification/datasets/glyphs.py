"""Draws synthetic characters: each example jitters the strokes of its class.

They serve tests, benchmarks and demonstrations without a download. They do not replace Omniglot;
results on them carry the label synthetic.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from maml_jax.checks import check_counts
from maml_jax.classification.datasets.images import ImageClasses

_SCALE = 4  # glyphs are drawn 4 times as large and then averaged, for smooth edges


def synthetic_glyphs(
    num_classes: int,
    num_examples: int = 20,
    image_size: int = 28,
    channels: int = 1,
    seed: int = 0,
) -> ImageClasses:
    """Draws classes of glyphs with two to four curved strokes, ink 255 on 0.

    Examples of a class differ by jitter of the strokes' control points and by a small shift,
    rotation and scale. With three channels each class has a colour, which varies between examples.

    Args:
        num_classes: number of classes.
        num_examples: of each class.
        image_size: height and width, pixels.
        channels: 1 or 3.
        seed: of all random numbers; each seed draws other classes.

    Raises:
        ValueError: a count below 1.
        TypeError: a count that is not an integer.

    Example:
        >>> from maml_jax.classification.datasets import synthetic_glyphs
        >>> glyphs = synthetic_glyphs(num_classes=2, num_examples=3, image_size=8)
        >>> glyphs.images.shape, glyphs.images.dtype.name, glyphs.names
        ((2, 3, 8, 8, 1), 'uint8', ('synthetic_0_0000', 'synthetic_0_0001'))
    """
    check_counts(
        num_classes=num_classes,
        num_examples=num_examples,
        image_size=image_size,
        channels=channels,
    )
    rng = np.random.Generator(np.random.PCG64(seed))
    images = np.zeros((num_classes, num_examples, image_size, image_size, channels), np.uint8)
    for i in range(num_classes):
        strokes = rng.uniform(0.15, 0.85, (rng.integers(2, 5), 4, 2))
        color = rng.uniform(0.4, 1.0, channels) if channels > 1 else np.ones(1)
        for j in range(num_examples):
            ink = _draw(_vary(strokes, rng), image_size, rng)
            tint = np.clip(color * rng.uniform(0.85, 1.15, channels), 0, 1)
            images[i, j] = np.rint(ink[..., None] * (tint if channels > 1 else 1.0))
    names = tuple(f"synthetic_{seed}_{i:04d}" for i in range(num_classes))
    return ImageClasses(images, np.full(num_classes, num_examples, np.int32), names)


def _vary(strokes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    moved = strokes + rng.normal(0, 0.025, strokes.shape) - 0.5
    angle, size = rng.normal(0, 0.12), rng.normal(1, 0.08)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return size * moved @ turn.T + 0.5 + rng.normal(0, 0.03, 2)


def _draw(strokes: np.ndarray, image_size: int, rng: np.random.Generator) -> np.ndarray:
    side = image_size * _SCALE
    image = Image.new("L", (side, side))
    pen = ImageDraw.Draw(image)
    width = max(1, round(side * rng.uniform(0.05, 0.08)))
    t = np.linspace(0, 1, 16)[:, None]
    weights = [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3]  # cubic Bezier
    for points in strokes:
        curve = sum(w * p for w, p in zip(weights, points, strict=True)) * side
        pen.line([tuple(p) for p in np.asarray(curve)], fill=255, width=width, joint="curve")
    return np.asarray(image.resize((image_size, image_size), Image.Resampling.BOX), np.float64)
