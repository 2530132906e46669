"""Maps from the matrices that the scans hide: rows, rollout over layers, gradient times matrix.

Every function returns one number a token, (b, l); `on_grid` puts them where the patches are.
"""

__all__ = ["attribution", "delta_maps", "delta_maps_of_layers", "hidden_attention", "hidden_attentions", "on_grid",
           "pick", "rollout"]

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import VimlearnError
from ..kernels.layout import Scan
from ..vim import VisionMamba
from .hidden import hidden_row, mean_hidden_matrix, steps
from .records import Query, Record, check_layers, query_token, record

DIRECTIONS = ("both", "forward", "backward")


def hidden_attention(model: VisionMamba, images: Tensor, layer: int = -1, query: Query = None,
                     direction: str = "both") -> Tensor:
    """Return how much each token adds to the output of one token in one layer, (b, l): the mean over the channels.

    Arguments
        images: (b, in_chans, H, W).
        layer: number of the block from 0; negative from the end.
        query: number of the output token, or (row, column) of its patch; None and "class" are the class token.
        direction: "forward", "backward", or "both" for their sum. The query itself is in both directions.

    The skip D is left out: it adds to the query alone. Values may be negative. Memory is linear in the tokens.
    """
    return hidden_attentions(model, images, [layer], query, direction)[0]


def hidden_attentions(model: VisionMamba, images: Tensor, layers: Sequence[int] | None = None,
                      query: Query = None, direction: str = "both") -> Tensor:
    """Return `hidden_attention` for several layers at once, None being all, (layers, b, l)."""
    token = query_token(model, query)
    return torch.stack([sum(hidden_row(scan, token).mean(-1) for scan in pick(one, direction))
                        for one in record(model, images, layers)])


def delta_maps(model: VisionMamba, images: Tensor, layer: int = -1, direction: str = "both") -> Tensor:
    """Return how strongly each token is written into the states of one layer, (b, l): its step, the mean over channels.

    A step near 0 leaves the states as they are; a long one makes them forget and take in the token. With "both", the
    mean over the directions.
    """
    return delta_maps_of_layers(model, images, [layer], direction)[0]


def delta_maps_of_layers(model: VisionMamba, images: Tensor, layers: Sequence[int] | None = None,
                         direction: str = "both") -> Tensor:
    """Return `delta_maps` for several layers at once, None being all, (layers, b, l)."""
    return torch.stack([torch.stack([steps(scan).mean(-1) for scan in pick(one, direction)]).mean(0)
                        for one in record(model, images, layers)])


def rollout(model: VisionMamba, images: Tensor, query: Query = None, first_layer: int = 0) -> Tensor:
    """Return how the tokens flow through all layers into the query, (b, l): attention rollout of the hidden matrices.

    The matrix of a layer is the mean over channels, both directions, negative parts cut off, rows scaled to sum 1; half
    of each token goes on unchanged (Abnar and Zuidema 2020). Of `first_layer` and the layers behind it.
    """
    return _roll(model, record(model, images, _from(model, first_layer)), query, _plain)


def attribution(model: VisionMamba, images: Tensor, target: Tensor | int | str = "top", query: Query = None,
                first_layer: int = 0) -> Tensor:
    """Return what speaks for a class, (b, l): rollout of gradient times hidden matrix, negative parts cut off.

    A layer's matrix is the mean over channels of M[t, j] u[j] times the gradient of the class's logit with respect to
    y[t]: what token j adds to the logit, to first order, through this scan (Chefer, Gur and Wolf 2021, for the matrices
    of Ali, Zimerman and Wolf 2024; their code multiplies by gradients scaled to 0 ... 1 for each token instead).
    """
    return _roll(model, record(model, images, _from(model, first_layer), target), query, _with_gradient)


def on_grid(model: VisionMamba, tokens: Tensor) -> Tensor:
    """Return (..., rows, columns) of patches for one number a token, (..., l); the class token is left out."""
    if tokens.shape[-1] != model.num_tokens:
        raise VimlearnError(f"there are {tokens.shape[-1]} numbers; expected one for each of {model.num_tokens} tokens")
    flat = tokens.reshape(-1, tokens.shape[-1], 1)
    return model.patch_tokens(flat).reshape(*tokens.shape[:-1], *model.patch_embed.grid_size)


def pick(one: Record, direction: str) -> tuple[Scan, ...]:
    """Return the scans of a direction, or of both."""
    if direction not in DIRECTIONS:
        raise VimlearnError(f"unknown direction {direction!r}; expected one of {', '.join(DIRECTIONS)}")
    if direction == "both":
        return one.scans
    number = DIRECTIONS.index(direction) - 1
    if number == len(one.scans):
        raise VimlearnError("the model scans forward only; expected direction='forward' or 'both'")
    return (one.scans[number],)


def _from(model: VisionMamba, first_layer: int) -> list[int]:
    (first,) = check_layers(model, [first_layer])
    return list(range(first, len(model.layers)))


def _plain(one: Record) -> Tensor:
    mean = sum(mean_hidden_matrix(scan) for scan in one.scans).clamp(min=0)
    return mean / mean.sum(-1, keepdim=True).clamp(min=torch.finfo(mean.dtype).tiny)


def _with_gradient(one: Record) -> Tensor:
    return sum(mean_hidden_matrix(scan, one.grad_y, scan.u) for scan in one.scans).clamp(min=0)


def _roll(model: VisionMamba, records: list[Record], query: Query, matrix) -> Tensor:
    """Return the row of the query in the product over the layers of 1 + matrix, (b, l)."""
    b, l = records[0].z.shape[:2]
    row = torch.zeros(b, 1, l, dtype=torch.float64, device=records[0].z.device)
    row[:, :, query_token(model, query)] = 1
    for one in reversed(records):
        row = row + row @ matrix(one).to(row.dtype)
    return row[:, 0]
