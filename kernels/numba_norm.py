"""The residual add with RMSNorm on the CPU, compiled by Numba, forward and backward.

    r = residual + h,    y = w r rstd,    rstd = 1 / sqrt(mean(r^2) + eps)

Going back, with g = w grad_y, the gradient of r is

    rstd (g - r rstd^2 mean(g r)) + the gradient that comes along the residual,

and that of w a sum over all tokens. A task is ROWS tokens; it adds up its share of the gradient of w at a place of its
own. A row is read from memory once, and stays in the first cache until it is done.
"""

__all__ = ["norm_backward", "norm_forward"]

import functools
import math

import numpy as np
import torch
from numba.extending import register_jitable
from torch import Tensor

from .layout import cast
from .numba_math import PLAIN, SUMS, F, load, store
from .numba_rows import by_rows
from .numba_runtime import TEAM, apart, arguments_apart, compile_kernel, pack, pointer, run, scratch_slots, shift
from .numba_scan import TYPES

# Tokens of a task.
ROWS = 32

# Addresses (0: there is no such tensor), and strides in numbers: _b between sequences, _l between tokens.
NORM_ARGS = np.dtype([*TEAM, *((name, np.int64) for name in (
    "rows", "l", "d", "weight", "h", "h_b", "h_l", "residual", "residual_b", "residual_l", "y", "total", "rstd",
    "grad_y", "grad_y_b", "grad_y_l", "grad_residual", "grad_residual_b", "grad_residual_l", "grad", "shares")),
    ("eps", np.float64)])


@register_jitable(**PLAIN)
def norm_forward_task(args, slot, task, storage, wide):
    """Add and normalise ROWS tokens."""
    d, weight = args.d, apart(pointer(args.weight, wide))
    rstd = pointer(args.rstd, wide)
    for row in range(task * ROWS, min(task * ROWS + ROWS, args.rows)):
        i, t = row // args.l, row % args.l
        h = apart(shift(pointer(args.h, storage), i * args.h_b + t * args.h_l))
        residual = apart(shift(pointer(args.residual, wide), i * args.residual_b + t * args.residual_l))
        total = apart(shift(pointer(args.total, wide), row * d))
        y = apart(shift(pointer(args.y, storage), row * d))
        squares = _add(h, residual, d, total, wide) if args.residual != 0 else _copy(h, d, total, wide)
        scale = F(1) / math.sqrt(squares / wide(d) + wide(args.eps))
        rstd[row] = scale
        for c in range(d):
            store(y, c, total[c] * scale * weight[c])


@register_jitable(**SUMS)
def _add(h, residual, d, total, wide):
    """Write h + residual to total (d,), and return the sum of its squares."""
    arguments_apart()
    squares = wide(0)
    for c in range(d):
        r = residual[c] + load(h, c)
        total[c] = r
        squares += r * r
    return squares


@register_jitable(**SUMS)
def _copy(h, d, total, wide):
    """Write h to total (d,), and return the sum of its squares."""
    arguments_apart()
    squares = wide(0)
    for c in range(d):
        r = load(h, c)
        total[c] = r
        squares += r * r
    return squares


@register_jitable(**PLAIN)
def norm_backward_task(args, slot, task, storage, wide):
    """Write the gradient of ROWS tokens, and their share of the gradient of the weight."""
    d, weight = args.d, apart(pointer(args.weight, wide))
    share = apart(shift(pointer(args.shares, wide), task * d))
    for c in range(d):
        share[c] = wide(0)
    for row in range(task * ROWS, min(task * ROWS + ROWS, args.rows)):
        i, t = row // args.l, row % args.l
        along = apart(shift(pointer(args.grad_residual, wide), i * args.grad_residual_b + t * args.grad_residual_l))
        grad = apart(shift(pointer(args.grad, wide), row * d))
        for c in range(d):
            grad[c] = along[c] if args.grad_residual != 0 else wide(0)
        if args.grad_y != 0:
            grad_y = apart(shift(pointer(args.grad_y, storage), i * args.grad_y_b + t * args.grad_y_l))
            r = apart(shift(pointer(args.residual, wide), i * args.residual_b + t * args.residual_l))
            scale = pointer(args.rstd, wide)[row]
            mean = _dot(grad_y, weight, r, d, wide) * scale * scale / wide(d)
            for c in range(d):
                g = load(grad_y, c)
                grad[c] += scale * (g * weight[c] - r[c] * mean)
                share[c] += g * (r[c] * scale)


@register_jitable(**SUMS)
def _dot(grad_y, weight, r, d, wide):
    """Return the sum over the channels of grad_y weight r."""
    total = wide(0)
    for c in range(d):
        total += load(grad_y, c) * weight[c] * r[c]
    return total


def norm_forward(h: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Add h (b, l, d) to the residual stream (b, l, d) or None, and normalise the sum with weight (d,).

    Returns y (b, l, d) in the dtype of h, the new residual (b, l, d), and rstd (b, l), both float32 (float64 beside
    float64), as the residual has to be.
    """
    wide = torch.float64 if h.dtype == torch.float64 else torch.float32
    y, total = torch.empty(h.shape, dtype=h.dtype), torch.empty(h.shape, dtype=wide)
    rstd = torch.empty(h.shape[:2], dtype=wide)
    _run(norm_forward_task, h.dtype, cast(weight, wide), h.shape, {"h": h, "residual": residual},
         y=y.data_ptr(), total=total.data_ptr(), rstd=rstd.data_ptr(), eps=eps)
    return y, total, rstd


def norm_backward(grad_y: Tensor | None, grad_residual: Tensor | None, residual: Tensor, weight: Tensor,
                  rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of the sum h + residual, (b, l, d) in the dtype of the residual, and that of weight (d,).

    Arguments: the gradients of y and of the new residual, None for 0; residual (b, l, d) and rstd (b, l) as
    `norm_forward` returned them; weight (d,).
    """
    b, l, d = residual.shape
    grad, shares = torch.empty(b, l, d, dtype=residual.dtype), torch.empty(-(-b * l // ROWS), d, dtype=residual.dtype)
    rstd = rstd.contiguous()
    _run(norm_backward_task, residual.dtype if grad_y is None else grad_y.dtype, weight.to(residual.dtype), (b, l, d),
         {"grad_y": grad_y, "grad_residual": grad_residual, "residual": residual},
         grad=grad.data_ptr(), shares=shares.data_ptr(), rstd=rstd.data_ptr())
    # (tasks, d) -> (d,)
    return grad, shares.sum(0).to(weight.dtype)


@functools.cache
def _kernel(task, dtype: torch.dtype):
    return compile_kernel(task, NORM_ARGS, *TYPES[dtype])


def _run(task, dtype: torch.dtype, weight: Tensor, shape: tuple[int, int, int], strided: dict[str, Tensor | None],
         **fields: int | float) -> None:
    """Run the task for all tokens of a tensor (b, l, d), on the tensors `strided` and what else `fields` hold."""
    b, l, d = shape
    weight, tasks = weight.contiguous(), -(-b * l // ROWS)
    strided = {name: by_rows(tensor) for name, tensor in strided.items() if tensor is not None}
    for name, tensor in strided.items():
        fields |= {name: tensor.data_ptr(), name + "_b": tensor.stride(0), name + "_l": tensor.stride(1)}
    values = {"tasks": tasks, "rows": b * l, "l": l, "d": d, "weight": weight.data_ptr(), **fields}
    run(_kernel(task, dtype), pack(NORM_ARGS, values), scratch_slots(tasks))
