"""What the Triton kernels share: how tensors reach a kernel, the layout of threads, the arithmetic of step and gate.

A kernel is given a tensor (b, l, channels) as `Rows`: a pointer and the strides of sequence and token, so that slices
of wider matrices need no copy; only the channels must lie side by side. The stride of a token is compiled in: the
addresses of neighbouring tokens then differ by a constant, which costs neither an instruction nor a register.

**Layout.** A state is a tile (N, E): N states (n rounded up to a power of two) by E channels, where E is the number of
threads of a warp, and a program is one warp. Triton then gives each thread one channel with all its states in
registers: loads along channels are coalesced, and the sum over states needs no other thread and no barrier. Triton
chooses a layout from the loads and stores it sees; `tile` sees to it that those of states suggest this one.

**Edges.** A channel beyond e is not masked where it is loaded: its address is clamped to one that exists, and where it
could reach a sum over channels, its gradient is set to 0. A mask would cost an instruction for each register, to write
the zero. Tokens beyond the end are never visited: a group of tokens is whole, and what is left goes one by one.

**Offsets.** Token and sequence numbers are 64-bit before they meet a stride.
"""

__all__ = ["Rows", "contiguous", "exp2", "pair", "processors", "row", "rows", "sigmoid", "softplus", "step_of", "tile",
           "triton_options"]

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Rows(NamedTuple):
    """A tensor (b, l, channels) as a kernel sees it: pointer, stride of a sequence, stride of a token."""

    data: Any
    b: Any
    t: Any


def rows(x: Tensor | None) -> Rows | None:
    """Return x (b, l, channels) as `Rows`; a copy is made only where its channels do not lie side by side."""
    if x is None:
        return None
    x = x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()
    return Rows(x, x.stride(0), tl.constexpr(x.stride(1)))


def contiguous(x: Tensor | None) -> Tensor | None:
    """Return x, copied only where it is not contiguous, or None."""
    return None if x is None else x.contiguous()


def pair(items: Iterable) -> tuple:
    """Return the one or two items as a pair, whose second is None where there is one."""
    one, *rest = items
    return one, *(rest or [None])


def triton_options(kernel) -> tuple[int, bool]:
    """Return the number of threads in a warp, and whether NVIDIA's exponential instruction can be named.

    The interpreter has no threads and no instructions; 32 gives its tiles the sizes that they have on an NVIDIA GPU.
    """
    if not isinstance(kernel, triton.runtime.JITFunction):
        return 32, False
    target = triton.runtime.driver.active.get_current_target()
    return target.warp_size, target.backend == "cuda"


def processors(x: Tensor) -> int:
    """Return the number of multiprocessors of the GPU that holds x; 0 under the interpreter."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 0


@triton.jit
def row(x, b, t):
    """Return the pointer to the first channel of token t of sequence b. Both numbers are 64-bit."""
    return x.data + (b * x.b + t * x.t)


@triton.jit
def tile(columns, per_column, per_state, N: tl.constexpr):
    """Return the offsets of a tile (N, E) of states, with hints that suggest one layout: a channel a thread.

    Triton lays threads along the axis that lies contiguous in memory, and gives each as many neighbours as are aligned.
    So here channels are said to lie side by side, also where they do not, and nothing to be aligned: then no access is
    ever combined with its neighbour's, and the first hint is used for the layout and for nothing else.
    """
    # 64-bit, so that the states of a thread differ by a constant in their addresses, which needs no register. The hints
    # have to stand beside the sum: on the argument of a function they would be lost.
    columns = columns.to(tl.int64)
    offsets = columns[None, :] * per_column + tl.arange(0, N)[:, None] * per_state
    return tl.multiple_of(tl.max_contiguous(offsets, (1, columns.shape[0])), (1, 1))


@triton.jit
def exp2(x, ASM: tl.constexpr):
    """Return 2 to the power of x. `ASM`: the one instruction; the portable form adds three, for subnormal results."""
    if ASM and x.dtype == tl.float32:
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True,
                                         pack=1)
    else:
        return tl.exp2(x)


@triton.jit
def exp_minus(x, ASM: tl.constexpr):
    """Return exp(-|x|), which no x makes overflow."""
    return exp2(tl.abs(x) * -1.4426950408889634, ASM)


@triton.jit
def sigmoid(x, ASM: tl.constexpr):
    """Return 1 / (1 + exp(-x))."""
    v = exp_minus(x, ASM)
    return tl.where(x < 0, v, 1) / (1 + v)


@triton.jit
def softplus(x, ASM: tl.constexpr):
    """Return max(x, 0) + log(1 + v), v = exp(-|x|): log(1 + exp(x)) with its last digits also where x is far below 0.

    Above 20 the float32 sum rounds to x, which is PyTorch's linear part.
    """
    v = exp_minus(x, ASM)
    if x.dtype == tl.float64:
        # Kahan's log(1 + v): the rounding of 1 + v cancels in log(w) / (w - 1).
        w = 1 + v
        log = tl.where(w == 1, v, tl.log(w) * (v / tl.where(w == 1, 1, w - 1)))
        return tl.where(x > 20, x, tl.maximum(x, 0) + log)
    else:
        # log(1 + v) / v on [0, 1], interpolated at Chebyshev nodes: relative error 3e-8.
        p = 0.0052534578 * v - 0.0295885074
        p = p * v + 0.078361668
        p = p * v - 0.136747697
        p = p * v + 0.191114311
        p = p * v - 0.248443699
        p = p * v + 0.333192713
        p = p * v - 0.499995015
        p = p * v + 0.999999971
        return tl.maximum(x, 0) + v * p


@triton.jit
def step_of(raw, bias, SOFTPLUS: tl.constexpr, ASM: tl.constexpr):
    """Return the step d from delta before bias and softplus."""
    raw = raw + bias
    if SOFTPLUS:
        return softplus(raw, ASM)
    else:
        return raw
