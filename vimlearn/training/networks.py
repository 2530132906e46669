"""The networks that a run can train, and their files."""

__all__ = ["NETWORKS", "build", "load_network", "save_weights"]

import json
import os
from collections.abc import Callable
from pathlib import Path

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ..checkpoint import load_checkpoint, load_model, read_checkpoint, read_notes, save_checkpoint
from ..errors import VimlearnError, nearest
from ..files import write_safetensors
from ..vim import VisionMamba
from .options import Network

DEIT_KEY = "deit_config"
# Which network it is, and what it starts from.
NOT_OF_THE_NETWORK = ("model", "weights", "position_rule")


def _vim(network: Network, **shapes) -> VisionMamba:
    settings = {name: value for name, value in vars(network).items() if name not in NOT_OF_THE_NETWORK}
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
        load_checkpoint(model, network.weights, reset_head=True, position_rule=network.position_rule)
    return model


def save_weights(model: nn.Module, path: str | os.PathLike, notes: dict[str, str]) -> Path:
    """Write the weights and settings of a network as safetensors, with `notes`.

    Raises VimlearnError where it cannot be written.
    """
    if isinstance(model, VisionMamba):
        return save_checkpoint(model, path, notes)
    strings = {"format": "pt", "network": json.dumps("deit"), DEIT_KEY: json.dumps(_deit_settings(model)), **notes}
    return write_safetensors(path, model.state_dict(), strings)


def load_network(path: str | os.PathLike, img_size: int | None = None) -> nn.Module:
    """Return the network in a file that `save_weights` wrote, in evaluation mode.

    Arguments: img_size, side of the images in pixels, where it is not that of the file; positions are resized.
    Raises VimlearnError where the file is damaged, or holds no settings of a network.
    """
    notes = read_notes(path)
    if notes.get("network") != json.dumps("deit"):
        return load_model(path, **({} if img_size is None else {"img_size": (img_size, img_size)}))
    state, _ = read_checkpoint(path)
    try:
        model = VisionTransformer(**json.loads(notes[DEIT_KEY]))
        model.load_state_dict(state)
    except KeyError as error:
        raise VimlearnError(f"{path} holds a DeiT without its settings, from an earlier version; train it again") \
            from error
    except (RuntimeError, TypeError, ValueError, AssertionError, RecursionError) as error:
        raise VimlearnError(f"{path}: weights and settings do not fit: {str(error).splitlines()[0]}") from error
    if img_size is not None:
        model.set_input_size(img_size=(img_size, img_size))
    return model.eval()


def _deit_settings(model: VisionTransformer) -> dict:
    patches = model.patch_embed
    return {"img_size": patches.img_size, "patch_size": patches.patch_size, "in_chans": patches.proj.in_channels,
            "num_classes": model.num_classes, "embed_dim": model.embed_dim, "depth": len(model.blocks),
            "num_heads": model.blocks[0].attn.num_heads}
