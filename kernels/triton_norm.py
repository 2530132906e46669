"""The residual add with RMSNorm in Triton, forward and backward.

    r = residual + h,    y = w r rstd,    rstd = 1 / sqrt(mean(r^2) + eps)

A program normalises a few whole tokens, so everything is read and written once. Going back, with g = w grad_y, the
gradient of r is

    rstd (g - r rstd^2 mean(g r)) + the gradient that comes along the residual,

and that of w a sum over all tokens: each program adds up its own in registers and writes a partial sum.
"""

__all__ = ["norm_backward", "norm_forward"]

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_common import contiguous, processors, rows

# Numbers in the tile (tokens, channels) of a program, of 4 warps: a warp has whole tokens while the channels are few.
TILE = 4096
MOST_TOKENS = 8

# Programs of the backward kernel for each multiprocessor: each goes over many tokens, and writes one partial sum.
BACKWARD_PROGRAMS = 4


def tile_of(d: int) -> tuple[int, int]:
    """Return the sizes (tokens, channels), both powers of two, of the tile of a program."""
    channels = triton.next_power_of_2(d)
    return max(1, min(MOST_TOKENS, TILE // channels)), channels


@triton.jit
def load_tokens(x, b, t, ch, mask, dtype: tl.constexpr):
    """Return (tokens, channels) of x, 0 where masked."""
    return tl.load(x.data + (b * x.b + t * x.t)[:, None] + ch[None, :], mask=mask, other=0).to(dtype)


@triton.jit
def forward_kernel(h, residual, weight, y, total, rstd, l, tokens, eps: tl.constexpr, d: tl.constexpr, T: tl.constexpr,
                   P: tl.constexpr):
    """Program (T tokens of all sequences)."""
    token, ch = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T), tl.arange(0, P)
    b, t = token // l, token % l
    dtype: tl.constexpr = total.dtype.element_ty
    mask = (token < tokens)[:, None] & (ch < d)[None, :]
    r = load_tokens(h, b, t, ch, mask, dtype)
    if residual is not None:
        r += load_tokens(residual, b, t, ch, mask, dtype)
    # (T,)
    scale = 1 / tl.sqrt(tl.sum(r * r, 1) / d + eps)
    w = tl.load(weight + ch, mask=ch < d, other=0).to(dtype)
    place = token[:, None] * d + ch[None, :]
    tl.store(total + place, r, mask=mask)
    tl.store(y + place, (r * scale[:, None] * w[None, :]).to(y.dtype.element_ty), mask=mask)
    tl.store(rstd + token, scale, mask=token < tokens)


@triton.jit
def backward_kernel(grad_y, grad_residual, residual, weight, rstd, grad, grad_weight, l, tokens, d: tl.constexpr,
                    T: tl.constexpr, P: tl.constexpr):
    """Program i takes T tokens, leaves as many for each other program, and so on; it writes row i of (programs, d)."""
    ch = tl.arange(0, P)
    dtype: tl.constexpr = residual.dtype.element_ty
    w = tl.load(weight + ch, mask=ch < d, other=0).to(dtype)[None, :]
    sums = tl.zeros((T, P), dtype)
    for first in range(tl.program_id(0).to(tl.int64) * T, tokens, tl.num_programs(0) * T):
        token = first + tl.arange(0, T)
        b, t = token // l, token % l
        mask = (token < tokens)[:, None] & (ch < d)[None, :]
        place = token[:, None] * d + ch[None, :]
        total = tl.zeros((T, P), dtype)
        if grad_residual is not None:
            total += load_tokens(grad_residual, b, t, ch, mask, dtype)
        if grad_y is not None:
            g = load_tokens(grad_y, b, t, ch, mask, dtype)
            scale = tl.load(rstd + token, mask=token < tokens, other=0)[:, None]
            normalised = tl.load(residual + place, mask=mask, other=0) * scale
            sums += g * normalised
            g *= w
            total += scale * (g - normalised * (tl.sum(g * normalised, 1) / d)[:, None])
        tl.store(grad + place, total, mask=mask)
    tl.store(grad_weight + tl.program_id(0) * d + ch, tl.sum(sums, 0), mask=ch < d)


def norm_forward(h: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Add h (b, l, d) to the residual stream (b, l, d) or None, and normalise the sum with weight (d,).

    Returns y (b, l, d) in the dtype of h; the new residual (b, l, d) and rstd (b, l), float32 (float64 for float64).
    """
    b, l, d = h.shape
    dtype = torch.float64 if torch.float64 in (h.dtype, None if residual is None else residual.dtype) else torch.float32
    y = torch.empty_like(h, memory_format=torch.contiguous_format)
    tile, total, rstd = tile_of(d), h.new_empty(b, l, d, dtype=dtype), h.new_empty(b, l, dtype=dtype)
    with torch.cuda.device_of(h):
        forward_kernel[(triton.cdiv(b * l, tile[0]),)](rows(h), rows(residual), contiguous(weight), y, total, rstd, l,
                                                       b * l, eps, d, *tile, num_warps=4)
    return y, total, rstd


def norm_backward(grad_y: Tensor | None, grad_residual: Tensor | None, residual: Tensor, weight: Tensor,
                  rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of the sum h + residual, (b, l, d) in the dtype of the residual, and that of weight (d,).

    Arguments: the gradients of y and of the new residual, None for 0; residual (b, l, d) and rstd (b, l) as
    `norm_forward` returned them; weight (d,).
    """
    b, l, d = residual.shape
    tile = tile_of(d)
    programs = min(triton.cdiv(b * l, tile[0]), max(2, BACKWARD_PROGRAMS * processors(residual)))
    grad = torch.empty_like(residual, memory_format=torch.contiguous_format)
    grad_weight = residual.new_empty(programs, d)
    with torch.cuda.device_of(residual):
        backward_kernel[(programs,)](rows(grad_y), rows(grad_residual), residual.contiguous(), contiguous(weight),
                                     rstd.contiguous(), grad, grad_weight, l, b * l, d, *tile, num_warps=4)
    return grad, grad_weight.sum(0).to(weight.dtype)
