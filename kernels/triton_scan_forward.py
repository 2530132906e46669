# ruff: noqa: RUF005 (Triton knows no star in a tuple)
"""The forward kernel of the selective scan: a warp walks over the tokens with the states of its channels in registers.

A program owns E channels of one sequence, or of one segment of it (`triton_scan_chunks`). It walks over the tokens in
the direction of the first scan. Where there is a second scan, the first leaves its sums in a scratch tensor, and the
program then walks the second way, adds them and applies the gate. What a thread reads there it wrote itself, so nothing
has to be synchronised, and the gate is read once.

The work of a token and channel is n exponentials (on Hopper 16 a cycle and multiprocessor, so eight cycles of a
scheduler for each of a warp) and 4 n multiplications and additions. These fill about the same time, and everything
else has to stay small beside them. Loads of TOKENS tokens are issued together, before the arithmetic and with no store
between them: a store might change what a later load reads, so the compiler keeps their order.
"""

__all__ = ["CHUNK", "Walk", "forward_kernel", "walk_of"]

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .layout import Scan
from .triton_common import Rows, contiguous, exp2, row, rows, sigmoid, step_of, tile

# Tokens from one kept state to the next: n / 16 floats a token and channel. What lies between, the backward pass
# recomputes into a scratch that grows with the chunk.
CHUNK = tl.constexpr(16)

# Tokens whose loads are issued together.
TOKENS = tl.constexpr(4)


class Walk(NamedTuple):
    """One scan as a kernel sees it, and where its states go.

    B, C, A, D and bias are contiguous. starts (b, chunks, n, e) are the states before each chunk, in scan order;
    initial (b, segments, n, e) those before each segment, last (b, e, n) those after the last token. None: not wanted.
    end is always None: Triton 3.6 takes the strides in `Rows` for constants only where a field after them is None.
    """

    u: Rows
    delta: Rows
    B: Rows
    C: Rows
    A: Any
    D: Any
    bias: Any
    starts: Any
    initial: Any
    last: Any
    end: None = None


def walk_of(scan: Scan, starts: Tensor | None, initial: Tensor | None, last: Tensor | None) -> Walk:
    """Return the scan and its states as a kernel takes them.

    B and C are copied, in the type of the states. In a Vim they are slices of a projection whose rows are seldom
    aligned, and each thread would load their 2 n numbers one by one and convert them. A copy's are loaded 16 bytes at
    once.
    """
    maps = (x.to(scan.A.dtype).contiguous() for x in (scan.B, scan.C))
    tokens = (rows(x) for x in (scan.u, scan.delta, *maps))
    return Walk(*tokens, *(contiguous(x) for x in (scan.A, scan.D, scan.delta_bias)), starts, initial, last)


@triton.jit
def load_A(s, ch, e, n: tl.constexpr, N: tl.constexpr):
    """Return A log2(e) of the channels, (N, E): exp(d A) is then 2 to the power of d times it. 0 beyond n."""
    offsets = tile(tl.minimum(ch, e - 1), n, 1, N)
    return tl.load(s.A + offsets, mask=(tl.arange(0, N) < n)[:, None], other=0) * 1.4426950408889634


@triton.jit
def load_map(pointer, n: tl.constexpr, N: tl.constexpr, dtype: tl.constexpr):
    """Return B or C of the token at the pointer as (N, 1), 0 beyond n. Each thread loads all, 16 bytes at once."""
    state = tl.arange(0, N)
    if n == N:
        values = tl.load(pointer + state)
    else:
        values = tl.load(pointer + state, mask=state < n, other=0)
    return values.to(dtype)[:, None]


@triton.jit
def per_channel(x, ch, dtype: tl.constexpr):
    """Return D or the bias of the channels, or 0 where there is none."""
    if x is None:
        return tl.zeros(ch.shape, dtype)
    else:
        return tl.load(x + ch)


@triton.jit
def forward_group(s, state, A, D, bias, first, z, out, sums, b, l, e, ch, exists, scale, n: tl.constexpr,
                  N: tl.constexpr, GROUP: tl.constexpr, REVERSE: tl.constexpr, ADD: tl.constexpr, KEEP: tl.constexpr,
                  SOFTPLUS: tl.constexpr, ASM: tl.constexpr):
    """Advance the state (N, E) over the GROUP tokens from `first` on, and store their results. Return the state.

    ADD: the sums of the other scan are there to be added; KEEP: leave the sums for the other scan.
    """
    dtype: tl.constexpr = A.dtype
    target = sums if KEEP else out
    place = (b * l + first) * e + ch
    u, raw, other, gate = (), (), (), ()
    for i in tl.static_range(GROUP):
        t = GROUP - 1 - i if REVERSE else i
        u = u + (tl.load(row(s.u, b, first) + ch + t * s.u.t).to(dtype),)
        raw = raw + (tl.load(row(s.delta, b, first) + ch + t * s.delta.t).to(dtype),)
        if ADD:
            other = other + (tl.load(sums + place + t * e),)
        if z is not None and not KEEP:
            gate = gate + (tl.load(row(z, b, first) + ch + t * z.t).to(dtype),)
    y = ()
    for i in tl.static_range(GROUP):
        t = GROUP - 1 - i if REVERSE else i
        d = step_of(raw[i], bias, SOFTPLUS, ASM)
        B = load_map(row(s.B, b, first) + t * s.B.t, n, N, dtype)
        C = load_map(row(s.C, b, first) + t * s.C.t, n, N, dtype)
        state = exp2(d[None, :] * A, ASM) * state + (d * u[i])[None, :] * B
        total = tl.sum(state * C, 0) + D * u[i]
        if ADD:
            total += other[i]
        if not KEEP:
            total *= scale
            if z is not None:
                total *= gate[i] * sigmoid(gate[i], ASM)
        y = y + (total,)
    for i in tl.static_range(GROUP):
        t = GROUP - 1 - i if REVERSE else i
        tl.store(target + place + t * e, y[i].to(target.dtype.element_ty), mask=exists)
    return state


@triton.jit
def walk_forward(s, z, out, sums, b, segment, segments, chunks, l, e, columns, scale, n: tl.constexpr,
                 N: tl.constexpr, REVERSE: tl.constexpr, ADD: tl.constexpr, KEEP: tl.constexpr,
                 SOFTPLUS: tl.constexpr, ASM: tl.constexpr):
    """Walk over one segment of `chunks` chunks in scan order, for one scan."""
    exists = columns < e
    ch = tl.minimum(columns, e - 1)
    A = load_A(s, columns, e, n, N)
    D, bias = per_channel(s.D, ch, A.dtype), per_channel(s.bias, ch, A.dtype)
    # (N, E), where a state lies in `starts` and `initial`
    place = tile(columns, 1, e, N)
    real = (tl.arange(0, N) < n)[:, None] & exists[None, :]
    state = tl.zeros((N, columns.shape[0]), A.dtype)
    if s.initial is not None:
        state = tl.load(s.initial + (b * segments + segment) * n * e + place, mask=real, other=0)
    first_chunk = segment * chunks
    end_chunk = tl.minimum(first_chunk + chunks, tl.cdiv(l, CHUNK))
    for i in range(first_chunk, end_chunk):
        chunk = first_chunk + end_chunk - 1 - i if REVERSE else i
        if s.starts is not None:
            tl.store(s.starts + (b * (l // CHUNK + 2) + chunk) * n * e + place, state, mask=real)
        first, end = chunk * CHUNK, tl.minimum(chunk * CHUNK + CHUNK, l)
        # Whole groups, then single tokens for what is left of the last chunk; in reverse the other way round.
        groups = (end - first) // TOKENS
        units = groups + (end - first) % TOKENS
        for j in range(units):
            unit = units - 1 - j if REVERSE else j
            if unit < groups:
                state = forward_group(s, state, A, D, bias, first + unit * TOKENS, z, out, sums, b, l, e, ch, exists,
                                      scale, n, N, TOKENS, REVERSE, ADD, KEEP, SOFTPLUS, ASM)
            else:
                state = forward_group(s, state, A, D, bias, first + groups * (TOKENS - 1) + unit, z, out, sums, b, l, e,
                                      ch, exists, scale, n, N, 1, REVERSE, ADD, KEEP, SOFTPLUS, ASM)
    if segment == (0 if REVERSE else segments - 1):
        tl.store(s.last + b * e * n + tile(columns, n, 1, N), state, mask=real)


@triton.jit
def forward_kernel(one, two, z, out, sums, chunks, l, scale: tl.constexpr, e: tl.constexpr, n: tl.constexpr,
                   N: tl.constexpr, E: tl.constexpr, REVERSE_ONE: tl.constexpr, REVERSE_TWO: tl.constexpr,
                   SOFTPLUS: tl.constexpr, ASM: tl.constexpr):
    """Program (block of channels and sequence, segment). With one scan `two`, REVERSE_TWO and `sums` are None."""
    blocks = tl.cdiv(e, E)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    segment, segments = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    columns = tl.program_id(0) % blocks * E + tl.arange(0, E)
    walk_forward(one, z, out, sums, b, segment, segments, chunks, l, e, columns, scale, n, N, REVERSE_ONE, False,
                 sums is not None, SOFTPLUS, ASM)
    if REVERSE_TWO is not None:
        walk_forward(two, z, out, sums, b, segment, segments, chunks, l, e, columns, scale, n, N, REVERSE_TWO, True,
                     False, SOFTPLUS, ASM)
