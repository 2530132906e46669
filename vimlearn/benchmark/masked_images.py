"""Images for a network together with the masks of what is on them: drawn scenes, and single objects out of COCO.

Each comes as the network takes it: cut square, resized, normalised. The mask goes the same way.
"""

__all__ = ["CIFAR10_OF_COCO", "MaskedImages", "coco_objects", "folder_images", "scene_images"]

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..errors import VimlearnError
from ..evaluate import relabelled
from ..scenes import PARTS, draw_scene
from ..sources import open_source
from ..training.transforms import evaluation_transform

# COCO's categories that are classes of CIFAR-10.
CIFAR10_OF_COCO = {"airplane": "airplane", "car": "automobile", "bird": "bird", "cat": "cat", "dog": "dog",
                   "horse": "horse", "boat": "ship", "truck": "truck"}
# Of an object to be cut out: its least longer side in pixels, and how much more than that side is cut.
LEAST_SIDE, MARGIN = 32, 1.25


class MaskedImages(NamedTuple):
    """images (b, 3, H, W), normalised; labels (b,); masks (b, H, W), bool, or None where nobody drew any."""

    images: Tensor
    labels: Tensor
    masks: Tensor | None

    def pick(self, which: Tensor) -> "MaskedImages":
        """Return those that `which`, (b,) bool or numbers, names."""
        return MaskedImages(*(None if part is None else part[which] for part in self))


def scene_images(count: int, size: int) -> MaskedImages:
    """Return the first `count` scenes of the part held out, with the mask of the main object."""
    scenes = [draw_scene(index, seed=PARTS[1][1]) for index in range(count)]
    return _stacked([(scene.picture(), scene.main_mask.numpy(), scene.label) for scene in scenes], size)


def folder_images(path: str, classes: Sequence[str], count: int, size: int) -> MaskedImages:
    """Return `count` held-out images of a folder, spread evenly over its classes, without masks."""
    heldout = relabelled(open_source(path, heldout_only=True).heldout, classes)
    # Images lie in order of their classes.
    chosen = np.linspace(0, len(heldout) - 1, min(count, len(heldout))).round().astype(int)
    return _stacked([(picture, None, label) for picture, label in (heldout[int(i)] for i in chosen)], size)


def coco_objects(root: str, classes: Sequence[str], size: int) -> MaskedImages:
    """Return the objects of COCO that are of one of CIFAR-10's classes, each cut out with some ground around.

    Arguments: root, with annotations/instances_PART.json and the folders PART that they name; classes, of the network.
    Crowds and objects below 32 pixels are left out. Raises VimlearnError where there is nothing of the kind.
    """
    files = sorted((Path(root) / "annotations").glob("instances_*.json"))
    found = [item for file in files for item in _objects(file, classes)]
    if not found:
        raise VimlearnError(f"{root} holds no object of the classes {', '.join(CIFAR10_OF_COCO)}; expected "
                            f"{root}/annotations/instances_PART.json and {root}/PART/IMAGE")
    return _stacked(found, size)


def _objects(file: Path, classes: Sequence[str]) -> Iterator[tuple[Image.Image, np.ndarray, int]]:
    """Yield (picture, mask, label) of each object that a file of annotations names."""
    content = json.loads(file.read_text(encoding="utf-8"))
    names = {category["id"]: CIFAR10_OF_COCO.get(category["name"]) for category in content["categories"]}
    pictures = {image["id"]: image["file_name"] for image in content["images"]}
    folder = file.parents[1] / file.stem.removeprefix("instances_")
    for one in content["annotations"]:
        name = names[one["category_id"]]
        if name is None or one["iscrowd"] or max(one["bbox"][2:]) < LEAST_SIDE:
            continue
        with Image.open(folder / pictures[one["image_id"]]) as image:
            picture = image.convert("RGB")
        mask = Image.new("L", picture.size)
        for outline in one["segmentation"]:
            ImageDraw.Draw(mask).polygon(outline, fill=255)
        corners = _square(one["bbox"], picture.size)
        yield picture.crop(corners), np.asarray(mask.crop(corners)) > 0, classes.index(name)


def _square(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the corners of a square around a box (x, y, width, height), moved into the picture."""
    side = min(round(max(box[2:]) * MARGIN), *size)
    left, top = (round(min(max(start + extent / 2 - side / 2, 0), whole - side))
                 for start, extent, whole in zip(box[:2], box[2:], size, strict=True))
    return left, top, left + side, top + side


def _stacked(items: list[tuple[Image.Image, np.ndarray | None, int]], size: int) -> MaskedImages:
    transform = evaluation_transform(size, 1.0)
    masks = [None if mask is None else _resized(mask, size) for _, mask, _ in items]
    return MaskedImages(torch.stack([transform(picture) for picture, _, _ in items]),
                        torch.tensor([label for _, _, label in items]),
                        None if masks[0] is None else torch.stack(masks))


def _resized(mask: np.ndarray, size: int) -> Tensor:
    """Return the pixels of which at least half is object, (size, size), bool."""
    shares = Image.fromarray(mask.astype(np.uint8) * 255).resize((size, size), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(shares) >= 128)
