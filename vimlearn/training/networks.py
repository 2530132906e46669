"""The networks that a run can train, and their files."""

__all__ = ["NETWORKS", "build", "save_weights"]

import json
import os
from collections.abc import Callable
from pathlib import Path

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ..checkpoint import load_checkpoint, save_checkpoint
from ..errors import VimlearnError, nearest
from ..files import write_safetensors
from ..vim import VisionMamba
from .options import Network


def _vim(network: Network, **shapes) -> VisionMamba:
    settings = {name: value for name, value in vars(network).items() if name not in ("model", "weights")}
    return VisionMamba(**shapes, **settings)


def _deit(network: Network, **shapes) -> VisionTransformer:
    # DeiT's heads have 64 channels; a narrow network needs smaller ones to have more than two.
    channels = 64 if network.embed_dim >= 192 else 32
    if network.embed_dim % channels:
        raise VimlearnError(f"embed_dim is {network.embed_dim}; expected a multiple of {channels} for deit")
    return VisionTransformer(**shapes, patch_size=network.patch_size, embed_dim=network.embed_dim,
                             depth=network.depth, num_heads=network.embed_dim // channels,
                             drop_path_rate=network.drop_path_rate)


NETWORKS: dict[str, Callable[..., nn.Module]] = {"vim": _vim, "deit": _deit}


def build(network: Network, img_size: tuple[int, int], in_chans: int, num_classes: int) -> nn.Module:
    """Return the network for images (in_chans, *img_size), with fresh weights or those that `network.weights` names.

    Raises VimlearnError on an unknown name, and on settings or weights that do not fit.
    """
    if network.model not in NETWORKS:
        raise VimlearnError(f"unknown model {network.model!r}{nearest(network.model, NETWORKS)}; "
                            f"expected one of {', '.join(NETWORKS)}")
    model = NETWORKS[network.model](network, img_size=img_size, in_chans=in_chans, num_classes=num_classes)
    if network.weights is not None:
        load_checkpoint(model, network.weights, reset_head=True)
    return model


def save_weights(model: nn.Module, path: str | os.PathLike, notes: dict[str, str]) -> Path:
    """Write the weights of a network as safetensors with `notes`. Raises VimlearnError where it cannot be written."""
    if isinstance(model, VisionMamba):
        return save_checkpoint(model, path, notes)
    return write_safetensors(path, model.state_dict(), {"format": "pt", "network": json.dumps("deit"), **notes})
