"""What one row of a benchmark is about: a model, a size, a batch, a number format, and what is done with them.

Names of contestants are short. `vim-ti` is vim_tiny_patch16_224. DeiT comes twice: `deit-ti-fused` computes attention
in one kernel that never stores the matrix of all pairs, `deit-ti-plain` stores it, as the paper's comparison did.
"""

__all__ = ["MODELS", "PATCH", "Case", "Model", "build", "check", "groups", "label"]

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import torch
from torch import nn

from ..errors import VimlearnError, nearest

PATCH = 16
# The paper's size that is no multiple of the patch: 46 patches a side, and 2 pixels that nobody sees.
UNEVEN = 738
# The smallest input of ResNet-50 that leaves one pixel at its end, and of p6.
SMALLEST = {"resnet-50": 32}
SMALLEST_PYRAMID = 64


class Model(NamedTuple):
    """Its name in timm, its name in print, and for DeiT whether attention is fused."""

    timm: str
    title: str
    fused: bool | None = None


MODELS = {f"vim-{short}": Model(f"vim_{long}_patch16_224", f"Vim-{short.title()}")
          for short, long in (("ti", "tiny"), ("s", "small"), ("b", "base"))}
MODELS |= {f"deit-{short}-{how}": Model(f"deit_{long}_patch16_224", f"DeiT-{short.title()}, {how} attention",
                                        how == "fused")
           for short, long in (("ti", "tiny"), ("s", "small"), ("b", "base")) for how in ("fused", "plain")}
MODELS["resnet-50"] = Model("resnet50", "ResNet-50")


@dataclass(frozen=True)
class Case:
    """One measurement.

    model: a name of MODELS. size: side of the image, pixels. batch_size: images at a time. dtype: name of a torch
    dtype. mode: "inference" or "training", which is forward, backward and AdamW. pyramid: whether the network is a
    backbone without class token and head, with `vimlearn.pyramid` on it. compiled: whether by `torch.compile`.
    device: "cpu" or "cuda".
    """

    model: str
    size: int = 224
    batch_size: int = 1
    dtype: str = "float32"
    mode: str = "inference"
    pyramid: bool = False
    compiled: bool = False
    device: str = "cpu"

    @property
    def tokens(self) -> int | None:
        """Tokens of the sequence, class token included; None for a network without tokens."""
        if self.model == "resnet-50":
            return None
        return (self.size // PATCH) ** 2 + (not self.pyramid)

    @property
    def settings(self) -> "Case":
        """The same without the model: cases that share it are compared with each other."""
        return replace(self, model="")


def label(name: str) -> str:
    """Return a contestant's name as it stands in figures and sentences."""
    return MODELS[name].title if name in MODELS else name


def groups(models: Sequence[str], **axes: Sequence) -> list[list[Case]]:
    """Return the cases of every combination, those that are compared with each other in one list.

    axes: fields of `Case` and the values each takes, as in size=(224, 512), dtype=("float32",). Larger images and
    batches come later. Raises VimlearnError on what cannot be.
    """
    for name, values in {"model": models, **axes}.items():
        if not values:
            raise VimlearnError(f"there is no {name} to measure; expected at least one")
    combinations = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    found = [[Case(model, **settings) for model in dict.fromkeys(models)] for settings in combinations]
    for group in found:
        check(group)
    return sorted(found, key=lambda group: group[0].size * group[0].batch_size**0.5)


def check(cases: Iterable[Case]) -> None:
    """Raise VimlearnError on an unknown model, a size that does not fit, and combinations that make no sense."""
    for case in cases:
        if case.model not in MODELS:
            raise VimlearnError(f"unknown model {case.model!r}{nearest(case.model, MODELS)}; expected one of "
                                f"{', '.join(MODELS)}")
        _check_size(case)
        if case.batch_size < 1:
            raise VimlearnError(f"batch size {case.batch_size}; expected at least 1")
        if case.pyramid and (case.model == "resnet-50" or case.mode == "training"):
            what = "resnet-50" if case.model == "resnet-50" else "training"
            raise VimlearnError(f"the pyramid stands on Vim or DeiT, in inference, and not on {what}; leave out "
                                f"--pyramid or {what}")
        if case.mode == "training" and case.dtype == "float16":
            raise VimlearnError("a training step in float16 needs a scaled loss and is not measured; take bfloat16")
        if case.device == "cuda" and not torch.cuda.is_available():
            raise VimlearnError("there is no GPU that PyTorch can use here; take --device cpu")


def _check_size(case: Case) -> None:
    smallest = SMALLEST_PYRAMID if case.pyramid else SMALLEST.get(case.model, PATCH)
    if case.size < smallest:
        raise VimlearnError(f"size {case.size} is too small for {label(case.model)}{' with a pyramid' * case.pyramid}; "
                            f"expected at least {smallest} pixels")
    over = case.size % PATCH
    if over and case.size != UNEVEN:
        below = case.size - over
        choice = f"{below} or {below + PATCH}" if below >= smallest else below + PATCH
        raise VimlearnError(f"size {case.size} is not a multiple of the patch of {PATCH} pixels, so an edge of {over} "
                            f"would not be seen; take {choice} (only the paper's {UNEVEN} is accepted as it is)")


def build(case: Case) -> nn.Module:
    """Return the network of a case with fresh weights, on its device, for training or for inference in its dtype.

    In inference the weights have the dtype of the case; in training they stay in float32, as in every recipe here.
    """
    import timm

    from ..pyramid import PyramidBackbone

    torch.manual_seed(0)
    # Not `timm.create_model`: it leaves out settings that are None, and class_token=None is one.
    network = timm.model_entrypoint(MODELS[case.model].timm)(**_settings(case))
    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = MODELS[case.model].fused
    if case.pyramid:
        network = PyramidBackbone(network)
    if case.mode == "inference":
        network = network.eval().to(getattr(torch, case.dtype)).requires_grad_(False)
    network = network.to(case.device)
    return torch.compile(network) if case.compiled else network


def _settings(case: Case) -> dict:
    if case.model == "resnet-50":
        return {}
    bare = {"class_token": None if case.model.startswith("vim") else False, "global_pool": "avg", "num_classes": 0}
    return {"img_size": case.size, **(bare if case.pyramid else {})}
