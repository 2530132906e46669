"""Weights in and out of files, without ever running what a file says.

Read: safetensors, and the published `.pth` form (a dict with `model`, `model_ema`, `optimizer`, `args`). The latter
is a pickle: it is read by PyTorch's restricted reader, which builds tensors and plain containers, and of Python's
classes only `argparse.Namespace`. Written: safetensors, with the network's settings beside the weights, because some
of them (where the class token stands, whether directions are halved) leave no trace in a state dict.
"""

__all__ = ["LoadReport", "class_names", "load_checkpoint", "load_model", "save_checkpoint"]

import argparse
import json
import math
import os
import pickle
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .classes import stored_names
from .download import fetch
from .errors import VimlearnError
from .files import write_safetensors
from .position import class_token_index, resize_position_embedding
from .vim import VisionMamba

CONFIG_KEY = "vimlearn_config"
# Settings that change the output and not the shapes.
SILENT_SETTINGS = ("halve_directions", "norm_eps")


@dataclass
class LoadReport:
    """What `load_checkpoint` did: keys copied as they were, resized, left at their fresh values, or not needed."""

    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    reset: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)


def load_checkpoint(model: VisionMamba, source: str | os.PathLike, *, weights: str = "model", reset_head: bool = False,
                    position_rule: str = "grid", source_grid: tuple[int, int] | None = None,
                    source_class_token: str = "middle", sha256: str | None = None) -> LoadReport:
    """Load weights into `model`, fitting the position embedding to its image size.

    Arguments
        model: a VisionMamba. It is changed only if everything fits.
        source: a file, a URL, a hub id ("hub:owner/name" or "hub:owner/name/file"), or a network that comes along
            ("shipped:cifar10").
        weights: "model", or "ema" for the averaged copy of a training checkpoint.
        reset_head: leave the head fresh where the number of classes differs, instead of raising.
        position_rule: "grid" or "published"; see `vimlearn.resize_position_embedding`.
        source_grid: (rows, columns) of patches of the checkpoint, where it is neither square nor that of the model.
        source_class_token: where the checkpoint's class token stands, if the file does not say so.
        sha256: what the file must hash to (hexadecimal); the published Vim-Ti files are checked without it.

    Returns a LoadReport. Raises VimlearnError on a file that is missing, damaged, or holds anything but weights, and
    on keys that are missing, unexpected or misshapen, which it names.
    """
    if not isinstance(model, VisionMamba) or model.pos_embed.is_meta:
        kind = "on the meta device" if isinstance(model, VisionMamba) else f"a {type(model).__name__}"
        raise VimlearnError(f"the model is {kind}; expected a vimlearn.VisionMamba with weights to replace")
    state, config = read_checkpoint(fetch(source, sha256), weights)
    class_token = config.get("class_token", source_class_token)
    _compare_settings(model.config, {"class_token": class_token if "cls_token" in state else None, **config})
    report = LoadReport()
    state = _fit_head(model, state, reset_head, report)
    grid = source_grid or _grid_of(config)
    state = _fit_positions(model, state, grid, class_token, position_rule, report)
    _check_keys(model, state, report)
    model.load_state_dict(state, strict=False)
    report.loaded = [key for key in state if key not in report.resized]
    return report


def load_model(source: str | os.PathLike, **changes) -> VisionMamba:
    """Build the network that `save_checkpoint` stored and load its weights; return it in evaluation mode.

    `source` is as for `load_checkpoint`. `changes` override stored settings, but not those that the weights were
    trained with: class_token, halve_directions, norm_eps.

    Raises VimlearnError where the file holds no settings; then build the network and call `load_checkpoint`.
    """
    path = fetch(source)
    _, config = read_checkpoint(path)
    if not config:
        raise VimlearnError(f"{source} holds weights but no settings; build the network and call load_checkpoint, "
                            "or name it: vimlearn eval --model NAME --weights FILE")
    try:
        model = VisionMamba(**{**config, **changes})
    except TypeError as error:
        raise VimlearnError(f"{source} holds settings that this version does not know: {error}") from error
    load_checkpoint(model, path, reset_head="num_classes" in changes)
    return model.eval()


def class_names(source: str | os.PathLike) -> tuple[str, ...]:
    """Return the names of the classes that a network of `vimlearn train` tells apart, in the order of its logits.

    Arguments: source, as for `load_checkpoint`. Raises VimlearnError where the file names none.
    """
    names = stored_names(read_notes(fetch(source)))
    if not names:
        raise VimlearnError(f"{source} does not name its classes; expected a file as vimlearn train writes it")
    return names


def save_checkpoint(model: VisionMamba, path: str | os.PathLike, metadata: dict[str, str] | None = None) -> Path:
    """Write weights and settings as safetensors, aside first and then renamed, so that a crash loses nothing.

    Arguments: metadata, further strings to store. Returns the path. Raises VimlearnError where it cannot be written.
    """
    # What `torch.compile` returns is a wrapper around the network.
    model = getattr(model, "_orig_mod", model)
    if not isinstance(model, VisionMamba):
        raise VimlearnError(f"the model is a {type(model).__name__}; expected a vimlearn.VisionMamba")
    # The backend belongs to the machine and not to the weights.
    settings = {name: value for name, value in model.config.items() if name != "backend"}
    strings = {"format": "pt", CONFIG_KEY: json.dumps(settings), **{k: str(v) for k, v in (metadata or {}).items()}}
    return write_safetensors(path, model.state_dict(), strings)


def read_checkpoint(path: str | os.PathLike, weights: str = "model") -> tuple[dict[str, Tensor], dict]:
    """Return (state dict, settings) of a file; settings are {} where it holds none. Raises as `load_checkpoint`."""
    if weights not in ("model", "ema"):
        raise VimlearnError(f"unknown weights {weights!r}; expected 'model' or 'ema'")
    if _is_of_torch(path):
        return _state_dict(path, _read_torch(path), weights), {}
    return _read_safetensors(path, weights)


def read_notes(path: str | os.PathLike) -> dict[str, str]:
    """Return what a file says beside its weights: the strings of a safetensors file, the epoch of a published `.pth`.

    Epochs are counted from 1. Raises VimlearnError where the file cannot be read.
    """
    if not _is_of_torch(path):
        return _open_safetensors(path, lambda file: dict(file.metadata() or {}))
    content = _read_torch(path)
    epoch = content.get("epoch") if isinstance(content, dict) else None
    # The published trainer counts from 0.
    return {"epoch": str(epoch + 1)} if isinstance(epoch, int) else {}


def _is_of_torch(path) -> bool:
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise VimlearnError(f"cannot read {path}: {error.strerror}; expected a file of weights") from error
    # Safetensors: eight bytes of length, then JSON. A zip archive or a pickle is PyTorch's.
    return start[8:] != b"{" and start[:1] in (b"P", b"\x80")


def _open_safetensors(path, read):
    try:
        with safe_open(path, framework="pt") as file:
            return read(file)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise VimlearnError(f"{path} is damaged or no file of weights: {error}; "
                            "expected safetensors or a PyTorch .pth") from error


def _read_safetensors(path, weights):
    # safe_open has `keys` and no iteration
    state, config = _open_safetensors(path, lambda file: (
        {key: file.get_tensor(key) for key in file.keys()},
        json.loads((file.metadata() or {}).get(CONFIG_KEY, "{}"))))
    if weights == "ema":
        raise VimlearnError(f"{path} is a safetensors file, which has no averaged copy; expected weights='model'")
    return _plain_tensors(path, state), config if isinstance(config, dict) else {}


def _read_torch(path):
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise VimlearnError(f"{path} is damaged, or holds Python objects besides tensors, and was not opened: "
                            f"{_first_line(error)}") from error
    except Exception as error:  # whatever the reader stumbles over in bytes that a stranger wrote
        raise VimlearnError(f"{path} is damaged or no file of weights: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if "GLOBAL" in line or "global" in line),
                (str(error).splitlines() or [type(error).__name__])[0])[:200]


def _state_dict(path, content, weights: str) -> dict[str, Tensor]:
    """Find the state dict in what a `.pth` file holds: the published training dict, or a state dict itself."""
    if isinstance(content, dict) and ("model" in content or weights == "ema"):
        key = {"model": "model", "ema": "model_ema"}[weights]
        if key not in content:
            raise VimlearnError(f"{path} has no '{key}'; it holds {', '.join(sorted(map(str, content)))[:200]}")
        content = content[key]
    if not isinstance(content, dict) or not content or not all(
            isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()):
        raise VimlearnError(f"{path} holds no state dict; expected names with tensors, or a dict with 'model'")
    for prefix in ("module.", "_orig_mod."):
        # Saved from a data-parallel or a compiled wrapper
        if all(key.startswith(prefix) for key in content):
            content = {key.removeprefix(prefix): value for key, value in content.items()}
    return _plain_tensors(path, content)


def _plain_tensors(path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `state`, or raise VimlearnError where a tensor is not dense, real and floating, with numbers."""
    for key, value in state.items():
        if value.is_nested or value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized \
                or not value.is_floating_point():
            raise VimlearnError(f"{path}: {key} is a tensor of dtype {value.dtype}, layout {value.layout}, on "
                                f"{value.device}; expected plain floating-point numbers")
    return dict(state)


def _compare_settings(own: dict, stored: dict) -> None:
    # Halving means nothing where there is one direction.
    names = [name for name in SILENT_SETTINGS if name != "halve_directions" or own["bidirectional"]]
    if stored.get("class_token") and own["class_token"]:
        names.append("class_token")
    for name in names:
        if name in stored and stored[name] != own[name]:
            hint = ", or pass source_class_token if that is wrong" if name == "class_token" else ""
            raise VimlearnError(f"the checkpoint was made with {name}={stored[name]!r} and the model has "
                                f"{own[name]!r}; build it with {name}={stored[name]!r}{hint}")


def _fit_head(model, state, reset_head, report):
    head = {key for key in state if key.startswith("head.")}
    if isinstance(model.head, nn.Identity):
        report.dropped += sorted(head)
        return {key: value for key, value in state.items() if key not in head}
    weight = state.get("head.weight")
    if weight is None and reset_head:
        report.reset += ["head.bias", "head.weight"]
    if weight is None or weight.dim() != 2 or len(weight) == model.num_classes:
        return state
    if not reset_head:
        raise VimlearnError(f"the checkpoint has {len(weight)} classes and the model {model.num_classes}; build it "
                            f"with num_classes={len(weight)}, or pass reset_head=True to keep the model's fresh head")
    report.reset += sorted(head)
    return {key: value for key, value in state.items() if key not in head}


def _fit_positions(model, state, grid, class_token, rule, report):
    rows, has_class = state.get("pos_embed"), "cls_token" in state
    if rows is None or rows.dim() != 3 or rows.shape[-1] != model.embed_dim:
        # Named by the check of keys
        return state
    patches = rows.shape[1] - has_class
    new_grid = model.patch_embed.grid_size
    grid = _guess_grid(patches, new_grid) if grid is None else tuple(grid)
    if len(grid) != 2 or grid[0] * grid[1] != patches:
        raise VimlearnError(f"source_grid is {grid}; expected (rows, columns) with {patches} patches in all")
    state = dict(state)
    if has_class and model.class_token_mode is None:
        del state["cls_token"]
        report.dropped.append("cls_token")
    if has_class != (model.class_token_mode is not None) or grid != new_grid:
        old_index = class_token_index(class_token, patches) if has_class else None
        state["pos_embed"] = resize_position_embedding(rows, grid, new_grid, old_class_index=old_index,
                                                       new_class_index=model.class_token_index, rule=rule)
        report.resized.append("pos_embed")
    return state


def _guess_grid(patches: int, model_grid: tuple[int, int]) -> tuple[int, int]:
    """Return a square grid if there is one, else the model's if its count fits."""
    side = math.isqrt(max(patches, 0))
    if side * side != patches and patches == model_grid[0] * model_grid[1]:
        return model_grid
    if side * side != patches:
        raise VimlearnError(f"the checkpoint has positions for {patches} patches, which is no square; "
                            "pass source_grid=(rows, columns)")
    return side, side


def _grid_of(config: dict) -> tuple[int, int] | None:
    """Return the grid of patches that stored settings imply."""
    try:
        patch, stride = config["patch_size"], config["stride"] or config["patch_size"]
        height, width = config["img_size"]
        grid = ((height - patch) // stride + 1, (width - patch) // stride + 1)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return grid if all(isinstance(side, int) for side in grid) else None


def _check_keys(model: nn.Module, state: dict[str, Tensor], report: LoadReport) -> None:
    expected = model.state_dict()
    missing = [key for key in expected if key not in state and key not in report.reset]
    unexpected = [key for key in state if key not in expected]
    misshapen = [f"{key} {tuple(state[key].shape)}, expected {tuple(expected[key].shape)}" for key in state
                 if key in expected and state[key].shape != expected[key].shape]
    problems = [f"{len(keys)} {what}: {'; '.join(keys[:6])}{' ...' if len(keys) > 6 else ''}"
                for what, keys in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen)) if keys]
    if problems:
        raise VimlearnError("the checkpoint does not fit the model. " + ". ".join(problems)
                            + ". Build the model with the settings of the checkpoint")
