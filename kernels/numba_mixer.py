"""A whole mixer on the CPU for inference: two products, convolution, scan and gate with the least Python between them.

The general code around the kernels looks at every tensor several times, and short sequences notice. Here layouts are
known, so the records of the kernels are filled in from the parameters as they lie in memory. It also saves memory: the
scan writes its result over the convolved tokens that its last direction has read.
"""

__all__ = ["MixerDirection", "mix"]

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .numba_conv import CONV_ARGS, SEGMENT, conv_forward_task, conv_scratch
from .numba_conv import kernel as conv_kernel
from .numba_rows import LANES
from .numba_runtime import pack, run, scratch, scratch_slots
from .numba_scan import DIRECTIONS, SCAN_ARGS
from .numba_scan import kernel as scan_kernel
from .numba_scan_forward import forward_scratch, scan_forward_task


class MixerDirection(NamedTuple):
    """The parameters of one direction, float32, each without gaps in memory."""

    # (e, 1, k), (e,)
    conv_weight: Tensor
    conv_bias: Tensor
    # (r + 2n, e)
    x_weight: Tensor
    # (e, r), (e,)
    dt_weight: Tensor
    dt_bias: Tensor
    # (e, n), (e,)
    A_log: Tensor
    D: Tensor


def mix(h: Tensor, in_weight: Tensor, out_weight: Tensor, directions: list[MixerDirection], scale: float) -> Tensor:
    """Return the mixed tokens (b, l, d) for normalised tokens h (b, l, d), float32 on the CPU, without gradients.

    in_weight (2e, d), out_weight (d, e); one or two directions, the second one in reverse; scale: of their sum.
    """
    (b, l, _), e = h.shape, out_weight.shape[1]
    # (b, l, 2e): x and z side by side
    xz = F.linear(h, in_weight)
    us = torch.empty(len(directions), b, l, e)
    _convolve(xz, us, directions)
    # (b, l, r + 2n) each: delta, B and C side by side
    mixed = [F.linear(u, direction.x_weight) for u, direction in zip(us, directions, strict=True)]
    _scan(xz, us, mixed, directions, scale)
    return F.linear(us[-1], out_weight)


def _convolve(xz: Tensor, us: Tensor, directions: list[MixerDirection]) -> None:
    """Write silu(conv(x)) of each direction to us (directions, b, l, e)."""
    count, b, l, e = us.shape
    k = directions[0].conv_weight.shape[2]
    parts, blocks = -(-l // SEGMENT), -(-e // LANES)
    tasks = b * parts * blocks
    threads = scratch_slots(tasks)
    _memory, place = scratch(threads, conv_scratch(k))
    values = {"tasks": tasks, "l": l, "e": e, "k": k, "directions": count, "silu": True, "part": SEGMENT,
              "parts": parts, "blocks": blocks, "x": xz.data_ptr(), "x_b": 2 * l * e, "x_l": 2 * e, **place}
    for number, direction in enumerate(directions):
        prefix = DIRECTIONS[number]
        values[prefix + "weight"], values[prefix + "bias"] = (direction.conv_weight.data_ptr(),
                                                              direction.conv_bias.data_ptr())
        values[prefix + "weight_e"], values[prefix + "weight_k"], values[prefix + "reverse"] = k, 1, number
        values[prefix + "out"] = us.data_ptr() + number * b * l * e * us.itemsize
    run(conv_kernel(conv_forward_task, us.dtype), pack(CONV_ARGS, values), threads)


def _scan(xz: Tensor, us: Tensor, mixed: list[Tensor], directions: list[MixerDirection], scale: float) -> None:
    """Write the gated sum of the scans of us (directions, b, l, e) over the last of them."""
    count, b, l, e = us.shape
    (r, n), size = (directions[0].dt_weight.shape[1], directions[0].A_log.shape[1]), us.itemsize
    tasks, row = b * -(-e // LANES), r + 2 * n
    threads = scratch_slots(tasks)
    _memory, place = scratch(threads, forward_scratch(l, n, r))
    first = us.data_ptr()
    values = {"tasks": tasks, "b": b, "l": l, "e": e, "n": n, "r": r, "directions": count, "softplus": True,
              "log_A": True, "z": xz.data_ptr() + e * size, "z_b": 2 * l * e, "z_l": 2 * e,
              "out": first + (count - 1) * b * l * e * size, "scale": scale, **place}
    for number, (direction, one) in enumerate(zip(directions, mixed, strict=True)):
        prefix, delta = DIRECTIONS[number], one.data_ptr()
        values[prefix + "u"] = first + number * b * l * e * size
        values[prefix + "u_b"], values[prefix + "u_l"] = l * e, e
        values[prefix + "delta"], values[prefix + "B"], values[prefix + "C"] = (delta, delta + r * size,
                                                                                delta + (r + n) * size)
        for name in ("delta", "B", "C"):
            values[prefix + name + "_b"], values[prefix + name + "_l"] = l * row, row
        values[prefix + "A"], values[prefix + "D"] = direction.A_log.data_ptr(), direction.D.data_ptr()
        values[prefix + "delta_bias"], values[prefix + "delta_weight"] = (direction.dt_bias.data_ptr(),
                                                                          direction.dt_weight.data_ptr())
        values[prefix + "reverse"] = number
    run(scan_kernel(scan_forward_task, us.dtype), pack(SCAN_ARGS, values), threads)
