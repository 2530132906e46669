# ruff: noqa: RUF005 (Triton knows no star in a tuple)
"""The backward kernel of the selective scan: a warp walks against the scan and recomputes the states chunk by chunk.

With gy[t] the gradient of y[t], behind the gate, and g[t] that of the state s[t] = a[t] s[t-1] + x[t] B[t], where
a = exp(d A) and x = d u,

    g[t] = gy[t] C[t] + h[t],    h[t-1] = a[t] g[t],    h after the last token = the gradient of the last state
    gradients:  C: gy s    B: x g    (both summed over channels)    x: sum of g B    d A: a s[t-1] g

Going back, s[t] is needed last token first. To store all would be the tensor (b, l, e, n) that this project avoids, and
to run the recurrence backwards would be to divide by a. So each chunk starts from its kept state and runs forward once.
On its way it leaves the state before every TOKENS tokens in a scratch tensor, a few kilobytes for each program. Going
back, a thread reads there what it wrote itself, so nothing has to be synchronised, and keeps a[t] s[t-1] of TOKENS
tokens in registers. That is about three exponentials a state in the place of one.

**B and C** are shared by all channels, so their gradients are sums over threads: 2 n numbers a token. One by one each
takes 5 shuffles in a warp, and shuffles would be what the kernel waits for. `fold` adds two numbers with one shuffle:
of two threads that exchange, one goes on with the first number and the other with the second. B is folded with C, and a
token with the next: 48 shuffles a token in the place of 160. What a program has summed it writes as the partial sum of
its block of channels, and a sum in fixed order follows. There are no atomics, so results do not change from run to run.
The gradients of A, D and the bias are partial sums of a sequence and segment.
"""

__all__ = ["INNER", "TOKENS", "BackwardWalk", "backward_kernel"]

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .triton_common import Rows, exp2, row, sigmoid, step_of, tile
from .triton_scan_forward import CHUNK, load_A, load_map, per_channel

# Tokens whose states are in registers at once: B and C of two tokens are what `fold` makes one of. With 4 the registers
# are full, and some are spilled.
TOKENS = tl.constexpr(2)

# States that are left within a chunk.
INNER = tl.constexpr(CHUNK.value // TOKENS.value)


class BackwardWalk(NamedTuple):
    """One scan as the backward kernel sees it.

    The first eight fields are those of `Walk`. carry (b, segments, n, e) is h after each segment; without it,
    grad_last (b, e, n) or None is h after the last token. Then the gradients: grad_u, grad_delta (b, l, e); maps
    (blocks, b, groups, n, TOKENS, 2) for B and C; grad_A (b, segments, n, e); grad_D, grad_bias (b, segments, e), None
    where the tensor is. end as in `Walk`.
    """

    u: Rows
    delta: Rows
    B: Rows
    C: Rows
    A: Any
    D: Any
    bias: Any
    starts: Any
    carry: Any
    grad_last: Any
    grad_u: Any
    grad_delta: Any
    maps: Any
    grad_A: Any
    grad_D: Any
    grad_bias: Any
    end: None = None


@triton.jit
def fold(zero, one, bit: tl.constexpr):
    """Add two tiles (N, E) over pairs of channels whose numbers differ in `bit`.

    A channel without the bit gets the sum of its pair in `zero`, one with the bit that in `one`.
    """
    N: tl.constexpr = zero.shape[0]
    lane = tl.broadcast_to(tl.arange(0, zero.shape[1])[None, :], (N, zero.shape[1]))
    has = (lane & bit) != 0
    return tl.where(has, one, zero) + tl.gather(tl.where(has, zero, one), lane ^ bit, 1)


@triton.jit
def store_maps(pointer, folded, n: tl.constexpr, TOKENS_FOLDED: tl.constexpr):
    """Finish the sum over channels of a folded tile (N, E) and store (n, TOKENS_FOLDED, 2) at stride 2 TOKENS."""
    N: tl.constexpr = folded.shape[0]
    WIDTH: tl.constexpr = 2 * TOKENS_FOLDED
    total = tl.sum(tl.reshape(folded, (N, folded.shape[1] // WIDTH, WIDTH)), 1)
    state = tl.arange(0, N)[:, None]
    tl.store(pointer + (state * (2 * TOKENS) + tl.arange(0, WIDTH)[None, :]), total, mask=state < n)


@triton.jit
def advance(s, state, A, bias, first, b, ch, n: tl.constexpr, N: tl.constexpr, GROUP: tl.constexpr,
            REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, ASM: tl.constexpr):
    """Return the state (N, E) after GROUP tokens from `first` on, in scan order."""
    u, raw = (), ()
    for i in tl.static_range(GROUP):
        t = GROUP - 1 - i if REVERSE else i
        u = u + (tl.load(row(s.u, b, first) + ch + t * s.u.t).to(A.dtype),)
        raw = raw + (tl.load(row(s.delta, b, first) + ch + t * s.delta.t).to(A.dtype),)
    for i in tl.static_range(GROUP):
        t = GROUP - 1 - i if REVERSE else i
        d = step_of(raw[i], bias, SOFTPLUS, ASM)
        B = load_map(row(s.B, b, first) + t * s.B.t, n, N, A.dtype)
        state = exp2(d[None, :] * A, ASM) * state + (d * u[i])[None, :] * B
    return state


@triton.jit
def backward_group(s, state, h, sums_A, sums_D, sums_bias, A, D, bias, z, grad_out, grad_z, sums, first, maps, b, l, e,
                   ch, exists, scale, n: tl.constexpr, N: tl.constexpr, GROUP: tl.constexpr, REVERSE: tl.constexpr,
                   ADD: tl.constexpr, KEEP: tl.constexpr, SOFTPLUS: tl.constexpr, ASM: tl.constexpr):
    """Store all gradients of GROUP tokens from `first` on, given the state before them in scan order and h after them.

    Returns h before them and the sums for A, D and the bias. ADD and KEEP as in `forward_group`.
    """
    dtype: tl.constexpr = A.dtype
    place = (b * l + first) * e + ch
    u, raw, d, gy, gate, before = (), (), (), (), (), ()
    for i in tl.static_range(GROUP):
        t = GROUP - 1 - i if REVERSE else i
        u = u + (tl.load(row(s.u, b, first) + ch + t * s.u.t).to(dtype),)
        raw = raw + (tl.load(row(s.delta, b, first) + ch + t * s.delta.t).to(dtype) + bias,)
        go = tl.load(row(grad_out, b, first) + ch + t * grad_out.t).to(dtype)
        # A channel that does not exist must not add to the gradients of B and C: with h = 0 at first, g stays 0.
        gy = gy + (tl.where(exists, go * scale, 0),)
        if z is not None:
            gate = gate + (tl.load(row(z, b, first) + ch + t * z.t).to(dtype),)
    for i in tl.static_range(GROUP):
        t = GROUP - 1 - i if REVERSE else i
        d = d + (step_of(raw[i], 0, SOFTPLUS, ASM),)
        before = before + (exp2(d[i][None, :] * A, ASM) * state,)
        B = load_map(row(s.B, b, first) + t * s.B.t, n, N, dtype)
        state = before[i] + (d[i] * u[i])[None, :] * B
    for i in tl.static_range(GROUP - 1, -1, -1):
        t = GROUP - 1 - i if REVERSE else i
        B = load_map(row(s.B, b, first) + t * s.B.t, n, N, dtype)
        C = load_map(row(s.C, b, first) + t * s.C.t, n, N, dtype)
        x = d[i] * u[i]
        state = before[i] + x[None, :] * B
        if z is not None:
            y = tl.sum(state * C, 0) + D * u[i]
            sig = sigmoid(gate[i], ASM)
            if ADD:
                y += tl.load(sums + place + t * e)
            if KEEP:
                tl.store(sums + place + t * e, y, mask=exists)
            else:
                gz = gy[i] * y * sig * (1 + gate[i] * (1 - sig))
                tl.store(grad_z + place + t * e, gz.to(grad_z.dtype.element_ty), mask=exists)
            gyi = gy[i] * gate[i] * sig
        else:
            gyi = gy[i]
        g = h + gyi[None, :] * C
        both = fold(x[None, :] * g, gyi[None, :] * state, 1)
        gx = tl.sum(g * B, 0)
        through = g * before[i]
        gd = gx * u[i] + tl.sum(through * A, 0) * 0.6931471805599453
        sums_A += through * d[i][None, :]
        h = exp2(d[i][None, :] * A, ASM) * g
        tl.store(s.grad_u + place + t * e, (gx * d[i] + D * gyi).to(s.grad_u.dtype.element_ty), mask=exists)
        if SOFTPLUS:
            gd *= sigmoid(raw[i], ASM)
        tl.store(s.grad_delta + place + t * e, gd.to(s.grad_delta.dtype.element_ty), mask=exists)
        sums_D += gyi * u[i]
        sums_bias += gd
        if GROUP == 2:
            # The token after the other in memory takes the channels with bit 2, whichever of the two comes first here.
            if i == 1:
                other = both
            else:
                folded = fold(other, both, 2) if REVERSE else fold(both, other, 2)
        else:
            folded = both
    store_maps(maps, folded, n, GROUP)
    return h, sums_A, sums_D, sums_bias


@triton.jit
def leave_states(s, inner, A, bias, place, real, chunk, whole, units, b, l, e, ch, n: tl.constexpr, N: tl.constexpr,
                 REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, ASM: tl.constexpr):
    """Run over a chunk in scan order and leave the states before its units in `inner`."""
    state = tl.load(s.starts + (b * (l // CHUNK + 2) + chunk) * n * e + place, mask=real, other=0)
    # The first as well: to choose later between two places costs registers.
    tl.store(inner + place, state, mask=real)
    for i in range(units - 1):
        unit = units - 1 - i if REVERSE else i
        if unit < whole:
            first = chunk * CHUNK + unit * TOKENS
            state = advance(s, state, A, bias, first, b, ch, n, N, TOKENS, REVERSE, SOFTPLUS, ASM)
        else:
            first = chunk * CHUNK + whole * TOKENS
            state = advance(s, state, A, bias, first, b, ch, n, N, 1, REVERSE, SOFTPLUS, ASM)
        tl.store(inner + (i + 1) * n * e + place, state, mask=real)


@triton.jit
def walk_backward(s, z, grad_out, grad_z, sums, inner, b, block, segment, segments, chunks, l, batch, e, columns,
                  scale, n: tl.constexpr, N: tl.constexpr, REVERSE: tl.constexpr, ADD: tl.constexpr, KEEP: tl.constexpr,
                  SOFTPLUS: tl.constexpr, ASM: tl.constexpr):
    """Walk over one segment of `chunks` chunks against the order of one scan.

    The units of a chunk are its whole groups of TOKENS and then, in the last chunk, the token that may be left.
    """
    exists = columns < e
    ch = tl.minimum(columns, e - 1)
    A = load_A(s, columns, e, n, N)
    D, bias = per_channel(s.D, ch, A.dtype), per_channel(s.bias, ch, A.dtype)
    place = tile(columns, 1, e, N)
    real = (tl.arange(0, N) < n)[:, None] & exists[None, :]
    own = b * segments + segment
    h = tl.zeros((N, columns.shape[0]), A.dtype)
    if s.carry is not None:
        h = tl.load(s.carry + own * n * e + place, mask=real, other=0)
    elif s.grad_last is not None:
        h = tl.load(s.grad_last + b * e * n + tile(columns, n, 1, N), mask=real, other=0)
    sums_A = tl.zeros(h.shape, A.dtype)
    sums_D, sums_bias = tl.zeros(ch.shape, A.dtype), tl.zeros(ch.shape, A.dtype)
    inner += own * INNER * n * e
    groups = tl.cdiv(l, TOKENS)
    maps = s.maps + (block * batch + b) * groups * n * 2 * TOKENS
    first_chunk = segment * chunks
    end_chunk = tl.minimum(first_chunk + chunks, tl.cdiv(l, CHUNK))
    for i in range(first_chunk, end_chunk):
        chunk = i if REVERSE else first_chunk + end_chunk - 1 - i
        tokens = tl.minimum(l - chunk * CHUNK, CHUNK)
        whole = tokens // TOKENS
        units = whole + tokens % TOKENS
        leave_states(s, inner, A, bias, place, real, chunk, whole, units, b, l, e, ch, n, N, REVERSE, SOFTPLUS, ASM)
        for j in range(units):
            unit = j if REVERSE else units - 1 - j
            state = tl.load(inner + (units - 1 - j) * n * e + place, mask=real, other=0)
            if unit < whole:
                first = chunk * CHUNK + unit * TOKENS
                h, sums_A, sums_D, sums_bias = backward_group(
                    s, state, h, sums_A, sums_D, sums_bias, A, D, bias, z, grad_out, grad_z, sums, first,
                    maps + first * n * 2, b, l, e, ch, exists, scale, n, N, TOKENS, REVERSE, ADD, KEEP, SOFTPLUS, ASM)
            else:
                # The one token that is left begins a group of its own in `maps`, too.
                first = chunk * CHUNK + whole * TOKENS
                h, sums_A, sums_D, sums_bias = backward_group(
                    s, state, h, sums_A, sums_D, sums_bias, A, D, bias, z, grad_out, grad_z, sums, first,
                    maps + first * n * 2, b, l, e, ch, exists, scale, n, N, 1, REVERSE, ADD, KEEP, SOFTPLUS, ASM)
    tl.store(s.grad_A + own * n * e + place, sums_A, mask=real)
    if s.grad_D is not None:
        tl.store(s.grad_D + own * e + columns, sums_D, mask=exists)
    if s.grad_bias is not None:
        tl.store(s.grad_bias + own * e + columns, sums_bias, mask=exists)


@triton.jit
def backward_kernel(one, two, z, grad_out, grad_z, sums, inner, chunks, l, batch, scale: tl.constexpr, e: tl.constexpr,
                    n: tl.constexpr, N: tl.constexpr, E: tl.constexpr, REVERSE_ONE: tl.constexpr,
                    REVERSE_TWO: tl.constexpr, SOFTPLUS: tl.constexpr, ASM: tl.constexpr):
    """Program (block of channels and sequence, segment). With one scan `two` and REVERSE_TWO are None.

    inner (b, segments, INNER, n, e): scratch of each program.
    """
    blocks = tl.cdiv(e, E)
    b, block = (tl.program_id(0) // blocks).to(tl.int64), (tl.program_id(0) % blocks).to(tl.int64)
    segment, segments = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    columns = tl.program_id(0) % blocks * E + tl.arange(0, E)
    walk_backward(one, z, grad_out, grad_z, sums, inner, b, block, segment, segments, chunks, l, batch, e, columns,
                  scale, n, N, REVERSE_ONE, False, sums is not None, SOFTPLUS, ASM)
    if REVERSE_TWO is not None:
        walk_backward(two, z, grad_out, grad_z, sums, inner, b, block, segment, segments, chunks, l, batch, e, columns,
                      scale, n, N, REVERSE_TWO, True, False, SOFTPLUS, ASM)
