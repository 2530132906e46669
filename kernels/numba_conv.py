"""The causal depthwise convolution on the CPU, compiled by Numba, forward and backward, in all directions at once.

    y[t] = act(bias + sum over j of w[j] x[t - (k-1) + j]);    in reverse x[t + (k-1) - j]

A task is one sequence, LANES channels and some tokens. It first copies its tokens of x, and the k - 1 before and behind
them, into a window in the first cache, as wide numbers and with 0 outside the sequence. From there on there are no
edges, and both directions look alike if the weight of a reverse one is turned round: row g of the window and the k - 1
below it make one result, that of token start + g, or in reverse of token start + g - (k-1).

Backward, the gradient before the activation is needed at k - 1 more tokens than the task owns. It is computed again
there, from the same window, so nothing but x is kept from the forward pass.
"""

__all__ = ["conv_backward", "conv_forward"]

import functools

import numpy as np
import torch
from numba.extending import register_jitable
from torch import Tensor

from .layout import Conv, cast
from .numba_math import PLAIN, F, sigmoid
from .numba_rows import LANES, by_rows, move_row, read_row
from .numba_runtime import (
    TEAM,
    apart,
    arguments_apart,
    compile_kernel,
    pack,
    pointer,
    run,
    scratch,
    scratch_slots,
    shift,
    stack,
)
from .numba_scan import DIRECTIONS, TYPES
from .numba_scan_parts import direction

# Tokens whose window, gradients and results together fit the first cache.
SEGMENT = 32
# Tokens of a task of the backward kernel, which adds up the gradients of weight and bias over them.
PART = 4 * SEGMENT

# Addresses (0: there is no such tensor), and strides in numbers: _b between sequences, _l between tokens,
# _e between channels, _k between taps.
DIRECTION = np.dtype([(name, np.int64) for name in (
    "weight", "weight_e", "weight_k", "bias", "reverse", "out", "grad", "grad_b", "grad_l")])
CONV_ARGS = np.dtype([*TEAM, *((name, np.int64) for name in (
    "l", "e", "k", "directions", "silu", "part", "parts", "blocks", "scratch", "scratch_size", "x", "x_b", "x_l",
    "grad_x", "shares")), ("first", DIRECTION), ("second", DIRECTION)])


@register_jitable(**PLAIN)
def conv_forward_task(args, slot, task, storage, wide):
    """Convolve one segment of tokens and one block of channels, in every direction."""
    k = args.k
    i, start, channel, width = _place(args, task)
    count = min(SEGMENT, args.l - start)
    scratch = shift(pointer(args.scratch, wide), slot * args.scratch_size)
    weight, turned, window = apart(scratch), apart(shift(scratch, k * LANES)), apart(shift(scratch, 2 * k * LANES))
    bias, y = stack(LANES, wide), stack(LANES, wide)
    _read_window(args, storage, i, start, count, channel, width, window)
    for number in range(args.directions):
        conv = direction(args, number)
        _read_weight(args, conv, wide, channel, width, weight, turned, bias)
        lead, out = k - 1 if conv.reverse else 0, pointer(conv.out, storage)
        for row in range(count):
            move_row(bias, y, LANES)
            _add_taps(shift(window, (lead + row) * LANES), weight, k, y)
            if args.silu:
                for c in range(LANES):
                    y[c] *= sigmoid(y[c])
            move_row(y, shift(out, (i * args.l + start + row) * args.e + channel), width)


@register_jitable(**PLAIN)
def conv_backward_task(args, slot, task, storage, wide):
    """Write the gradient of x for one part of the tokens and one block of channels, and its share of the others."""
    k = args.k
    i, first, channel, width = _place(args, task)
    scratch = shift(pointer(args.scratch, wide), slot * args.scratch_size)
    window, gx = apart(shift(scratch, 2 * k * LANES)), apart(shift(scratch, (4 * k + SEGMENT) * LANES))
    sums = apart(shift(scratch, (4 * k + 2 * SEGMENT) * LANES))
    for c in range(args.directions * (k + 1) * LANES):
        sums[c] = wide(0)
    for start in range(first, min(first + args.part, args.l), SEGMENT):
        count = min(SEGMENT, args.l - start)
        _read_window(args, storage, i, start, count, channel, width, window)
        for c in range(count * LANES):
            gx[c] = wide(0)
        for number in range(args.directions):
            _segment_backward(args, direction(args, number), storage, wide, i, start, count, channel, width, scratch,
                              window, gx, shift(sums, number * (k + 1) * LANES))
        for row in range(count):
            at = (i * args.l + start + row) * args.e + channel
            move_row(shift(gx, row * LANES), shift(pointer(args.grad_x, storage), at), width)
    for number in range(args.directions):
        share = (i * args.parts + task % args.parts) * args.directions + number
        _write_sums(args, direction(args, number), wide, share, channel, width, shift(sums, number * (k + 1) * LANES))


@register_jitable(**PLAIN)
def _write_sums(args, conv, wide, share, channel, width, sums):
    """Write sums (k + 1, LANES) as one of the shares, (k + 1, e) in memory: the weight in its order, then the bias."""
    shares = apart(shift(pointer(args.shares, wide), share * (args.k + 1) * args.e + channel))
    for row in range(args.k + 1):
        target = args.k - 1 - row if conv.reverse and row < args.k else row
        move_row(shift(sums, row * LANES), shift(shares, target * args.e), width)


@register_jitable(**PLAIN)
def _segment_backward(args, conv, storage, wide, i, start, count, channel, width, scratch, window, gx, sums):
    """Add the gradients of one direction to gx (count, LANES) and sums (k + 1, LANES), the last row for the bias."""
    k = args.k
    weight, turned = apart(scratch), apart(shift(scratch, k * LANES))
    gp = apart(shift(scratch, (6 * k + 3 * SEGMENT) * LANES))
    bias, g, pre = stack(LANES, wide), stack(LANES, wide), stack(LANES, wide)
    _read_weight(args, conv, wide, channel, width, weight, turned, bias)
    lead, grad = k - 1 if conv.reverse else 0, pointer(conv.grad, storage)
    for row in range(count + k - 1):
        t = start - lead + row
        inside = 0 <= t < args.l
        read_row(shift(grad, i * conv.grad_b + t * conv.grad_l + channel), g, width if inside else 0)
        if args.silu and inside:
            move_row(bias, pre, LANES)
            _add_taps(shift(window, row * LANES), weight, k, pre)
            for c in range(LANES):
                s = sigmoid(pre[c])
                g[c] *= s * (F(1) + pre[c] * (F(1) - s))
        move_row(g, shift(gp, row * LANES), LANES)
        # Of the others, the part counts that they belong to.
        if lead <= row < lead + count:
            _add_products(g, shift(window, row * LANES), k, sums)
    for row in range(count):
        _add_taps(shift(gp, row * LANES), turned, k, shift(gx, row * LANES))


@register_jitable(**PLAIN)
def _place(args, task):
    """Return the sequence, the first token and the first channel of a task, and the number of its channels."""
    block, part = task // args.parts, task % args.parts
    channel = block % args.blocks * LANES
    return block // args.blocks, part * args.part, channel, min(LANES, args.e - channel)


@register_jitable(**PLAIN)
def _read_window(args, storage, i, start, count, channel, width, window):
    """Read the tokens from start - (k-1) on into window (count + 2 (k-1), LANES); 0 outside the sequence."""
    before, x = args.k - 1, apart(pointer(args.x, storage))
    for row in range(count + 2 * before):
        t = start - before + row
        inside = 0 <= t < args.l
        read_row(shift(x, i * args.x_b + t * args.x_l + channel), shift(window, row * LANES), width if inside else 0)


@register_jitable(**PLAIN)
def _read_weight(args, conv, wide, channel, width, weight, turned, bias):
    """Read the weight (k, LANES), in the order of the window's rows, then turned round, and the bias."""
    memory = apart(pointer(conv.weight, wide))
    for j in range(args.k):
        row, tap = shift(weight, j * LANES), args.k - 1 - j if conv.reverse else j
        for c in range(LANES):
            row[c] = memory[(channel + c) * conv.weight_e + tap * conv.weight_k] if c < width else wide(0)
        move_row(row, shift(turned, (args.k - 1 - j) * LANES), LANES)
    read_row(shift(pointer(conv.bias, wide), channel), bias, width if conv.bias != 0 else 0)


@register_jitable(**PLAIN)
def _add_taps(rows, weight, k, total):
    """Add the sum over j < k of weight[j] rows[j] to the total; all rows have LANES numbers. Four taps at once."""
    arguments_apart()
    j = 0
    while j + 4 <= k:
        x, w = shift(rows, j * LANES), shift(weight, j * LANES)
        for c in range(LANES):
            c1, c2, c3 = c + LANES, c + 2 * LANES, c + 3 * LANES
            total[c] += (x[c] * w[c] + x[c1] * w[c1]) + (x[c2] * w[c2] + x[c3] * w[c3])
        j += 4
    while j < k:
        for c in range(LANES):
            total[c] += rows[j * LANES + c] * weight[j * LANES + c]
        j += 1


@register_jitable(**PLAIN)
def _add_products(g, rows, k, sums):
    """Add g rows[j] to sums[j] for all j < k, and g itself to sums[k]."""
    arguments_apart()
    for j in range(k):
        for c in range(LANES):
            sums[j * LANES + c] += g[c] * rows[j * LANES + c]
    for c in range(LANES):
        sums[k * LANES + c] += g[c]


def conv_scratch(k: int) -> int:
    """Return how many numbers a thread needs."""
    return (8 * k + 4 * SEGMENT) * LANES


def conv_forward(x: Tensor, convs: list[Conv], silu: bool) -> list[Tensor]:
    """Return the result (b, l, e) of each convolution of x, in the dtype of x. One or two convolutions, with one k."""
    x = by_rows(x)
    outs = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in convs]
    _run(conv_forward_task, x, convs, silu, part=SEGMENT, rows=[{"out": out.data_ptr()} for out in outs])
    return outs


def conv_backward(grads: list[Tensor], x: Tensor, convs: list[Conv],
                  silu: bool) -> tuple[Tensor, list[tuple[Tensor, Tensor | None]]]:
    """Return the gradient of x, summed over the convolutions, and for each those of weight and bias (None without).

    `grads` are those of the results, (b, l, e) in the dtype of x.
    """
    (b, l, e), k = x.shape, convs[0].weight.shape[1]
    x, grads = by_rows(x), [by_rows(grad) for grad in grads]
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    shares = torch.empty(b * -(-l // PART), len(convs), k + 1, e, dtype=_wide(x))
    _run(conv_backward_task, x, convs, silu, part=PART, grad_x=grad_x.data_ptr(), shares=shares.data_ptr(), rows=[
        {"grad": grad.data_ptr(), "grad_b": grad.stride(0), "grad_l": grad.stride(1)} for grad in grads])
    # (parts, convs, k + 1, e) -> (convs, k + 1, e)
    sums = shares.sum(0)
    # Copies, so that no gradient is a view of another's memory.
    return grad_x, [(total[:k].t().to(conv.weight.dtype, copy=True, memory_format=torch.contiguous_format),
                     None if conv.bias is None else total[k].to(conv.bias.dtype, copy=True))
                    for conv, total in zip(convs, sums, strict=True)]


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@functools.cache
def kernel(task, dtype: torch.dtype):
    return compile_kernel(task, CONV_ARGS, *TYPES[dtype])


def _run(task, x: Tensor, convs: list[Conv], silu: bool, rows: list[dict], part: int, **fields: int) -> None:
    """Run the task for all sequences, parts and blocks of channels; `rows` and `fields` are what only it needs."""
    (b, l, e), k, wide = x.shape, convs[0].weight.shape[1], _wide(x)
    weights = [cast(conv.weight, wide) for conv in convs]
    biases = [None if conv.bias is None else cast(conv.bias, wide).contiguous() for conv in convs]
    parts, blocks = -(-l // part), -(-e // LANES)
    threads = scratch_slots(b * parts * blocks)
    _memory, place = scratch(threads, conv_scratch(k), wide)
    values = {"tasks": b * parts * blocks, "l": l, "e": e, "k": k, "directions": len(convs), "silu": silu, "part": part,
              "parts": parts, "blocks": blocks, "x": x.data_ptr(), "x_b": x.stride(0), "x_l": x.stride(1), **place,
              **fields}
    for prefix, conv, weight, bias, row in zip(DIRECTIONS, convs, weights, biases, rows, strict=False):
        of_conv = {"weight": weight.data_ptr(), "weight_e": weight.stride(0), "weight_k": weight.stride(1),
                   "bias": 0 if bias is None else bias.data_ptr(), "reverse": conv.reverse, **row}
        values |= {prefix + name: value for name, value in of_conv.items()}
    run(kernel(task, x.dtype), pack(CONV_ARGS, values), threads)
