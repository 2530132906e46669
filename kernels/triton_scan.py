"""The selective scan in Triton: what is called with tensors and launches the kernels.

| file                      | what it holds                                                           |
|---------------------------|-------------------------------------------------------------------------|
| `triton_common`           | tensors as kernels see them, the layout of threads, step and gate       |
| `triton_scan_forward`     | the walk of one warp over the tokens                                    |
| `triton_scan_backward`    | the walk back, the sums for B and C                                     |
| `triton_scan_chunks`      | few long sequences: their segments at the same time                     |

The signatures are those of `layout`. The functions allocate their results, know no autograd and check no shapes. What
no kernel does here is the projection of delta: give delta itself.
"""

__all__ = ["scan_backward", "scan_forward", "starts_shape"]

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..errors import VimlearnError
from . import triton_scan_chunks
from .layout import Scan
from .triton_common import contiguous, pair, processors, rows, triton_options
from .triton_scan_backward import INNER, TOKENS, BackwardWalk, backward_kernel
from .triton_scan_chunks import combine_kernel, segments_of, summary_kernel
from .triton_scan_forward import CHUNK, Walk, forward_kernel, walk_of


class Sizes(NamedTuple):
    """The sizes of a call, and how it is cut: `chunks` of a segment, `segments` of a sequence, `blocks` of channels."""

    b: int
    l: int
    e: int
    n: int
    chunks: int
    segments: int
    width: int
    blocks: int
    asm: bool

    @property
    def constants(self) -> tuple[int, int, int, int]:
        """The sizes that are compiled into a kernel: e, n, n as a power of two, channels of a program."""
        return self.e, self.n, triton.next_power_of_2(self.n), self.width


def scan_forward(scans: list[Scan], z: Tensor | None, softplus: bool, scale: float,
                 keep: bool) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return `scale * (sum over scans of y) * silu(z)`, the last states, and the states that the backward pass needs.

    Arguments: one or two scans over the same tokens; z (b, l, e) or None; softplus: whether the step is
    softplus(delta + delta_bias); keep: whether the states are wanted.
    Returns out (b, l, e) in the dtype of u; for each scan the last state (b, e, n) in the dtype of A, and the states at
    its chunk starts (`starts_shape`), or with keep=False a tensor of shape (0,).
    Raises VimlearnError for a scan with a `delta_weight`, and unless there are one or two with one n.
    """
    u, A = scans[0].u, scans[0].A
    with torch.cuda.device_of(u):
        sizes = _sizes(scans)
        out = torch.empty_like(u, memory_format=torch.contiguous_format)
        # The first scan leaves its sums here for the second.
        sums = A.new_empty(out.shape) if len(scans) == 2 else None
        last = [A.new_empty(sizes.b, sizes.e, sizes.n) for _ in scans]
        starts = [A.new_empty(starts_shape(u.shape, sizes.n)) if keep else None for _ in scans]
        for kept in starts if keep else []:
            # The spares, which no program writes.
            kept[:, -(-sizes.l // CHUNK.value):] = 0
        walks = [walk_of(scan, start, None, end) for scan, start, end in zip(scans, starts, last, strict=True)]
        if sizes.segments > 1:
            initial = _segment_states(scans, walks, sizes, [None] * len(scans), None, None, softplus, scale)
            walks = [walk._replace(initial=x) for walk, x in zip(walks, initial, strict=True)]
        one, two = pair(walks)
        forward_kernel[sizes.b * sizes.blocks, sizes.segments](
            one, two, rows(z), out, sums, sizes.chunks, sizes.l, scale, *sizes.constants,
            *pair(scan.reverse for scan in scans), softplus, sizes.asm, num_warps=1)
    return out, last, [A.new_empty(0) if x is None else x for x in starts]


def scan_backward(grad_out: Tensor, grad_last: list[Tensor | None], scans: list[Scan], starts: list[Tensor],
                  z: Tensor | None, softplus: bool, scale: float) -> tuple[list[Scan], Tensor | None]:
    """Return the gradients of `scan_forward`: for each scan a `Scan` of gradients, and that of z.

    Arguments: grad_out (b, l, e) in the dtype of u; for each scan the gradient of its last state (b, e, n), or None,
    and the states that `scan_forward` kept; the rest as there. Gradients have the shapes and dtypes of what they belong
    to, and are contiguous.
    """
    with torch.cuda.device_of(grad_out):
        sizes = _sizes(scans)
        grad_z = None if z is None else torch.empty_like(z, memory_format=torch.contiguous_format)
        # The gradient of the gate needs the sum of both scans.
        sums = scans[0].A.new_empty(grad_out.shape) if len(scans) == 2 and z is not None else None
        # What a program recomputes of a chunk; both scans use it, one after the other.
        inner = starts[0].new_empty(sizes.b, sizes.segments, INNER.value, sizes.n, sizes.e)
        walks = [_backward_walk(*x, sizes) for x in zip(scans, starts, grad_last, strict=True)]
        if sizes.segments > 1:
            carry = _segment_states(scans, walks, sizes, [w.grad_last for w in walks], z, grad_out, softplus, scale)
            walks = [walk._replace(carry=x) for walk, x in zip(walks, carry, strict=True)]
        one, two = pair(walks)
        backward_kernel[sizes.b * sizes.blocks, sizes.segments](
            one, two, rows(z), rows(grad_out), grad_z, sums, inner, sizes.chunks, sizes.l, sizes.b, scale,
            *sizes.constants, *pair(scan.reverse for scan in scans), softplus, sizes.asm, num_warps=1)
    return [_gradients(scan, walk) for scan, walk in zip(scans, walks, strict=True)], grad_z


def starts_shape(u_shape: tuple, n: int) -> tuple:
    """Return the shape in which the states before the chunks of a scan over u (b, l, e) are kept: (b, chunks, n, e).

    There is one more than needed, or two, so that no length gives the size 1, which `torch.compile` would make special.
    """
    b, l, e = u_shape
    return b, l // CHUNK.value + 2, n, e


def _sizes(scans: list[Scan]) -> Sizes:
    if any(scan.delta_weight is not None for scan in scans):
        raise VimlearnError("a scan for Triton has a delta_weight; expected None: project delta first, "
                            "with delta @ delta_weight.T")
    states = [scan.A.shape[1] for scan in scans]
    if len(scans) not in (1, 2) or len(set(states)) > 1:
        raise VimlearnError(f"scans for Triton have {states} states; expected one scan, or two with as many")
    (b, l, e), n = scans[0].u.shape, states[0]
    width, asm = triton_options(forward_kernel)
    count = triton_scan_chunks.splits(b, l, e, processors(scans[0].u))
    return Sizes(b, l, e, n, *segments_of(l, count), width, triton.cdiv(e, width), asm)


def _segment_states(scans: list[Scan], walks: list[Walk] | list[BackwardWalk], sizes: Sizes, begin: list[Tensor | None],
                    z: Tensor | None, grad_out: Tensor | None, softplus: bool, scale: float) -> list[Tensor]:
    """Return for each scan s before its segments, or with a grad_out h after them, (b, segments, n, e).

    `begin` is s before, or h after, all of them; None for 0.
    """
    A, backward = scans[0].A, grad_out is not None
    descending = [scan.reverse != backward for scan in scans]
    local = [A.new_empty(sizes.b, sizes.segments, sizes.n, sizes.e) for _ in scans]
    totals = [A.new_empty(sizes.b, sizes.segments, sizes.e) for _ in scans]
    summary_kernel[sizes.b * sizes.blocks, sizes.segments, len(scans)](
        *pair(walks), rows(z), rows(grad_out), *pair(local), *pair(totals), sizes.chunks, sizes.l, scale,
        *sizes.constants, *pair(descending), backward, softplus, sizes.asm, num_warps=1)
    states = [torch.empty_like(x) for x in local]
    for k, walk in enumerate(walks):
        combine_kernel[sizes.blocks, sizes.n, sizes.b](walk.A, local[k], totals[k], states[k], begin[k], sizes.segments,
                                                       sizes.e, sizes.n, sizes.width, descending[k], sizes.asm,
                                                       num_warps=1)
    return states


def _backward_walk(scan: Scan, starts: Tensor, grad_last: Tensor | None, sizes: Sizes) -> BackwardWalk:
    """Return the scan as the backward kernel takes it, with memory for its gradients."""
    b, l, e, n = sizes[:4]
    empty = scan.A.new_empty
    return BackwardWalk(
        *walk_of(scan, starts, None, None)[:8], carry=None, grad_last=contiguous(grad_last),
        grad_u=scan.u.new_empty(b, l, e), grad_delta=scan.u.new_empty(b, l, e),
        maps=empty(sizes.blocks, b, triton.cdiv(l, TOKENS.value), n, TOKENS.value, 2),
        grad_A=empty(b, sizes.segments, n, e),
        grad_D=None if scan.D is None else empty(b, sizes.segments, e),
        grad_bias=None if scan.delta_bias is None else empty(b, sizes.segments, e))


def _gradients(scan: Scan, walk: BackwardWalk) -> Scan:
    """Add up the partial sums of the backward kernel, in an order that does not change from run to run."""
    l = scan.u.shape[1]
    # (blocks, b, groups, n, TOKENS, 2) -> (2, b, groups, TOKENS, n) -> (2, b, l, n)
    maps = walk.maps.sum(0).permute(4, 0, 1, 3, 2).flatten(2, 3)[:, :, :l]
    # Two copies, not two views of one tensor: the results of a PyTorch operator must not share memory.
    grad_B, grad_C = (x.to(scan.B.dtype, copy=True, memory_format=torch.contiguous_format) for x in maps.unbind())
    grad_A = walk.grad_A.sum((0, 1)).T.contiguous()
    grad_D, grad_bias = (None if x is None else x.sum((0, 1)) for x in (walk.grad_D, walk.grad_bias))
    return Scan(walk.grad_u, walk.grad_delta, grad_A, grad_B, grad_C, grad_D, grad_bias, None, scan.reverse)
