"""Forward."""

import torch
import triton
from torch import Tensor

from ..errors import VimlearnError
from .layout import Scan
from .triton_common import contiguous, processors, rows, triton_options
from .triton_scan_backward import TOKENS, BackwardWalk, backward_kernel
from .triton_scan_forward import CHUNK, forward_kernel, walk_of


def splits(b, l, e, processors):
    return 1


def starts_shape(u_shape, n: int) -> tuple:
    b, l, e = u_shape
    return b, l // CHUNK.value + 2, n, e


def scan_forward(scans, z, softplus, scale, keep):
    u, A = scans[0].u, scans[0].A
    (b, l, e), n = u.shape, A.shape[1]
    width, asm = triton_options(forward_kernel)
    out = torch.empty_like(u, memory_format=torch.contiguous_format)
    sums = A.new_empty(b, l, e) if len(scans) == 2 else None
    last = [A.new_empty(b, e, n) for _ in scans]
    starts = [A.new_empty(starts_shape(u.shape, n)) if keep else None for _ in scans]
    walks = [walk_of(*x) for x in zip(scans, starts, [None] * 2, last)] + [None]
    chunks = triton.cdiv(l, CHUNK.value)
    forward_kernel[b * triton.cdiv(e, width), 1](
        walks[0], walks[1], rows(z), out, sums, chunks, l, scale, e, n, triton.next_power_of_2(n), width,
        scans[0].reverse, scans[-1].reverse, softplus, asm, num_warps=1)
    return out, last, [A.new_empty(0) if x is None else x for x in starts]


def scan_backward(grad_out, grad_last, scans, starts, z, softplus, scale):
    u, A = scans[0].u, scans[0].A
    (b, l, e), n = u.shape, A.shape[1]
    width, asm = triton_options(backward_kernel)
    blocks, groups, segments = triton.cdiv(e, width), triton.cdiv(l, TOKENS.value), 1
    grad_z = torch.empty_like(z, memory_format=torch.contiguous_format) if z is not None else None
    sums = A.new_empty(b, l, e) if len(scans) == 2 and z is not None else None
    walks = []
    for scan, start, last in zip(scans, starts, grad_last, strict=True):
        w = walk_of(scan, start, None, None)
        walks.append(BackwardWalk(
            *w[:8], None, contiguous(last), *(torch.empty(b, l, e, dtype=u.dtype, device=u.device) for _ in range(2)),
            A.new_empty(blocks, b, groups, n, TOKENS.value, 2), A.new_empty(b, segments, n, e),
            *(None if x is None else A.new_empty(b, segments, e) for x in (scan.D, scan.delta_bias))))
    one, two = (*walks, None)[:2]
    backward_kernel[b * blocks, segments](
        one, two, rows(z), rows(grad_out), grad_z, sums, triton.cdiv(l, CHUNK.value), l, b, scale, e, n,
        triton.next_power_of_2(n), width, scans[0].reverse, scans[-1].reverse, softplus, asm, num_warps=1)
    return [_gradients(scan, walk) for scan, walk in zip(scans, walks, strict=True)], grad_z


def _gradients(scan, walk):
    b, l, _ = scan.u.shape
    # (b, groups, n, TOKENS, 2) -> (2, b, l, n)
    maps = walk.maps.sum(0).permute(4, 0, 1, 3, 2).flatten(2, 3)[:, :, :l].to(scan.B.dtype)
    A = walk.grad_A.sum((0, 1)).T.contiguous()
    D, bias = (None if x is None else x.sum((0, 1)) for x in (walk.grad_D, walk.grad_bias))
    return Scan(walk.grad_u, walk.grad_delta, A, maps[0].contiguous(), maps[1].contiguous(), D, bias, None, scan.reverse)
