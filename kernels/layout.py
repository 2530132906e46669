"""What a kernel is given: the tensors of one scan, and of one convolution, in one direction.

Every kernel module has the same functions with the same signatures, whatever compiles it:

| module   | forward                                         | backward                                      |
|----------|-------------------------------------------------|-----------------------------------------------|
| `*_scan` | `scan_forward(scans, z, softplus, scale, keep)` | `scan_backward(grad_out, grad_lasts, scans, ...)` |
| `*_conv` | `conv_forward(x, convs, silu)`                  | `conv_backward(grads, x, convs, silu)`        |
| `*_norm` | `norm_forward(h, residual, weight, eps)`        | `norm_backward(grad_y, grad_residual, ...)`   |

They take one scan (or convolution) or several over the same tokens, each in its own direction, and know nothing about
autograd. Last states are there for one scan, and need not be for two. Shapes were checked by the caller. The letters
are those of `vimlearn.scan`.
"""

__all__ = ["Conv", "Scan", "cast"]

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Scan(NamedTuple):
    """The tensors of one selective scan; `reverse` lets the state run from the last token to the first.

    u, delta (b, l, e), B, C (b, l, n) in the dtype of the input; A (e, n), D, delta_bias (e,) or None in the dtype of
    the state. With `delta_weight` (e, r), in the dtype of the input, delta is (b, l, r) and stands for
    `delta @ delta_weight.T`. Any strides.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    delta_bias: Tensor | None = None
    delta_weight: Tensor | None = None
    reverse: bool = False

    def projected(self) -> "Scan":
        """Return the same scan with delta projected to (b, l, e), for whoever does not take a `delta_weight`."""
        if self.delta_weight is None:
            return self
        return self._replace(delta=F.linear(self.delta, self.delta_weight), delta_weight=None)


class Conv(NamedTuple):
    """The tensors of one causal depthwise convolution: weight (e, k), bias (e,) or None; `reverse` as in `Scan`."""

    weight: Tensor
    bias: Tensor | None
    reverse: bool = False


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `x.to(dtype)`; where there is nothing to do, ten times as fast, which a short sequence notices."""
    return x if x.dtype == dtype else x.to(dtype)
