# ruff: noqa: RUF005 (Triton knows no star in a tuple)
"""Few long sequences: the segments of a sequence run at the same time, in three kernels instead of one.

Seen from its end, a segment is a pair of numbers a state: s_end = exp(A * sum of d) s_begin + s_local, where s_local is
where the segment ends when it begins with 0. So

1. `summary_kernel` walks over all segments at once and keeps s_local and the sum of d;
2. `combine_kernel` goes through the pairs in order and gives each segment its true first state;
3. the ordinary kernel walks over all segments at once, each from there.

The backward pass does the same against the scan, with h in the place of s and gy C in that of x B. The price is that
all exponentials are computed once more, which pays while a good part of the GPU has nothing to do; `splits` decides.
"""

__all__ = ["combine_kernel", "segments_of", "splits", "summary_kernel"]

import triton
import triton.language as tl

from .triton_common import exp2, row, sigmoid, step_of, tile
from .triton_scan_forward import CHUNK, TOKENS, load_A, load_map, per_channel

# Channels of a program: the threads of a warp.
WIDTH = 32
# Programs a multiprocessor up to which sequences are split, and how many they are split into.
FEW_PROGRAMS, MANY_PROGRAMS = 2, 16

# Segments whose pairs are loaded together.
PAIRS = tl.constexpr(8)


def splits(b: int, l: int, e: int, processors: int) -> int:
    """Return into how many segments to split each sequence on a GPU with so many multiprocessors; 1: do not split.

    A program is a warp, and a multiprocessor has 4 schedulers. While there is at most one program for two of them, the
    rest of the GPU is idle, and a sequence is split until there are 4 programs a scheduler, but into no less than a
    chunk each.
    """
    programs = b * -(-e // WIDTH)
    if programs > FEW_PROGRAMS * processors:
        return 1
    return max(1, min(MANY_PROGRAMS * processors // programs, -(-l // CHUNK.value)))


def segments_of(l: int, count: int) -> tuple[int, int]:
    """Return the chunks of a segment and the number of segments when l tokens are split into at most `count`."""
    chunks = triton.cdiv(l, CHUNK.value)
    size = triton.cdiv(chunks, count)
    return size, triton.cdiv(chunks, size)


@triton.jit
def summary_group(s, state, total, A, bias, z, grad_out, first, b, ch, scale, n: tl.constexpr, N: tl.constexpr,
                  GROUP: tl.constexpr, DESCENDING: tl.constexpr, BACKWARD: tl.constexpr, SOFTPLUS: tl.constexpr,
                  ASM: tl.constexpr):
    """Advance s, or h in the backward pass, over GROUP tokens from `first` on, and the sum of d with it."""
    raw, x = (), ()
    for i in tl.static_range(GROUP):
        t = GROUP - 1 - i if DESCENDING else i
        raw = raw + (tl.load(row(s.delta, b, first) + ch + t * s.delta.t).to(A.dtype),)
        if BACKWARD:
            gy = tl.load(row(grad_out, b, first) + ch + t * grad_out.t).to(A.dtype) * scale
            if z is not None:
                gate = tl.load(row(z, b, first) + ch + t * z.t).to(A.dtype)
                gy *= gate * sigmoid(gate, ASM)
            x = x + (gy,)
        else:
            x = x + (tl.load(row(s.u, b, first) + ch + t * s.u.t).to(A.dtype),)
    for i in tl.static_range(GROUP):
        t = GROUP - 1 - i if DESCENDING else i
        d = step_of(raw[i], bias, SOFTPLUS, ASM)
        total += d
        decay = exp2(d[None, :] * A, ASM)
        if BACKWARD:
            state = decay * (state + x[i][None, :] * load_map(row(s.C, b, first) + t * s.C.t, n, N, A.dtype))
        else:
            B = load_map(row(s.B, b, first) + t * s.B.t, n, N, A.dtype)
            state = decay * state + (d * x[i])[None, :] * B
    return state, total


@triton.jit
def summarise(s, z, grad_out, local, totals, b, segment, segments, chunks, l, columns, scale, e: tl.constexpr,
              n: tl.constexpr, N: tl.constexpr, DESCENDING: tl.constexpr, BACKWARD: tl.constexpr,
              SOFTPLUS: tl.constexpr, ASM: tl.constexpr):
    """Walk over one segment from 0 and store where it ends, (b, segments, n, e), and its sum of d, (b, segments, e)."""
    ch = tl.minimum(columns, e - 1)
    A, bias = load_A(s, columns, e, n, N), per_channel(s.bias, ch, s.A.dtype.element_ty)
    state, total = tl.zeros((N, columns.shape[0]), A.dtype), tl.zeros(ch.shape, A.dtype)
    first = segment * chunks * CHUNK
    tokens = tl.minimum(l - first, chunks * CHUNK)
    groups, rest = tokens // TOKENS, tokens % TOKENS
    for i in range(groups + rest):
        unit = groups + rest - 1 - i if DESCENDING else i
        if unit < groups:
            state, total = summary_group(s, state, total, A, bias, z, grad_out, first + unit * TOKENS, b, ch, scale, n,
                                         N, TOKENS, DESCENDING, BACKWARD, SOFTPLUS, ASM)
        else:
            state, total = summary_group(s, state, total, A, bias, z, grad_out, first + groups * (TOKENS - 1) + unit, b,
                                         ch, scale, n, N, 1, DESCENDING, BACKWARD, SOFTPLUS, ASM)
    own = b * segments + segment
    real = (tl.arange(0, N) < n)[:, None] & (columns < e)[None, :]
    tl.store(local + own * n * e + tile(columns, 1, e, N), state, mask=real)
    tl.store(totals + own * e + columns, total, mask=columns < e)


@triton.jit
def summary_kernel(one, two, z, grad_out, local_one, local_two, totals_one, totals_two, chunks, l,
                   scale: tl.constexpr, e: tl.constexpr, n: tl.constexpr, N: tl.constexpr, E: tl.constexpr,
                   DESCENDING_ONE: tl.constexpr, DESCENDING_TWO: tl.constexpr, BACKWARD: tl.constexpr,
                   SOFTPLUS: tl.constexpr, ASM: tl.constexpr):
    """Program (block of channels and sequence, segment, scan). With one scan `two` and DESCENDING_TWO are None."""
    blocks = tl.cdiv(e, E)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    segment, segments = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    columns = tl.program_id(0) % blocks * E + tl.arange(0, E)
    if tl.program_id(2) == 0:
        summarise(one, z, grad_out, local_one, totals_one, b, segment, segments, chunks, l, columns, scale, e, n, N,
                  DESCENDING_ONE, BACKWARD, SOFTPLUS, ASM)
    elif DESCENDING_TWO is not None:
        summarise(two, z, grad_out, local_two, totals_two, b, segment, segments, chunks, l, columns, scale, e, n, N,
                  DESCENDING_TWO, BACKWARD, SOFTPLUS, ASM)


@triton.jit
def combine_kernel(A, local, totals, initial, begin, segments, e: tl.constexpr, n: tl.constexpr, E: tl.constexpr,
                   DESCENDING: tl.constexpr, ASM: tl.constexpr):
    """Program (block of channels, state, sequence). Store each first state in `initial`, which is as `local`.

    begin (b, e, n) or None is the state before the first segment. The pairs of PAIRS segments are loaded together: only
    the arithmetic has to wait for the segment before.
    """
    columns = tl.program_id(0) * E + tl.arange(0, E)
    exists = columns < e
    k, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    decay = tl.load(A + columns * n + k, mask=exists, other=0) * 1.4426950408889634
    state = tl.zeros((E,), decay.dtype)
    if begin is not None:
        state = tl.load(begin + (b * e + columns) * n + k, mask=exists, other=0)
    for i in range(0, segments, PAIRS):
        ends, steps = (), ()
        for j in tl.static_range(PAIRS):
            own = b * segments + (segments - 1 - i - j if DESCENDING else i + j)
            inside = exists & (i + j < segments)
            ends = ends + (tl.load(local + (own * n + k) * e + columns, mask=inside, other=0),)
            steps = steps + (tl.load(totals + own * e + columns, mask=inside, other=0),)
        for j in tl.static_range(PAIRS):
            own = b * segments + (segments - 1 - i - j if DESCENDING else i + j)
            tl.store(initial + (own * n + k) * e + columns, state, mask=exists & (i + j < segments))
            state = exp2(steps[j] * decay, ASM) * state + ends[j]
