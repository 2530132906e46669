"""What a look inside costs: maps of a Vim, with the forward pass as yardstick."""

__all__ = ["measure"]

import timm
import torch

from ..explain import attribution, hidden_attentions, rollout
from .contest import Contestant, contest

NETWORK = "vim_tiny_patch16_224"


def measure(sizes: list[int], rounds: int) -> list[dict]:
    """Time maps of all layers of Vim-Ti for one query and one image of each size, and return rows as `contest` does.

    Hidden attention at every size, and at the first one the two that need the whole matrices as well.

    Arguments: sizes: sides of the image, pixels; rounds: turns of each contestant.
    """
    rows = []
    for size in sizes:
        contestants = _contestants(size) if size == sizes[0] else _contestants(size)[:2]
        rows += contest(f"all layers of Vim-Ti, one query, 1 image of {size} pixels", contestants, "forward", rounds)
    return rows


def _contestants(size: int) -> list[Contestant]:
    torch.manual_seed(0)
    model = timm.create_model(NETWORK, img_size=size).eval()
    image = torch.randn(1, 3, size, size)

    def forward():
        with torch.no_grad():
            model(image)

    return [Contestant("forward", forward), Contestant("hidden attention", lambda: hidden_attentions(model, image)),
            Contestant("rollout", lambda: rollout(model, image)),
            Contestant("attribution", lambda: attribution(model, image))]
