"""Does a map name what the network goes by? Take away what it calls important, and see what becomes of the answer.

The cells of a map cover the image like tiles. Deletion replaces the most important tiles first: the probability of the
class should fall at once, so a small area under its curve is good. Insertion puts the most important tiles first into
an empty image: a large area is good. Both ask the network alone, not people.

    map of tiles, high to low     ->  order, ties broken at random
    image, tiles replaced so far  ->  probability of the class
    area under that curve         ->  one number an image, 0 to 1

Source: Samek et al. 2017, Petsiuk, Das and Saenko 2018. A picture with replaced tiles is one the network was not
trained on, so compare areas with those of a random map and never read them alone.
"""

__all__ = ["area", "deletion_curve", "insertion_curve", "ranking", "to_cells"]

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from ..errors import VimlearnError

FILLS = ("mean", "blur")
# Pictures that the network is shown at a time.
SHOWN = 256


def deletion_curve(model: nn.Module, images: Tensor, maps: Tensor, target: Tensor, *, steps: int = 8,
                   fill: str = "mean") -> Tensor:
    """Return the probability of the target while tiles are replaced, the most important first, (b, steps + 1).

    Arguments
        model: from images to logits, (b, classes); used in the mode that it is in.
        images: (b, in_chans, H, W), normalised.
        maps: (b, rows, columns), any numbers; the highest is the most important. `to_cells` makes them of pixels.
        target: the class that is asked about, (b,).
        steps: in how many steps the tiles go, at most their count; the curve begins with the whole image.
        fill: what replaces a tile: "mean", the number 0, which is the mean colour of normalised images; or "blur", the
            image through a Gaussian of an eighth of its side.

    Raises VimlearnError where these do not fit together.
    """
    return _curve(model, images, maps, target, steps, fill)


def insertion_curve(model: nn.Module, images: Tensor, maps: Tensor, target: Tensor, *, steps: int = 8,
                    fill: str = "mean") -> Tensor:
    """Return the probability of the target while tiles are put in, the most important first, (b, steps + 1).

    Arguments as for `deletion_curve`. It shows the same pictures as a deletion that takes the least important first.
    """
    return _curve(model, images, -maps, target, steps, fill).flip(1)


def area(curve: Tensor) -> Tensor:
    """Return the area under each curve, (b,), by trapezoids over a share of tiles from 0 to 1."""
    return torch.trapezoid(curve, dx=1 / (curve.shape[-1] - 1))


def ranking(maps: Tensor, seed: int = 0) -> Tensor:
    """Return the numbers of the cells from the highest to the lowest, (b, cells), equal ones in random order.

    Without that, the many zeros of a map would go from the top left to the bottom right. Raises VimlearnError where a
    number is not finite.
    """
    flat = maps.flatten(1)
    if not flat.isfinite().all():
        raise VimlearnError("a map holds numbers that are not finite; expected finite ones alone")
    shuffled = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(seed)).to(flat.device)
    return shuffled[flat[:, shuffled].sort(dim=1, descending=True, stable=True).indices]


def to_cells(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the mean of (b, H, W) over each cell of a grid, (b, *grid); a map that has that size stays as it is."""
    return maps if maps.shape[1:] == grid else F.adaptive_avg_pool2d(maps[:, None], grid)[:, 0]


@torch.no_grad()
def _curve(model, images, maps, target, steps, fill) -> Tensor:
    _check(images, maps, target, steps, fill)
    cells = maps[0].numel()
    # The step in which each cell goes: (b, cells), to be compared with each step of the curve.
    place = ranking(maps).argsort(1)
    cuts = torch.linspace(0, cells, steps + 1, device=maps.device).round()
    stays = (place[:, None] >= cuts[:, None]).unflatten(2, maps.shape[1:])
    filled = torch.zeros_like(images) if fill == "mean" else _blurred(images)
    found = []
    for some in torch.arange(len(images)).split(max(1, SHOWN // (steps + 1))):
        mask = F.interpolate(stays[some].to(images.dtype), images.shape[2:])[:, :, None]
        # (b, steps + 1, in_chans, H, W)
        shown = filled[some, None] + mask * (images[some] - filled[some])[:, None]
        chances = model(shown.flatten(0, 1)).softmax(1).unflatten(0, shown.shape[:2])
        found.append(chances.gather(2, target[some, None, None].expand(-1, steps + 1, 1))[..., 0])
    return torch.cat(found)


def _blurred(images: Tensor) -> Tensor:
    side = min(images.shape[2:])
    # An odd width, as wide as mirrored edges allow.
    width = (side - 1) // 2 * 2 - 1
    return gaussian_blur(images, [width, width], [side / 8, side / 8])


def _check(images: Tensor, maps: Tensor, target: Tensor, steps: int, fill: str) -> None:
    b = len(images)
    if maps.dim() != 3 or len(maps) != b:
        raise VimlearnError(f"maps have shape {tuple(maps.shape)}; expected ({b}, rows, columns), one for each image")
    if any(side % cells for side, cells in zip(images.shape[2:], maps.shape[1:], strict=True)):
        raise VimlearnError(f"images of {tuple(images.shape[2:])} pixels cannot be cut into {tuple(maps.shape[1:])} "
                            "tiles; expected a divisor: make the maps with to_cells")
    if target.shape != (b,):
        raise VimlearnError(f"target has shape {tuple(target.shape)}; expected ({b},), a class for each image")
    if not 1 <= steps <= maps[0].numel():
        raise VimlearnError(f"steps is {steps}; expected 1 to {maps[0].numel()}, the count of tiles")
    if fill not in FILLS:
        raise VimlearnError(f"unknown fill {fill!r}; expected one of {', '.join(FILLS)}")
