"""How far a token reaches: the field of pixels that one output depends on, and the decay of the states.

Both are asked of the network as it is; nothing is assumed about its layers.
"""

__all__ = ["reach", "receptive_field", "receptive_fields"]

import torch
from torch import Tensor

from ..vim import VisionMamba
from .attention import pick
from .hidden import steps
from .records import Query, check_layers, query_token, record


def receptive_field(model: VisionMamba, images: Tensor, layer: int = -1, token: Query = None) -> Tensor:
    """Return how strongly each pixel moves one token behind a layer, (H, W), scaled to sum 1: the effective receptive
    field, the mean over the images.

    Arguments as `receptive_fields`. Source: Luo, Li, Urtasun and Zemel 2016.
    """
    field = receptive_fields(model, images, layer, token).mean(0)
    return field / field.sum()


def receptive_fields(model: VisionMamba, images: Tensor, layer: int = -1, token: Query = None) -> Tensor:
    """Return how strongly each pixel of each image moves one token behind a layer, (b, H, W).

    It is the absolute gradient of the sum of the token's channels, each with a random sign, summed over colours.

    Arguments: images (b, in_chans, H, W); layer, number of the block; token, its number or (row, column) of its
    patch, None for the patch in the middle.
    """
    (layer,) = check_layers(model, [layer])
    rows, columns = model.patch_embed.grid_size
    token = query_token(model, (rows // 2, columns // 2) if token is None else token)
    with torch.enable_grad():
        leaf = images.detach().clone().requires_grad_()
        h, residual = model.embed(leaf), None
        for block in model.layers[:layer + 1]:
            h, residual = block(h, residual)
        signs = torch.randint(0, 2, (1, h.shape[-1]), generator=torch.Generator().manual_seed(0)).to(h) * 2 - 1
        (grad,) = torch.autograd.grad(((residual + h)[:, token] * signs).sum(), leaf)
    return grad.abs().sum(1)


def reach(model: VisionMamba, images: Tensor, layers=None) -> Tensor:
    """Return over how many tokens a state falls to 1/e, (layers, directions, e): the mean over images and the slowest
    of the n states of each channel.

    A state falls by exp(d A) a token, so it reaches 1 / (mean step times the smallest -A) tokens. Values beyond the
    length of the sequence mean that it hardly forgets.
    """
    return torch.stack([torch.stack([1 / (steps(scan).mean((0, 1)) * -scan.A.amax(1)) for scan in pick(one, "both")])
                        for one in record(model, images, layers)])
