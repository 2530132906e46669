"""Does a map lie on the object? Three numbers an image, against a mask that is known.

A map may lie beside the object and still be true to a network that goes by the ground. So these measure agreement with
people's idea of the object, and faithfulness.py measures the rest.

A cell of the map counts by the share of it that the object covers. So a map drawn at random scores the share of the
image that the object covers, in pointing and in energy.
"""

__all__ = ["energy", "intersection_over_union", "pointing"]

import torch
from torch import Tensor

from ..errors import VimlearnError
from .faithfulness import ranking, to_cells


def pointing(maps: Tensor, masks: Tensor) -> Tensor:
    """Return how much of the highest cell is object, (b,), 0 to 1: the pointing game, for cells instead of pixels.

    Arguments: maps (b, rows, columns), masks (b, H, W), bool. Of equal cells one is taken at random.
    Source: Zhang et al. 2016. Raises VimlearnError where a mask is empty, or does not belong to a map.
    """
    return _shares(maps, masks).gather(1, ranking(maps)[:, :1])[:, 0]


def energy(maps: Tensor, masks: Tensor) -> Tensor:
    """Return how much of the positive part of the map lies on the object, (b,), 0 to 1. Source: Wang et al. 2020.

    Of a map without a positive part it is the share that the object covers, as of an even one.
    """
    shares, positive = _shares(maps, masks), maps.flatten(1).clamp(min=0)
    empty = positive.sum(1, keepdim=True) == 0
    positive = torch.where(empty, torch.ones_like(positive), positive)
    return (positive * shares).sum(1) / positive.sum(1)


def intersection_over_union(maps: Tensor, masks: Tensor) -> Tensor:
    """Return the intersection over union of the object and as many of the highest cells as it covers, (b,), 0 to 1.

    Cells are whole and objects are not, so even the best map stays below 1.
    """
    shares = _shares(maps, masks)
    covered = shares.sum(1)
    count = covered.round().clamp(min=1)
    best = shares.gather(1, ranking(maps))
    taken = torch.arange(best.shape[1], device=best.device) < count[:, None]
    both = (best * taken).sum(1)
    return both / (count + covered - both)


def _shares(maps: Tensor, masks: Tensor) -> Tensor:
    """Return the share of each cell that the object covers, (b, cells)."""
    if maps.dim() != 3 or masks.dim() != 3 or len(maps) != len(masks):
        raise VimlearnError(f"maps have shape {tuple(maps.shape)} and masks {tuple(masks.shape)}; expected "
                            "(b, rows, columns) and (b, H, W)")
    empty = (~masks.bool().flatten(1).any(1)).nonzero()
    if len(empty):
        raise VimlearnError(f"mask {empty[0].item()} is empty; expected at least one pixel of the object")
    return to_cells(masks.to(maps.dtype), tuple(maps.shape[1:])).flatten(1)
