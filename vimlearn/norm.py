"""Normalisation fused with the residual add that comes before it: `r = r + h`, then `norm(r)`.

The residual stream stays float32 (float64 for float64) whatever the dtype of the network; the normalised tensor has the
dtype of the incoming one. RMSNorm: y = w * x / sqrt(mean(x^2) + eps), the mean over the d channels of one token.
"""

__all__ = ["LayerNorm", "RMSNorm", "add_layer_norm", "add_rms_norm", "add_rms_norm_loop"]

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backends import Operation, register_compiled, register_export
from .checks import check_input, check_weight, state_dtype
from .errors import VimlearnError


def add_rms_norm(h: Tensor, residual: Tensor | None, weight: Tensor, eps: float = 1e-5, *,
                 backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Add h to the residual stream and RMS-normalise the sum (Zhang and Sennrich 2019; Vim paper, Algorithm 1).

    Arguments: h (b, l, d); residual (b, l, d), float32, or float64 beside a float64 h, or None for the first block;
    weight (d,), dtype of h or float32; eps is added to the mean square; backend as in `vimlearn.selective_scan`,
    without "parallel".
    Returns (normalised (b, l, d) in the dtype of h, new residual (b, l, d)).
    Raises VimlearnError where shapes, dtypes or devices do not fit.
    """
    _check(h, residual, weight)
    return NORM.choose(backend, h.device, h.dtype)(h, residual, weight, eps)


def add_rms_norm_loop(h, residual, weight, eps=1e-5):
    """Add and normalise in plain PyTorch: the definition. Arguments and results as `add_rms_norm`."""
    residual = _add(h, residual)
    scale = torch.rsqrt(residual.square().mean(-1, keepdim=True) + eps)
    return (residual * scale * weight.to(residual.dtype)).to(h.dtype), residual


def add_layer_norm(h: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor,
                   eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Add h to the residual stream and layer-normalise the sum. As `add_rms_norm`, with a bias (d,)."""
    _check(h, residual, weight)
    residual = _add(h, residual)
    dtype = residual.dtype
    return F.layer_norm(residual, weight.shape, weight.to(dtype), bias.to(dtype), eps).to(h.dtype), residual


def _add(h: Tensor, residual: Tensor | None) -> Tensor:
    h = h.to(state_dtype(h.dtype))
    return h if residual is None else residual + h


def _check(h: Tensor, residual: Tensor | None, weight: Tensor) -> None:
    check_input("h", h)
    check_weight("weight", weight, h, ("d",))
    if residual is None:
        return
    if residual.shape != h.shape or residual.device != h.device:
        raise VimlearnError(f"the residual has shape {tuple(residual.shape)} on {residual.device}; expected that of h, "
                            f"{tuple(h.shape)} on {h.device}")
    if residual.dtype != state_dtype(h.dtype):
        raise VimlearnError(f"the residual has dtype {residual.dtype}; expected {state_dtype(h.dtype)} beside an h of "
                            f"dtype {h.dtype}")


class RMSNorm(nn.Module):
    """`add_rms_norm` with its weight, (d,), which starts at 1. There is no bias."""

    def __init__(self, dim: int, eps: float = 1e-5, backend: str = "auto"):
        super().__init__()
        self.eps, self.backend = eps, backend
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, h: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        backend = NORM.backend_or_auto(self.backend, h.device)
        return add_rms_norm(h, residual, self.weight, self.eps, backend=backend)


class LayerNorm(nn.Module):
    """`add_layer_norm` with its weight and bias, (d,), which start at 1 and 0."""

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, h: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return add_layer_norm(h, residual, self.weight, self.bias, self.eps)


def _load_numba():
    from .fused_numba import add_rms_norm_numba
    return add_rms_norm_numba


def _load_triton():
    from .fused_triton import add_rms_norm_triton
    return add_rms_norm_triton


NORM = Operation("add_rms_norm")
register_compiled(NORM, _load_numba, _load_triton)
NORM.register("loop", lambda: add_rms_norm_loop)
register_export(NORM, lambda: add_rms_norm_loop)
