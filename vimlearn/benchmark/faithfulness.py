"""Every method of vimlearn.explain against a random map, a spot in the centre and the input gradient.

One row a method and measure: the mean over the images, and between which values it would lie for other images of that
kind (bootstrap, 95 %). `less_gradient` is the mean difference to the input gradient on the same images.
"""

__all__ = ["all_maps", "curves", "fresh_weights", "overlaps", "row"]

from collections.abc import Iterator

import torch
from torch import Tensor

from ..explain import METHODS, explain, to_cells
from ..explain.faithfulness import FILLS, area, deletion_curve, insertion_curve
from ..explain.overlap import energy, intersection_over_union, pointing
from ..explain.sanity import cascade, rank_correlation
from ..vim import VisionMamba
from .masked_images import MaskedImages

GRADIENT, RANDOM, CENTRE = "input-gradient", "random", "centre"
# Images of which maps are made at a time, and draws of the bootstrap.
PART, DRAWS = 16, 2000


def all_maps(model: VisionMamba, images: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Return the maps of all methods by name, each (b, rows, columns).

    A method of layers has an entry for each one, counted from 0; the receptive field, of the class token, is there for
    the last alone. A signed map is there as it is, and without its sign (of the last layer).
    """
    found = {}
    for name, method in METHODS.items():
        given = {"target": target} if "target" in method.options else {}
        if "query" in method.options:
            given["query"] = "class"
        if "layer" in method.options and name != "receptive-field":
            maps = _in_parts(model, images, name, {**given, "layer": "all"}, dim=1)
            found |= {f"{name}, layer {i}": one for i, one in enumerate(maps)}
        else:
            found[name] = _in_parts(model, images, name, given, dim=0)
    signed = [name for name, method in METHODS.items() if method.signed]
    names = [name if name in found else f"{name}, layer {len(model.layers) - 1}" for name in signed]
    found |= {f"{name}, absolute": found[name].abs() for name in names}
    return found | _guesses(images, model.patch_embed.grid_size)


def curves(model: VisionMamba, data: MaskedImages, maps: Tensor, target: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield (measure, areas (b,)) of deletion and insertion with each fill."""
    for fill in FILLS:
        for name, curve in (("deletion", deletion_curve), ("insertion", insertion_curve)):
            yield f"{name}, {fill}", area(curve(model, data.images, maps, target, fill=fill))


def overlaps(data: MaskedImages, maps: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield (measure, values (b,)) of the agreement with the masks."""
    for name, measure in (("pointing", pointing), ("energy", energy), ("iou", intersection_over_union)):
        yield name, measure(maps, data.masks)


def fresh_weights(model: VisionMamba, images: Tensor, target: Tensor) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (method, measure, correlations (b,)) with the maps of the same images after weights were replaced."""
    before = all_maps(model, images, target)
    for stage, changed in cascade(model):
        for name, maps in all_maps(changed, images, target).items():
            yield name, f"fresh {stage}", rank_correlation(before[name], maps)


def row(values: Tensor, gradient: Tensor) -> dict[str, str]:
    """Return the mean of values, (b,), its interval, and the same of their difference to those of the gradient."""
    found = {"images": str(len(values))}
    for name, these in (("mean", values), ("less_gradient", values - gradient)):
        low, high = _interval(these)
        found |= {name: f"{these.mean():.4f}", f"{name}_low": f"{low:.4f}", f"{name}_high": f"{high:.4f}"}
    return found


def _in_parts(model: VisionMamba, images: Tensor, name: str, given: dict, dim: int) -> Tensor:
    """Make the maps a few images at a time, as the mean over the cells of the grid."""
    found = []
    for some in torch.arange(len(images)).split(PART):
        target = {"target": given["target"][some]} if "target" in given else {}
        maps = explain(model, images[some], name, **{**given, **target}).double()
        cells = to_cells(maps.flatten(0, -3), model.patch_embed.grid_size)
        found.append(cells.unflatten(0, maps.shape[:-2]))
    return torch.cat(found, dim)


def _guesses(images: Tensor, grid: tuple[int, int]) -> dict[str, Tensor]:
    """Return maps that know nothing of the network: noise, and a Gaussian spot in the centre."""
    noise = torch.rand(len(images), *grid, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, x = (torch.linspace(-1, 1, side, dtype=torch.float64) for side in grid)
    spot = torch.exp(-2 * (y[:, None] ** 2 + x**2))
    return {RANDOM: noise, CENTRE: spot.expand(len(images), *grid)}


def _interval(values: Tensor) -> tuple[float, float]:
    draws = torch.randint(len(values), (DRAWS, len(values)), generator=torch.Generator().manual_seed(0))
    low, high = torch.quantile(values.double()[draws].mean(1), torch.tensor([0.025, 0.975], dtype=torch.float64))
    return low.item(), high.item()
