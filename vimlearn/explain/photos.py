"""From an image file to what the network sees, and to the same part of the image in its own resolution."""

__all__ = ["Seen", "look_at", "open_image", "seen_part"]

import math
import os
from dataclasses import dataclass

from PIL import Image, ImageOps
from torch import Tensor

from ..errors import VimlearnError
from ..training.transforms import evaluation_transform


@dataclass(frozen=True)
class Seen:
    """pixels: what goes into the network, (3, H, W). image: the same part of the image, in its own resolution. notice:
    how the image was changed, in words; None where it was not.
    """

    pixels: Tensor
    image: Image.Image
    notice: str | None


def open_image(path: str | os.PathLike) -> Image.Image:
    """Return an image file in RGB, upright as its camera says. Raises VimlearnError where it is none."""
    if os.path.isdir(path):
        raise VimlearnError(f"{path} is a folder; expected image files, such as {os.path.join(path, '*.jpg')}")
    if not os.path.exists(path):
        raise VimlearnError(f"there is no file {path}; expected an image")
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # whatever a decoder stumbles over in bytes that a stranger wrote
        why = " ".join(str(error).split())[:150]
        raise VimlearnError(f"{path} is no image that can be read ({why}); expected JPEG, PNG or another format of "
                            "Pillow") from error


def look_at(image: Image.Image, img_size: tuple[int, int], crop_pct: float, mismatch: str = "resize") -> Seen:
    """Return what a network for images of (H, W) sees of an image.

    Arguments
        crop_pct: the image is resized so that it covers img_size / crop_pct, and its middle is cut out.
        mismatch: "resize", that is the evaluation transform; "error" takes only images of (H, W), as they are.

    Raises VimlearnError where it is "error" and the size differs.
    """
    height, width = img_size
    if mismatch == "error":
        if image.size != (width, height):
            raise VimlearnError(f"the image is {image.width} x {image.height} pixels and the network is built for "
                                f"{width} x {height}; resize it, or allow it with --size-mismatch resize")
        return Seen(evaluation_transform(img_size, 1.0)(image), image, None)
    box = seen_part(image.size, img_size, crop_pct)
    shown = tuple(max(1, round(end - start)) for start, end in (box[::2], box[1::2]))
    part = image.resize(shown, Image.Resampling.BICUBIC, box=box)
    notice = None
    if image.size != (width, height) or shown != (width, height):
        notice = (f"the image is {image.width} x {image.height} pixels; its middle, {shown[0]} x {shown[1]}, was "
                  f"resized to {width} x {height}")
    return Seen(evaluation_transform(img_size, crop_pct)(image), part, notice)


def seen_part(size: tuple[int, int], img_size: tuple[int, int], crop_pct: float) -> tuple[float, float, float, float]:
    """Return which part of an image of (width, height) the evaluation transform shows a network for images of (H, W).

    Left, top, right, bottom in pixels of the image.
    """
    shown = img_size[::-1]
    targets = [int(side / crop_pct) for side in shown]
    # Pixels of the image a pixel of the resized one, which just covers the targets.
    ratio = min(side / target for side, target in zip(size, targets, strict=True))
    # As torchvision rounds the sides for a square, and timm for others; the cut begins at the nearest pixel.
    whole = math.floor if targets[0] == targets[1] else round
    starts = [max(0, round((whole(side / ratio + 1e-9) - target) / 2)) * ratio
              for side, target in zip(size, shown, strict=True)]
    ends = [min(side, start + target * ratio) for side, start, target in zip(size, starts, shown, strict=True)]
    return starts[0], starts[1], ends[0], ends[1]
