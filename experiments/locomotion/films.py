"""Films of robots: a page that works offline and can be turned with the mouse, and a GIF."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import animation
from matplotlib.collections import LineCollection

from maml_jax.reinforcement.robots import Robot

from ..core import plotting
from ..core.plotting import plt

TEMPLATE = Path(__file__).with_name("film.html")
COLORS = ("#999999", "#56B4E9", "#0072B2", "#D55E00")
FRAMES_A_SECOND = 25


class Film(NamedTuple):
    """One policy's episode.

    Attributes:
        title: above its picture.
        poses: generalised coordinates [H + 1, nq].
    """

    title: str
    poses: np.ndarray


def write_page(path: Path, title: str, robot: Robot, physics: Any, films: Sequence[Film]) -> None:
    """Writes one HTML file with the poses and what draws them; loads nothing from elsewhere.

    Args:
        path: of the file.
        title: of the page.
        robot: how wide a picture of it is, and from where.
        physics: its model and its time step.
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
    """Writes the same as an animated picture, at half speed where a step is short."""
    stride = max(1, round(0.5 / FRAMES_A_SECOND / physics.timestep))
    width, view = robot.picture_width, (robot.azimuth, robot.elevation)
    size = 3.2  # inches
    with plt.rc_context(plotting.STYLE):
        figure, axes = plt.subplots(
            1, len(films), figsize=(size * len(films), size + 0.3), squeeze=False,
            layout="constrained",
        )  # fmt: skip
        figure.suptitle(title, fontsize=10)
        drawn = []
        for ax, film, color in zip(axes[0], films, COLORS, strict=False):
            ends, radii = _shapes(physics, film)
            ax.set_title(film.title, fontsize=8)
            ax.set_xlim(-width / 2, width / 2)
            ax.set_ylim(-0.28 * width, 0.72 * width)
            ax.set_aspect("equal")
            ax.axis("off")
            points = 2 * radii / width * (size * 72 * 0.95)
            ground = LineCollection([], colors="#aaaaaa", linewidths=0.8, zorder=0)
            body = LineCollection(
                [], colors=color, linewidths=points, capstyle="round", joinstyle="round"
            )
            ax.add_collection(ground)
            ax.add_collection(body)
            drawn.append((ends, ground, body))

        def draw(frame: int) -> list[Any]:
            for ends, ground, body in drawn:
                at = min(frame * stride, len(ends) - 1)
                centre = ends[at].mean((0, 1))
                body.set_segments(list(_project(ends[at], centre, *view)))
                ground.set_segments(list(_project(_ground(centre), centre, *view)))
            return [part for _, *parts in drawn for part in parts]

        frames = (max(len(film.poses) for film in films) - 1) // stride + 1
        moving = animation.FuncAnimation(figure, draw, frames=frames)
        moving.save(path, writer=animation.PillowWriter(fps=FRAMES_A_SECOND), dpi=80)
        plt.close(figure)


def _shapes(physics: Any, film: Film) -> tuple[np.ndarray, np.ndarray]:
    from maml_jax.reinforcement.locomotion import capsules

    return capsules(physics.model, film.poses)


def _ground(centre: np.ndarray) -> np.ndarray:
    """A line along the way and marks a metre apart [lines, 2, 3]."""
    first, y = np.floor(centre[0]) - 4, centre[1]
    marks = [[[x, y - 0.6, 0], [x, y + 0.6, 0]] for x in np.arange(first, first + 10)]
    posts = [[[x, y, 0], [x, y, -0.06]] for x in np.arange(first, first + 10)]
    return np.array([[[first, y, 0], [first + 9, y, 0]], *marks, *posts])


def _project(points: np.ndarray, centre: np.ndarray, azimuth: float, elevation: float) -> Any:
    """Points [..., 3] on the picture's plane [..., 2]."""
    x, y, z = np.moveaxis(points - [centre[0], centre[1], 0.0], -1, 0)
    right = np.cos(azimuth) * x + np.sin(azimuth) * y
    away = -np.sin(azimuth) * x + np.cos(azimuth) * y
    return np.stack([right, np.cos(elevation) * z + np.sin(elevation) * away], axis=-1)
