"""The causal depthwise convolution in front of each scan: every channel mixes a token with the k - 1 before it.

    y[t] = bias + sum over j of weight[j] x[t - (k-1) + j],   x[t] = 0 outside   (Vim paper, Algorithm 1)

Tensors are channel-last, (b, l, e), so no transpose stands between the projection, the convolution and the scan.
"""

__all__ = ["bidirectional_conv1d", "causal_conv1d", "causal_conv1d_loop"]

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends import Operation, register_compiled, register_export
from .checks import check_input, check_weight, state_dtype
from .errors import VimlearnError
from .kernels.layout import Conv


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | None = None,
                  reverse: bool = False, backend: str = "auto") -> Tensor:
    """Convolve each channel of x over the tokens, seeing only the past (with `reverse` only the future).

    Arguments
        x: (b, l, e).
        weight: (e, k), the last tap stands at the token itself; dtype of x or float32.
        bias: (e,) or None; dtype as weight.
        activation: None or "silu", applied to the result.
        reverse: whether the sequence is read from its end. Equals flipping x and the result.
        backend: "loop" (the definition), "numba" (CPU), "triton" (GPU) or "auto", as in `vimlearn.selective_scan`.

    Returns (b, l, e) in the dtype of x; sums are float32, or float64 for float64.
    Raises VimlearnError where shapes, dtypes or devices do not fit.
    """
    return _convolve(x, [Conv(weight, bias, reverse)], activation, backend)[0]


def bidirectional_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, weight_b: Tensor, bias_b: Tensor | None, *,
                         activation: str | None = None, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Convolve x once seeing the past, with weight and bias, and once seeing the future, with weight_b and bias_b.

    Arguments, errors and dtypes as `causal_conv1d`. Returns two tensors (b, l, e). Compiled backends read x once.
    """
    convs = [Conv(weight, bias, False), Conv(weight_b, bias_b, True)]
    return tuple(_convolve(x, convs, activation, backend))


def _convolve(x: Tensor, convs: list[Conv], activation: str | None, backend: str) -> list[Tensor]:
    check_input("x", x)
    for weight, bias, _ in convs:
        check_weight("weight", weight, x, ("e", "k"))
        if bias is not None:
            check_weight("bias", bias, x, ("e",))
    if activation not in (None, "silu"):
        raise VimlearnError(f"unknown activation {activation!r}; expected None or 'silu'")
    if len({weight.shape for weight, _, _ in convs}) > 1 or len({bias is None for _, bias, _ in convs}) > 1:
        raise VimlearnError("the two convolutions differ in width, or only one has a bias; expected both alike")
    return CONV.choose(backend, x.device, x.dtype)(x, convs, activation == "silu")


def causal_conv1d_loop(x, weight, bias=None, activation=None, reverse=False):
    """Sum the k shifted and scaled copies of x in plain PyTorch: the definition. Arguments as `causal_conv1d`."""
    length, k, dtype = x.shape[1], weight.shape[1], state_dtype(x.dtype)
    weight = weight.to(dtype).flip(1) if reverse else weight.to(dtype)
    # (b, l + k - 1, e), zeros before the first token (after the last one in reverse)
    padded = F.pad(x.to(dtype), (0, 0, 0, k - 1) if reverse else (0, 0, k - 1, 0))
    y = padded[:, :length] * weight[:, 0]
    for j in range(1, k):
        y = torch.addcmul(y, padded[:, j:j + length], weight[:, j])
    if bias is not None:
        y = y + bias.to(dtype)
    return (F.silu(y) if activation == "silu" else y).to(x.dtype)


def _load_numba():
    from .fused_numba import convolve_numba
    return convolve_numba


def _load_triton():
    from .fused_triton import convolve_triton
    return convolve_triton


def _loop(x, convs, silu):
    return [causal_conv1d_loop(x, weight, bias, "silu" if silu else None, reverse) for weight, bias, reverse in convs]


CONV = Operation("causal_conv1d")
register_compiled(CONV, _load_numba, _load_triton)
CONV.register("loop", lambda: _loop)
register_export(CONV, lambda: _loop)
