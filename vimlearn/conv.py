"""The causal depthwise convolution in front of each scan: every channel mixes a token with the k - 1 before it.

    y[t] = bias + sum over j of weight[j] x[t - (k-1) + j],   x[t] = 0 outside   (Vim paper, Algorithm 1)

Tensors are channel-last, (b, l, e), so no transpose stands between the projection, the convolution and the scan.
"""

__all__ = ["causal_conv1d", "causal_conv1d_loop"]

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends import Operation
from .checks import check_input, check_weight, state_dtype
from .errors import VimlearnError


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | None = None,
                  reverse: bool = False, backend: str = "auto") -> Tensor:
    """Convolve each channel of x over the tokens, seeing only the past (with `reverse` only the future).

    Arguments
        x: (b, l, e).
        weight: (e, k), the last tap stands at the token itself; dtype of x or float32.
        bias: (e,) or None; dtype as weight.
        activation: None or "silu", applied to the result.
        reverse: whether the sequence is read from its end. Equals flipping x and the result.
        backend: "loop" (the definition) or "auto" (the fastest for the device).

    Returns (b, l, e) in the dtype of x; sums are float32, or float64 for float64.
    Raises VimlearnError where shapes, dtypes or devices do not fit.
    """
    check_input("x", x)
    check_weight("weight", weight, x, ("e", "k"))
    if bias is not None:
        check_weight("bias", bias, x, ("e",))
    if activation not in (None, "silu"):
        raise VimlearnError(f"unknown activation {activation!r}; expected None or 'silu'")
    return CONV.choose(backend, x.device)(x, weight, bias, activation, reverse)


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


CONV = Operation("causal_conv1d")
CONV.register("loop", lambda: causal_conv1d_loop)
