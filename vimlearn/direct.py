"""Inference on the CPU: when a mixer may run as one call of compiled kernels, without the general code around them.

It may where nobody could tell the difference: no gradients, no tracing, no autocast, nothing of the mixer replaced or
hooked, everything float32 and without gaps in memory. Everywhere else the mixer goes its ordinary way.
"""

__all__ = ["mix_directly"]

import sys

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from .bidirectional import BIDIRECTIONAL
from .operators import unobserved

# What somebody may put on a mixer in place of the method of its class.
METHODS = ("forward", "inputs", "scan_inputs", "directions")


def mix_directly(mixer: nn.Module, h: Tensor) -> Tensor | None:
    """Return the mixed tokens (b, l, d), or None where the mixer has to go its ordinary way.

    Arguments: mixer, a `BidirectionalMixer`; h, normalised tokens (b, l, d).
    """
    if torch.compiler.is_compiling() or (h.requires_grad and torch.is_grad_enabled()) or not _runs_numba(mixer, h):
        return None
    layers = mixer._modules
    if not _is_untouched(mixer) or not all(map(_is_plain, layers.values())):
        return None
    directions = [_parameters(mixer, suffix) for suffix in (("", "_b") if mixer.bidirectional else ("",))]
    ends = [layers[name]._parameters for name in ("in_proj", "out_proj")]
    tensors = [h, ends[0]["weight"], ends[1]["weight"], *directions[0], *directions[-1]]
    if any(end["bias"] is not None for end in ends) or not _fit(mixer, tensors) or not unobserved(tensors):
        return None
    from .kernels.numba_mixer import MixerDirection, mix
    return mix(*tensors[:3], [MixerDirection(*direction) for direction in directions], mixer.scale)


def _runs_numba(mixer: nn.Module, h: Tensor) -> bool:
    if h.device.type != "cpu" or h.dtype is not torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    chosen, numba = BIDIRECTIONAL.choose(mixer.backend, h.device, h.dtype), sys.modules.get("vimlearn.fused_numba")
    return numba is not None and chosen is numba.bidirectional_scan_numba


def _is_untouched(mixer: nn.Module) -> bool:
    return not (torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks
                or any(name in mixer.__dict__ for name in METHODS))


def _is_plain(layer: nn.Module) -> bool:
    return type(layer) in (nn.Linear, nn.Conv1d) and not (layer._forward_hooks or layer._forward_pre_hooks
                                                          or "forward" in layer.__dict__)


def _parameters(mixer: nn.Module, suffix: str) -> tuple[Tensor | None, ...]:
    """Return the parameters of one direction in the order of `MixerDirection`."""
    conv, x_proj, dt_proj = (mixer._modules[name + suffix]._parameters for name in ("conv1d", "x_proj", "dt_proj"))
    return (conv["weight"], conv["bias"], x_proj["weight"] if x_proj["bias"] is None else None, dt_proj["weight"],
            dt_proj["bias"], mixer._parameters["A_b_log" if suffix else "A_log"], mixer._parameters["D" + suffix])


def _fit(mixer: nn.Module, tensors: list[Tensor | None]) -> bool:
    """Return whether the kernels can read all tensors as they lie in memory."""
    if any(x is None or x.dtype is not torch.float32 or not x.is_contiguous() or x.device.type != "cpu"
           for x in tensors):
        return False
    h, in_weight, out_weight, *rest = tensors
    d, e, n, r, k = mixer.d_model, mixer.d_inner, mixer.d_state, mixer.dt_rank, rest[0].shape[-1]
    of_direction = [(e, 1, k), (e,), (r + 2 * n, e), (e, r), (e,), (e, n), (e,)]
    return (h.numel() > 0 and [in_weight.shape, out_weight.shape] == [(2 * e, d), (d, e)]
            and [x.shape for x in rest] == 2 * of_direction)
