"""Scenes of drawn shapes, as many as wanted, with everything known about them: class, mask and box of each object.

A scene has one large object, its main one, and up to four small ones of other classes. They may hide parts of each
other. Behind them is a ground with stripes of light and strokes that belong to no class. Colour says nothing about the
class. So a network that names the main object has to look at its outline, and where it has to look is known.

    classification   image, label
    segmentation     image, class_mask, or masks
    detection        image, boxes, labels (and masks)

A scene depends on its seed and number alone. The same scene can be drawn at any size; noise differs.
"""

__all__ = ["BACKGROUND", "CLASSES", "PARTS", "Scene", "SceneDataset", "SceneReader", "draw_scene"]

import functools
import io
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .errors import VimlearnError
from .shapes import SHAPES, cover, stroke

CLASSES = tuple(SHAPES)
# What class_mask says where there is no object.
BACKGROUND = 0
SIZES = (32, 256)
# Scenes and seed of the part to train on and of the part held out.
PARTS = ((16_000, 0), (2_000, 1))

# Radii as shares of the picture's side; turns in radians.
MAIN_RADIUS, SMALL_RADIUS = (0.19, 0.30), (0.075, 0.12)
SMALL_COUNT, TURN, TRIES = (2, 4), 0.5, 20
# Least part of an object that must be seen, main one and others, and the grid on which that is judged.
MAIN_SEEN, SMALL_SEEN, LAYOUT = 0.75, 0.6, 64
# Okabe and Ito's colours, to be told apart by all eyes.
PALETTE = np.array([(0, 114, 178), (213, 94, 0), (0, 158, 115), (230, 159, 0), (204, 121, 167), (86, 180, 233),
                    (240, 228, 66)], dtype=float)
# Largest noise, in levels of 256.
NOISE = 9


@dataclass(frozen=True)
class Scene:
    """A picture and what is in it. Objects are listed from the hindmost to the foremost.

    image: (3, H, W), uint8. label: class of the main object, a position in CLASSES. main: number of the main object.
    labels: (objects,), int64, positions in CLASSES. masks: (objects, H, W), bool, pixels of which at least half is the
    object and that nothing hides; no pixel is in two. boxes: (objects, 4), float32, x0, y0, x1, y1 in pixels around the
    mask: x1 and y1 are the far edges of the last pixels, as in torchvision.
    """

    image: Tensor
    label: int
    main: int
    labels: Tensor
    masks: Tensor
    boxes: Tensor

    @property
    def class_mask(self) -> Tensor:
        """Class of each pixel, (H, W), int64: BACKGROUND, or 1 + the position in CLASSES."""
        return (self.masks * (1 + self.labels)[:, None, None]).sum(0)

    @property
    def main_mask(self) -> Tensor:
        """Pixels of the main object, (H, W), bool."""
        return self.masks[self.main]

    def picture(self) -> Image.Image:
        """Return the image for PIL, in RGB."""
        return Image.fromarray(self.image.permute(1, 2, 0).numpy())


class SceneDataset(Dataset):
    """`count` scenes of a seed, drawn when asked for: dataset[i] is a Scene. The classes of main objects take turns.

    Raises VimlearnError as `draw_scene` does, and where count is below 1.
    """

    def __init__(self, count: int, size: int = 64, seed: int = 0):
        if count < 1:
            raise VimlearnError(f"count is {count}; expected at least one scene")
        _check(0, size, seed)
        self.count, self.size, self.seed, self.classes = count, size, seed, CLASSES

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Scene:
        """Return scene `index`, counted from 0. Raises IndexError beyond the last."""
        if not 0 <= index < self.count:
            raise IndexError(f"there is no scene {index}; expected 0 to {self.count - 1}")
        return draw_scene(index, self.size, self.seed)


class SceneReader:
    """The built-in scenes of 64 pixels as files that are read from memory, with the class of the main object: what
    `vimlearn.sources.Images` takes. A scene is drawn once and kept.
    """

    def __init__(self, count: int, seed: int):
        self.scenes = SceneDataset(count, seed=seed)
        self._file = functools.cache(self._encode)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
        return io.BytesIO(self._file(index)), index % len(CLASSES)

    def filename(self, index: int, **kwargs) -> str:
        """Return what image `index` is called."""
        return f"scene {index} of seed {self.scenes.seed}"

    def _encode(self, index: int) -> bytes:
        file = io.BytesIO()
        self.scenes[index].picture().save(file, "bmp")
        return file.getvalue()


def draw_scene(index: int, size: int = 64, seed: int = 0) -> Scene:
    """Draw scene number `index` of a seed. Its main object is of class index modulo the number of classes.

    Arguments: size, 32 to 256, of the square picture in pixels; seed, 0 or more.
    Raises VimlearnError where one of them is out of bounds.
    """
    _check(index, size, seed)
    rng = np.random.default_rng([seed, index])
    objects, main = _layout(rng, index % len(CLASSES))
    covers = np.stack([one.cover(size) for one in objects])
    masks = _seen(covers >= 0.5)
    pixels = _paint(rng, covers, size)
    return Scene(torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), index % len(CLASSES), main,
                 torch.tensor([one.label for one in objects]), torch.from_numpy(masks), _boxes(masks))


def _check(index: int, size: int, seed: int) -> None:
    for name, value, least, most in (("index", index, 0, None), ("size", size, *SIZES), ("seed", seed, 0, None)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise VimlearnError(f"{name} is {value!r}; expected a whole number")
        if value < least or (most is not None and value > most):
            raise VimlearnError(f"{name} is {value}; expected {least} to {most}" if most is not None else
                                f"{name} is {value}; expected {least} or more")


def _layout(rng: np.random.Generator, label: int) -> tuple[list["_Placed"], int]:
    """Return the objects, from the hindmost to the foremost, and which of them is the main one."""
    objects, main = [_Placed.draw(rng, label, MAIN_RADIUS)], 0
    others = rng.permutation([other for other in range(len(CLASSES)) if other != label])
    for other in others[:rng.integers(SMALL_COUNT[0], SMALL_COUNT[1] + 1)].tolist():
        for _ in range(TRIES):
            behind = bool(rng.integers(2))
            one = [_Placed.draw(rng, other, SMALL_RADIUS)]
            tried = one + objects if behind else objects + one
            if _is_clear(tried, main + behind):
                objects, main = tried, main + behind
                break
    return objects, main


class _Placed(NamedTuple):
    """An object and its place, in shares of the picture's side, and what it covers of the LAYOUT grid."""

    label: int
    centre: tuple[float, float]
    radius: float
    turn: float
    whole: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, label: int, radii: tuple[float, float]) -> "_Placed":
        """Choose a place with the whole object in the picture."""
        radius = rng.uniform(*radii)
        place = tuple(rng.uniform(radius * 1.1, 1 - radius * 1.1, 2)), radius, rng.uniform(-TURN, TURN)
        return cls(label, *place, cover(CLASSES[label], *place, LAYOUT) >= 0.5)

    def cover(self, size: int) -> np.ndarray:
        """Return which share of each pixel it covers, (size, size)."""
        return cover(CLASSES[self.label], self.centre, self.radius, self.turn, size)


def _is_clear(objects: list[_Placed], main: int) -> bool:
    """Return whether enough of each object is seen."""
    whole = np.stack([one.whole for one in objects])
    share = _seen(whole).sum((1, 2)) / whole.sum((1, 2))
    least = np.full(len(objects), SMALL_SEEN)
    least[main] = MAIN_SEEN
    return bool((share >= least).all())


def _seen(whole: np.ndarray) -> np.ndarray:
    """Take from each mask, (objects, H, W), what the masks after it hide."""
    seen, hidden = np.empty_like(whole), np.zeros_like(whole[0])
    for i in reversed(range(len(whole))):
        seen[i] = whole[i] & ~hidden
        hidden = hidden | whole[i]
    return seen


def _paint(rng: np.random.Generator, covers: np.ndarray, size: int) -> np.ndarray:
    """Return the picture, (size, size, 3), uint8."""
    pixels = _strokes(rng, _ground(rng, size))
    distance = np.linalg.norm(PALETTE - pixels.mean((0, 1)), axis=1)
    # No two objects share one, and the colours nearest to the ground stay unused.
    colours = rng.permutation(PALETTE[np.argsort(distance)[-1 - SMALL_COUNT[1]:]])
    y, x = np.mgrid[-1:1:size * 1j, -1:1:size * 1j]
    for i, alpha in enumerate(covers):
        down, right = rng.uniform(-0.15, 0.15, 2)
        colour = colours[i] + rng.uniform(-20, 20, 3)
        shaded = colour * (1 + down * y + right * x)[..., None]
        pixels = pixels + alpha[..., None] * (shaded - pixels)
    noise = rng.uniform(-NOISE, NOISE, (size, size, 3))
    return np.rint(pixels + noise).clip(0, 255).astype(np.uint8)


def _ground(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return soft clouds between two pale or two dark greys with a tint, (size, size, 3)."""
    light = rng.uniform(50, 215)
    pair = light + rng.uniform(-25, 25, (2, 1)) + rng.uniform(-18, 18, (2, 3))
    coarse = Image.fromarray(rng.integers(0, 256, (rng.integers(3, 9),) * 2, dtype=np.uint8))
    clouds = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))[..., None] / 255
    return pair[0] + clouds * (pair[1] - pair[0])


def _strokes(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """Draw thin strokes a little lighter or darker than the ground."""
    size = len(pixels)
    for _ in range(rng.integers(3, 8)):
        alpha = stroke(rng.uniform(0, 1, (2, 2)), rng.uniform(0.012, 0.03), size)
        pixels = pixels + alpha[..., None] * rng.choice([-1, 1]) * rng.uniform(15, 45)
    return pixels


def _boxes(masks: np.ndarray) -> Tensor:
    """Return x0, y0, x1, y1 of each mask, (objects, 4), float32."""
    found = []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        found.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return torch.tensor(np.array(found), dtype=torch.float32)
