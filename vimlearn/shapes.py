"""Outlines of the shapes in drawn scenes, and their masks.

An outline is a ring of points around (0, 0), within about 1 of it, x to the right and y down. A shape may have a second
outline, which is its hole.
"""

__all__ = ["SHAPES", "cover", "stroke"]

import math

import numpy as np
from PIL import Image, ImageDraw

# Outline and holes; each an (points, 2) array.
Outlines = list[np.ndarray]
# Points on a pixel's side when a mask is drawn: its grey levels are then 1/16 apart.
FINE = 4


def _round(radius: float = 1.0, corners: int = 72, turn: float = 0.0) -> np.ndarray:
    angles = turn + 2 * math.pi * np.arange(corners) / corners
    return radius * np.stack([np.sin(angles), -np.cos(angles)], 1)


def _star() -> np.ndarray:
    points = _round(1.1, 10)
    points[1::2] *= 0.45
    return points


def _cross() -> np.ndarray:
    wide, narrow = 0.95, 0.32
    quarter = np.array([(narrow, -wide), (narrow, -narrow), (wide, -narrow)])
    turns = [np.array([(math.cos(a), math.sin(a)), (-math.sin(a), math.cos(a))]) for a in np.arange(4) * math.pi / 2]
    return np.concatenate([quarter @ turn for turn in turns])


def _heart() -> np.ndarray:
    t = 2 * math.pi * np.arange(72) / 72
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y - 2.5], 1) / 16


def _moon() -> np.ndarray:
    # Two arcs that meet in the horns, 60 degrees from the middle of the gap.
    horn = math.radians(60)
    outer = np.linspace(horn, 2 * math.pi - horn, 60)
    inner = np.linspace(math.pi / 2, -math.pi / 2, 40)
    near, far = math.cos(horn), math.sin(horn)
    back = np.stack([near - 0.75 * np.cos(inner), -far * np.sin(inner)], 1)
    return np.concatenate([np.stack([np.cos(outer), np.sin(outer)], 1), back])


SHAPES: dict[str, Outlines] = {
    "circle": [_round()],
    "square": [_round(1.2, 4, math.pi / 4)],
    "triangle": [_round(1.15, 3)],
    "star": [_star()],
    "cross": [_cross()],
    "ring": [_round(), _round(0.55)],
    "heart": [_heart()],
    "moon": [_moon()],
}


def cover(name: str, centre: tuple[float, float], radius: float, turn: float, size: int) -> np.ndarray:
    """Return which share of each pixel a shape covers, (size, size), 0 to 1.

    Arguments: name, one of SHAPES; centre, (x, y), and radius, as shares of the picture's side; turn, clockwise, in
    radians; size, of the picture in pixels.
    """
    wide = size * FINE
    canvas = Image.new("L", (wide, wide))
    rotate = np.array([(math.cos(turn), math.sin(turn)), (-math.sin(turn), math.cos(turn))])
    for i, outline in enumerate(SHAPES[name]):
        # Whole numbers, so that the last digit of a sine does not matter.
        points = np.rint((outline @ rotate * radius + centre) * wide - 0.5).astype(int)
        ImageDraw.Draw(canvas).polygon([tuple(point) for point in points.tolist()], fill=0 if i else 255)
    return np.asarray(canvas.reduce(FINE)) / 255


def stroke(ends: np.ndarray, width: float, size: int) -> np.ndarray:
    """Return which share of each pixel a straight stroke covers, (size, size), 0 to 1.

    Arguments: ends, two rows of x and y, and width, as shares of the picture's side.
    """
    wide = size * FINE
    canvas = Image.new("L", (wide, wide))
    ends = [tuple(point) for point in np.rint(ends * wide).astype(int).tolist()]
    ImageDraw.Draw(canvas).line(ends, fill=255, width=max(1, round(width * wide)))
    return np.asarray(canvas.reduce(FINE)) / 255
