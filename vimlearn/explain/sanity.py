"""Does a map depend on what the network has learnt? Replace its weights by fresh ones, and see whether the map changes.

The head goes first, then the blocks from the last to the first, then the embedding. A map that is nearly the same for a
network that has learnt nothing tells of the image or of the architecture, whatever it looks like.
Source: Adebayo et al., "Sanity checks for saliency maps" (2018).
"""

__all__ = ["LIMIT", "cascade", "is_insensitive", "rank_correlation"]

from collections.abc import Iterator

import torch
from torch import Tensor

from ..vim import VisionMamba
from .records import check_layers

# A mean correlation above this, with no weight left, is called insensitive.
LIMIT = 0.5


def cascade(model: VisionMamba, seed: int = 0) -> Iterator[tuple[str, VisionMamba]]:
    """Yield (what has been replaced so far, a network) while fresh weights take the place of the trained ones.

    The stages are "head", then "layer N" for each block from the last, then "all". The model stays as it is, and every
    stage is a network of its own in evaluation mode. Fresh weights are those of a new network, drawn from the seed.
    """
    check_layers(model, None)
    fresh, state = _fresh(model, seed).state_dict(), dict(model.state_dict())
    stages = {"head": ("head.",)} | {f"layer {i}": (f"layers.{i}.",) for i in reversed(range(len(model.layers)))}
    for name, prefixes in (stages | {"all": ("",)}).items():
        state |= {key: value for key, value in fresh.items() if key.startswith(prefixes)}
        changed = _fresh(model, seed)
        changed.load_state_dict(state)
        yield name, changed


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return Spearman's rank correlation of each pair of maps, (b,), -1 to 1; 0 where all cells of one are equal."""
    a, b = (_centred_ranks(maps.flatten(1)) for maps in (first, second))
    scale = (a.square().sum(1) * b.square().sum(1)).sqrt()
    return torch.where(scale > 0, (a * b).sum(1) / scale.clamp(min=1e-30), torch.zeros_like(scale))


def is_insensitive(correlations: Tensor) -> bool:
    """Return whether a method is to be distrusted: correlations (b,) of its maps before and after "all"."""
    return correlations.mean().item() > LIMIT


def _fresh(model: VisionMamba, seed: int) -> VisionMamba:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionMamba(**model.config).to(model.pos_embed).eval()


def _centred_ranks(flat: Tensor) -> Tensor:
    """Return the rank of each number minus the mean rank, (b, cells), float64; equal numbers share their mean rank."""
    below = (flat[:, :, None] > flat[:, None]).sum(2).double()
    equal = (flat[:, :, None] == flat[:, None]).sum(2).double()
    ranks = below + (equal - 1) / 2
    return ranks - ranks.mean(1, keepdim=True)
