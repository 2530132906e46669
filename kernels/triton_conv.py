# ruff: noqa: RUF005 (Triton knows no star in a tuple)
"""The causal depthwise convolution in Triton: all directions in one pass over x, forward and backward.

    y[t] = act(bias + sum over m < k of w[m] x[t - m]),   w[m] = weight[k-1-m];   x[t + m] in reverse

Both kernels are bound by memory: what counts is that x is read once for both directions.

**Forward.** A program has a tile (TOKENS, WIDTH) and loads it 2 k - 1 times, shifted by a token each: the first comes
from memory, the others from the cache.

**Backward.** With gp[t] = grad[t] act'(pre[t]), the gradient of x[t] is the sum of w[m] gp[t + m], and pre[t + m] has
to be recomputed from x: k times over in the form of a tile. Instead a program walks over its tokens, with the last k
tokens of x and of gp in registers. At token i it finishes gp[i] of a forward convolution and gp[i-k+1] of a reverse
one, both from x[i-k+1 .. i], and so the gradient of x[i-k+1]. It begins k - 1 tokens early and ends k - 1 late: what
these add to its own is recomputed, not exchanged.
"""

__all__ = ["conv_backward", "conv_forward"]

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import VimlearnError
from .layout import Conv
from .triton_common import contiguous, pair, row, rows, sigmoid, triton_options

# Tile of the forward kernel, for 4 warps: 16 numbers a thread.
TOKENS, WIDTH = 32, 64

# Tokens of a program of the backward kernel, which is one warp: the 2 (k - 1) at its ends are done twice.
SEGMENT = 64

# Tokens whose loads are issued together in the backward kernel.
GROUP = tl.constexpr(4)


@triton.jit
def tap(conv, ch, m: tl.constexpr, k: tl.constexpr, dtype: tl.constexpr):
    """Return w[m] of the channels."""
    return tl.load(conv[0] + ch * k + (k - 1 - m)).to(dtype)


@triton.jit
def bias_of(conv, ch, dtype: tl.constexpr):
    """Return the bias of the channels, 0 where there is none."""
    if conv[1] is None:
        return tl.zeros(ch.shape, dtype)
    else:
        return tl.load(conv[1] + ch).to(dtype)


@triton.jit
def forward_kernel(x, one, two, out_one, out_two, l, e: tl.constexpr, k: tl.constexpr, REVERSE_ONE: tl.constexpr,
                   REVERSE_TWO: tl.constexpr, SILU: tl.constexpr, DTYPE: tl.constexpr, T: tl.constexpr,
                   E: tl.constexpr, ASM: tl.constexpr):
    """Program (block of tokens and sequence, block of channels). With one convolution the second is None."""
    blocks = tl.cdiv(l, T)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    t = (tl.program_id(0) % blocks).to(tl.int64) * T + tl.arange(0, T)
    columns = tl.program_id(1) * E + tl.arange(0, E)
    ch = tl.minimum(columns, e - 1)
    y_one = tl.zeros((T, E), DTYPE) + bias_of(one, ch, DTYPE)[None, :]
    if REVERSE_TWO is not None:
        y_two = tl.zeros((T, E), DTYPE) + bias_of(two, ch, DTYPE)[None, :]
    for shift in tl.static_range(1 - k, k):
        at = t + shift
        mask = ((at >= 0) & (at < l))[:, None] & (columns < e)[None, :]
        if (shift >= 0) == REVERSE_ONE or shift == 0 or (shift >= 0) == REVERSE_TWO:
            value = tl.load(x.data + b * x.b + at[:, None] * x.t + columns[None, :], mask=mask, other=0).to(DTYPE)
        if (shift >= 0) == REVERSE_ONE or shift == 0:
            y_one += value * tap(one, ch, shift if REVERSE_ONE else -shift, k, DTYPE)[None, :]
        if REVERSE_TWO is not None:
            if (shift >= 0) == REVERSE_TWO or shift == 0:
                y_two += value * tap(two, ch, shift if REVERSE_TWO else -shift, k, DTYPE)[None, :]
    place = (b * l + t)[:, None] * e + columns[None, :]
    mask = (t < l)[:, None] & (columns < e)[None, :]
    if SILU:
        y_one *= sigmoid(y_one, ASM)
    tl.store(out_one + place, y_one.to(out_one.dtype.element_ty), mask=mask)
    if REVERSE_TWO is not None:
        if SILU:
            y_two *= sigmoid(y_two, ASM)
        tl.store(out_two + place, y_two.to(out_two.dtype.element_ty), mask=mask)


@triton.jit
def gradient_before(x, weights, bias, grad, k: tl.constexpr, REVERSE: tl.constexpr, SILU: tl.constexpr,
                    ASM: tl.constexpr):
    """Return gp for the window x of k tokens: of the last of them, in reverse of the first."""
    if SILU:
        pre = bias
        for m in tl.static_range(k):
            pre += weights[m] * x[m if REVERSE else k - 1 - m]
        sig = sigmoid(pre, ASM)
        return grad * sig * (1 + pre * (1 - sig))
    else:
        return grad


@triton.jit
def window_step(grad, x, before, weights, bias, sums, sum_bias, t, begin, end, k: tl.constexpr, REVERSE: tl.constexpr,
                SILU: tl.constexpr, ASM: tl.constexpr):
    """Add gp[t] to its window, where t is the token that the window of x completes, and grad the gradient of y[t].

    Returns the gradient of the first token in the window of x as far as this convolution goes, the window of gp, and
    the sums for weight and bias, for which only tokens from `begin` to `end` count: the others are some neighbour's.
    """
    gp = gradient_before(x, weights, bias, grad, k, REVERSE, SILU, ASM)
    counted = tl.where((t >= begin) & (t < end), gp, 0)
    before = before[1:] + (gp,)
    new_sums, gx = (), tl.zeros(grad.shape, grad.dtype)
    for m in tl.static_range(k):
        new_sums = new_sums + (sums[m] + counted * x[m if REVERSE else k - 1 - m],)
        gx += weights[m] * before[k - 1 - m if REVERSE else m]
    return gx, before, new_sums, sum_bias + counted


@triton.jit
def load_token(x, b, t, l, ch, exists, dtype: tl.constexpr):
    """Return token t of x, 0 outside the sequence."""
    return tl.load(row(x, b, t) + ch, mask=exists & (t >= 0) & (t < l), other=0).to(dtype)


@triton.jit
def store_sums(conv, sums, sum_bias, own, columns, e: tl.constexpr, k: tl.constexpr):
    """Store what a program has summed for weight and bias, (programs, k, e) and (programs, e)."""
    for m in tl.static_range(k):
        tl.store(conv[2] + (own * k + (k - 1 - m)) * e + columns, sums[m], mask=columns < e)
    if conv[3] is not None:
        tl.store(conv[3] + own * e + columns, sum_bias, mask=columns < e)


@triton.jit
def backward_kernel(x, one, two, grads_one, grads_two, grad_x, l, e: tl.constexpr, k: tl.constexpr,
                    REVERSE_ONE: tl.constexpr, REVERSE_TWO: tl.constexpr, SILU: tl.constexpr, DTYPE: tl.constexpr,
                    T: tl.constexpr, E: tl.constexpr, ASM: tl.constexpr):
    """Program (segment of T tokens and sequence, block of channels)."""
    segments = tl.cdiv(l, T)
    b = (tl.program_id(0) // segments).to(tl.int64)
    begin = (tl.program_id(0) % segments).to(tl.int64) * T
    end = tl.minimum(begin + T, l)
    columns = tl.program_id(1) * E + tl.arange(0, E)
    exists, ch = columns < e, tl.minimum(columns, e - 1)
    zero = tl.zeros((E,), DTYPE)
    window, w_one, w_two, before_one, sums_one = (), (), (), (), ()
    for m in tl.static_range(k):
        # At first the k tokens before `begin`; the oldest leaves at once.
        window = window + (load_token(x, b, begin - k + m, l, ch, exists, DTYPE),)
        w_one = w_one + (tap(one, ch, m, k, DTYPE),)
        if REVERSE_TWO is not None:
            w_two = w_two + (tap(two, ch, m, k, DTYPE),)
        before_one, sums_one = before_one + (zero,), sums_one + (zero,)
    before_two, sums_two, bias_sum_one, bias_sum_two = before_one, sums_one, zero, zero
    bias_one = bias_of(one, ch, DTYPE)
    bias_two = bias_one if REVERSE_TWO is None else bias_of(two, ch, DTYPE)
    # Where a reverse convolution stands, as seen from the newest token of the window.
    behind_one = k - 1 if REVERSE_ONE else 0
    behind_two = k - 1 if REVERSE_TWO else 0
    for first in range(begin, end + k - 1, GROUP):
        new, given_one, given_two, results = (), (), (), ()
        for i in tl.static_range(GROUP):
            new = new + (load_token(x, b, first + i, l, ch, exists, DTYPE),)
            given_one = given_one + (load_token(grads_one, b, first + i - behind_one, l, ch, exists, DTYPE),)
            if REVERSE_TWO is not None:
                given_two = given_two + (load_token(grads_two, b, first + i - behind_two, l, ch, exists, DTYPE),)
        for i in tl.static_range(GROUP):
            window = window[1:] + (new[i],)
            gx, before_one, sums_one, bias_sum_one = window_step(
                given_one[i], window, before_one, w_one, bias_one, sums_one, bias_sum_one, first + i - behind_one,
                begin, end, k, REVERSE_ONE, SILU, ASM)
            if REVERSE_TWO is not None:
                more, before_two, sums_two, bias_sum_two = window_step(
                    given_two[i], window, before_two, w_two, bias_two, sums_two, bias_sum_two, first + i - behind_two,
                    begin, end, k, REVERSE_TWO, SILU, ASM)
                gx += more
            results = results + (gx,)
        for i in tl.static_range(GROUP):
            t = first + i - (k - 1)
            tl.store(grad_x + (b * l + t) * e + columns, results[i].to(grad_x.dtype.element_ty),
                     mask=exists & (t >= begin) & (t < end))
    own = tl.program_id(0).to(tl.int64)
    store_sums(one, sums_one, bias_sum_one, own, columns, e, k)
    if REVERSE_TWO is not None:
        store_sums(two, sums_two, bias_sum_two, own, columns, e, k)


def conv_forward(x: Tensor, convs: list[Conv], silu: bool) -> list[Tensor]:
    """Return the result (b, l, e) of each convolution of x, in the dtype of x. One or two convolutions, with one k."""
    (b, l, e), k = x.shape, _taps(convs)
    _, asm = triton_options(forward_kernel)
    outs = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in convs]
    one, two = pair((contiguous(c.weight), contiguous(c.bias)) for c in convs)
    with torch.cuda.device_of(x):
        forward_kernel[b * triton.cdiv(l, TOKENS), triton.cdiv(e, WIDTH)](
            rows(x), one, two, *pair(outs), l, e, k, *pair(c.reverse for c in convs), silu,
            _sum_type(x), TOKENS, WIDTH, asm, num_warps=4)
    return outs


def conv_backward(grads: list[Tensor], x: Tensor, convs: list[Conv],
                  silu: bool) -> tuple[Tensor, list[tuple[Tensor, Tensor | None]]]:
    """Return the gradient of x, summed over the convolutions, and for each those of weight and bias (None without).

    `grads` are those of the results, (b, l, e) in the dtype of x.
    """
    (b, l, e), k = x.shape, _taps(convs)
    lanes, asm = triton_options(backward_kernel)
    segments = triton.cdiv(l, SEGMENT)
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    convs_and_sums = [(contiguous(c.weight), contiguous(c.bias), x.new_empty(b * segments, k, e, dtype=dtype),
                       None if c.bias is None else x.new_empty(b * segments, e, dtype=dtype)) for c in convs]
    with torch.cuda.device_of(x):
        backward_kernel[b * segments, triton.cdiv(e, 2 * lanes)](
            rows(x), *pair(convs_and_sums), *pair(map(rows, grads)), grad_x, l, e, k,
            *pair(c.reverse for c in convs), silu, _sum_type(x), SEGMENT, 2 * lanes, asm, num_warps=1)
    return grad_x, [(weights.sum(0).T.to(c.weight.dtype).contiguous(),
                     None if bias is None else bias.sum(0).to(c.bias.dtype))
                    for c, (_, _, weights, bias) in zip(convs, convs_and_sums, strict=True)]


def _taps(convs: list[Conv]) -> int:
    sizes = [c.weight.shape[1] for c in convs]
    if len(sizes) not in (1, 2) or len(set(sizes)) > 1:
        raise VimlearnError(f"convolutions for Triton have {sizes} taps; expected one convolution, or two with as many")
    return sizes[0]


def _sum_type(x: Tensor) -> tl.dtype:
    return tl.float64 if x.dtype == torch.float64 else tl.float32
