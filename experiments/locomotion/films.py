"""Films of robots: a page that works offline and turns with the mouse, and an animated picture."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection

from maml_jax.reinforcement.robots import Robot

from ..core import plotting
from ..core.plotting import plt

TEMPLATE = Path(__file__).with_name("film.html")
COLORS = ("#999999", "#56B4E9", "#0072B2", "#D55E00")
FRAMES_A_SECOND, SPEED = 25, 0.5  # of the animated picture; 1 is real time
MOST_FRAMES = 120  # longer episodes play faster, for a small file
WIDEST = 3.5  # widest view of a still camera, in widths of a robot's picture
WIDTH, DPI, PALETTE = 6.4, 100, 48  # inches, pixels an inch, colours of the animated picture


class Film(NamedTuple):
    """One policy's episode.

    Attributes:
        title: above its picture.
        poses: generalised coordinates [H + 1, nq].
    """

    title: str
    poses: np.ndarray


class _View(NamedTuple):
    """What a panel shows.

    Attributes:
        ends: of the robot's capsules, metres [H + 1, G, 2, 3].
        radii: of the capsules, metres [G].
        centres: points in the middle of the panel [H + 1, 3].
    """

    ends: np.ndarray
    radii: np.ndarray
    centres: np.ndarray


def write_page(path: Path, title: str, robot: Robot, physics: Any, films: Sequence[Film]) -> None:
    """Writes one HTML file with the poses and the code that draws them; it loads nothing else.

    Args:
        path: of the file.
        title: of the page.
        robot: its picture's width and angles.
        physics: with the robot's model and time step.
        films: side by side.
    """
    policies, radii = [], np.zeros(0)
    for film, color in zip(films, COLORS, strict=False):
        ends, radii = _shapes(physics, film)
        policies.append(
            {
                "title": film.title,
                "colour": color,
                "ends": np.round(ends.reshape(len(ends), -1, 6), 3).tolist(),
                "centre": np.round(ends.mean((1, 2)), 3).tolist(),
            }
        )
    data = {
        "policies": policies,
        "radii": radii.tolist(),
        "timestep": physics.timestep,
        "width": robot.picture_width,
        "azimuth": robot.azimuth,
        "elevation": robot.elevation,
    }
    text = TEMPLATE.read_text(encoding="utf-8").replace("TITLE", html.escape(title))
    path.write_text(text.replace("DATA", json.dumps(data, separators=(",", ":"))), "utf-8")


def write_gif(path: Path, title: str, robot: Robot, physics: Any, films: Sequence[Film]) -> None:
    """Writes the films as an animated picture, one below the other.

    The camera stands still, so that distances show; it follows robots that go too far for that.
    Short episodes play at half speed.

    Args:
        path: of the GIF.
        title: of the picture.
        robot: its picture's width and angles.
        physics: with the robot's model and time step.
        films: of one robot.
    """
    from PIL import Image

    views, width = _views(robot, [_shapes(physics, film) for film in films])
    angles = robot.azimuth, robot.elevation
    heights = [_project(v.ends, v.centres[:, None, None], *angles)[..., 1] for v in views]
    low, high = min(h.min() for h in heights) - 0.3, max(h.max() for h in heights) + 0.15
    inches = WIDTH * (high - low) / width + 0.3
    num_steps = max(len(view.ends) for view in views)
    stride = max(round(SPEED / FRAMES_A_SECOND / physics.timestep), -(-num_steps // MOST_FRAMES), 1)
    pictures = []
    with plt.rc_context(plotting.STYLE):
        size = (WIDTH, inches * len(films) + 0.4)
        figure, axes = plt.subplots(len(films), 1, figsize=size, dpi=DPI, squeeze=False)
        canvas = FigureCanvasAgg(figure)
        figure.subplots_adjust(0.01, 0.01, 0.99, 1 - 0.65 / size[1], hspace=0.3 / inches)
        figure.suptitle(title, fontsize=10)
        for ax, film in zip(axes[:, 0], films, strict=True):
            ax.set_title(film.title, fontsize=8, loc="left")
            ax.set_xlim(-width / 2, width / 2)
            ax.set_ylim(low, high)
            ax.set_aspect("equal")
            ax.axis("off")
        for frame in range(0, num_steps, stride):
            drawn = [
                part
                for ax, view, color in zip(axes[:, 0], views, COLORS, strict=False)
                for part in _draw(ax, view, frame, color, width, angles)
            ]
            canvas.draw()
            image = Image.fromarray(np.array(canvas.buffer_rgba())).convert("RGB")
            like = pictures[0] if pictures else None
            pictures.append(image.quantize(PALETTE, palette=like, dither=Image.Dither.NONE))
            for part in drawn:
                part.remove()
        plt.close(figure)
    each = round(1000 / FRAMES_A_SECOND)
    durations = [each] * (len(pictures) - 1) + [1000]  # milliseconds; the end stays for a second
    pictures[0].save(
        path, save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=True
    )


def _views(
    robot: Robot, shapes: Sequence[tuple[np.ndarray, np.ndarray]]
) -> tuple[list[_View], float]:
    """The view of each film and its width in metres, the same for all."""
    ways = [ends.mean((1, 2)) for ends, _ in shapes]
    low, high = (f([f(way, axis=0) for way in ways], axis=0) for f in (np.min, np.max))
    width, aside = high[0] - low[0] + robot.picture_width, high[1] - low[1]
    still = width <= WIDEST * robot.picture_width and aside <= robot.picture_width / 2
    if still:
        ways = [np.broadcast_to((low + high) / 2, way.shape) for way in ways]
    views = [_View(*shape, way) for shape, way in zip(shapes, ways, strict=True)]
    return views, max(width, 2 * robot.picture_width) if still else 2 * robot.picture_width


def _draw(
    ax: Axes, view: _View, frame: int, color: str, width: float, angles: tuple[float, float]
) -> list[Any]:
    """Draws the ground and the robot at one time step, and returns what it added."""
    frame = min(frame, len(view.ends) - 1)
    centre = view.centres[frame]
    ground, marks = _ground(centre, width)
    points = 2 * view.radii / width * (WIDTH * 72 * 0.98)
    look = {"capstyle": "round", "joinstyle": "round", "snap": False}
    segments = _project(view.ends[frame], centre, *angles)
    lines = [
        LineCollection(_project(ground, centre, *angles), colors="#aaaaaa", linewidths=0.8),
        LineCollection(segments, colors="#333333", linewidths=points + 1.5, **look),
        LineCollection(segments, colors=color, linewidths=points, **look),
    ]
    for line in lines:
        ax.add_collection(line, autolim=False)
    texts = []
    for mark in marks:
        x, y = _project(mark, centre, *angles)
        if abs(x) < width / 2 - 0.1:
            at = {"fontsize": 6, "va": "top", "clip_on": True}
            texts.append(ax.text(x + 0.03, y - 0.04, f"{mark[0]:.0f} m", **at))
    return [*lines, *texts]


def _shapes(physics: Any, film: Film) -> tuple[np.ndarray, np.ndarray]:
    from maml_jax.reinforcement.locomotion import capsules

    ends, radii = capsules(physics.model, film.poses)
    ends[:, :, 1, 2] += 0.02  # spheres: matplotlib draws no line without length
    return ends, radii


def _ground(centre: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
    """A line along the way with marks a metre apart [lines, 2, 3], and the marks' ends [n, 3]."""
    metres = np.arange(math.floor(centre[0] - width), math.ceil(centre[0] + width) + 1)
    y = centre[1]
    marks = [[[x, y - 0.6, 0], [x, y + 0.6, 0]] for x in metres]
    posts = [[[x, y, 0], [x, y, -0.06]] for x in metres]
    way = [[metres[0], y, 0], [metres[-1], y, 0]]
    return np.array([way, *marks, *posts]), np.array([[x, y - 0.6, -0.02] for x in metres])


def _project(points: np.ndarray, centre: np.ndarray, azimuth: float, elevation: float) -> Any:
    """Points [..., 3] on the picture's plane [..., 2]; the ground below the centre is at 0."""
    x, y, z = np.moveaxis(points - centre * [1.0, 1.0, 0.0], -1, 0)
    right = np.cos(azimuth) * x + np.sin(azimuth) * y
    away = -np.sin(azimuth) * x + np.cos(azimuth) * y
    return np.stack([right, np.cos(elevation) * z + np.sin(elevation) * away], axis=-1)
