"""The selective scan on the CPU, forward: one sequence and LANES channels a task, in all directions, gated once.

The state, (n, LANES), stays in the first cache and never goes to memory, but for one in CHUNK tokens that the backward
pass starts from. Fused with the recurrence are the projection of the step from rank r, its bias and softplus, the skip
D u, the sum of the directions, and the gate.
"""

__all__ = ["forward_scratch", "four_states", "scan_forward_task"]

import numpy as np
from numba.extending import register_jitable

from .numba_math import PLAIN, SELDOM, decay, exp2, load, sigmoid, softplus
from .numba_rows import LANES, move_row, prefetch_write, read_row
from .numba_runtime import apart, arguments_apart, out_of_line, pointer, shift, stack
from .numba_scan_parts import (
    CHUNK,
    GAP,
    direction,
    is_tame,
    prefetch_token,
    read_parameters,
    read_step,
    state_at_start,
    token_at,
)

# Tokens whose steps and gates are computed together; CHUNK is a multiple. The rows of a span and of the next one share
# the first cache with the state.
SPAN = 8


def forward_scratch(l: int, n: int, r: int) -> int:
    """Return how many numbers a thread needs: sum of the directions, state, A, projection and steps of a span."""
    return (l + 2 * n + r + SPAN) * LANES + 3 * GAP


@register_jitable(**PLAIN)
def scan_forward_task(args, slot, task, storage, wide):
    """Scan one sequence and one block of channels in every direction, and write the gated sum."""
    blocks = (args.e + LANES - 1) // LANES
    i, channel = task // blocks, task % blocks * LANES
    width = min(LANES, args.e - channel)
    y = shift(pointer(args.scratch, wide), slot * args.scratch_size)
    for k in range(args.directions):
        _scan(args, direction(args, k), storage, wide, i, channel, width, y, k == 0, k == args.directions - 1)


@register_jitable(**PLAIN)
def _scan(args, scan, storage, wide, i, channel, width, y, is_first, is_last):
    """Scan one direction. The sum of the directions so far is in y (l, LANES); the last one gates it and writes it."""
    # Of one direction alone, a span of y is enough, and that stays in the first cache.
    l, n, r, alone = args.l, args.n, args.r, is_first and is_last
    s, A2 = apart(shift(y, l * LANES)), apart(shift(y, (l + n) * LANES + GAP))
    weight = apart(shift(y, (l + 2 * n) * LANES + 2 * GAP))
    steps = apart(shift(y, (l + 2 * n + r) * LANES + 3 * GAP))
    bias, D, longest, worst = stack(LANES, wide), stack(LANES, wide), stack(LANES, wide), stack(LANES, wide)
    for j in range(min(SPAN, l)):
        prefetch_token(args, scan, storage, i, token_at(j, l, scan.reverse), channel)
    read_parameters(args, scan, wide, storage, channel, width, A2, weight, bias, D, longest)
    for k in range(n * LANES):
        s[k] = wide(0)
    for start in range(0, l, SPAN):
        count = min(SPAN, l - start)
        if scan.starts != 0 and start % CHUNK == 0:
            for k in range(n):
                move_row(shift(s, k * LANES), state_at_start(args, scan, wide, i, start // CHUNK, k, channel), width)
        # Steps and gates of a span each in a loop of their own: there the processor works on several tokens at once,
        # where in the recurrence each would wait for its exponential.
        for c in range(LANES):
            worst[c] = wide(-np.inf)
        for j in range(count):
            t = token_at(start + j, l, scan.reverse)
            _step(args, scan, storage, i, t, channel, width, weight, bias, shift(steps, j * LANES), worst)
        tame = is_tame(worst, longest)
        for j in range(count):
            t = token_at(start + j, l, scan.reverse)
            prefetch_token(args, scan, storage, i, token_at(start + j + SPAN, l, scan.reverse), channel)
            if is_last:
                prefetch_write(shift(pointer(args.out, storage), (i * l + t) * args.e + channel))
            if scan.starts != 0:
                for k in range((start + j) % CHUNK, n, CHUNK):
                    prefetch_write(state_at_start(args, scan, wide, i, start // CHUNK + 1, k, channel))
            _token(args, scan, storage, wide, i, t, channel, width, shift(steps, j * LANES), A2, D, tame, s,
                   shift(y, (j if alone else t) * LANES), is_first)
        if is_last:
            for j in range(count):
                t = token_at(start + j, l, scan.reverse)
                _gate(args, storage, wide, i, t, channel, width, shift(y, (j if alone else t) * LANES))
    if scan.last != 0:
        last = shift(pointer(scan.last, wide), (i * args.e + channel) * n)
        for c in range(width):
            for k in range(n):
                last[c * n + k] = s[k * LANES + c]


@register_jitable(**PLAIN)
def _step(args, scan, storage, i, t, channel, width, weight, bias, d, worst):
    """Write the step of one token, after the softplus, to d (LANES,), and the longest so far to `worst`."""
    arguments_apart()
    read_step(scan, args.r, storage, i, t, channel, width, weight, bias, d)
    if args.softplus:
        for c in range(LANES):
            d[c] = softplus(d[c])
    for c in range(LANES):
        worst[c] = d[c] if d[c] > worst[c] else worst[c]


@register_jitable(**PLAIN)
def _token(args, scan, storage, wide, i, t, channel, width, d, A2, D, tame, s, y, is_first):
    """Take the states one token on, and add the scan of the token, with its skip, to y (LANES,)."""
    arguments_apart()
    n, x, total = args.n, stack(LANES, wide), stack(LANES, wide)
    B, C = pointer(scan.B, storage), pointer(scan.C, storage)
    at_B, at_C = i * scan.B_b + t * scan.B_l, i * scan.C_b + t * scan.C_l
    read_row(shift(pointer(scan.u, storage), i * scan.u_b + t * scan.u_l + channel), x, width)
    for c in range(LANES):
        total[c] = D[c] * x[c]
        x[c] *= d[c]
    if not is_first:
        for c in range(LANES):
            total[c] += y[c]
    k = 0
    while k + 4 <= n and tame:
        four_states(shift(s, k * LANES), shift(A2, k * LANES), d, x, total, shift(B, at_B + k), shift(C, at_C + k))
        k += 4
    if k < n:
        _other_states(shift(s, k * LANES), shift(A2, k * LANES), d, x, total, shift(B, at_B + k), shift(C, at_C + k),
                      n - k)
    move_row(total, y, LANES)


@register_jitable(**SELDOM)
def _other_states(s, A2, d, x, total, B, C, count):
    """Take `count` states of LANES channels one token on, s = 2^(d A2) s + x B, and add C s to the total."""
    out_of_line()
    arguments_apart()
    for k in range(count):
        _one_state(shift(s, k * LANES), shift(A2, k * LANES), d, x, total, load(B, k), load(C, k))


@register_jitable(**PLAIN)
def _one_state(s, A2, d, x, total, B, C):
    """Do it for one state."""
    arguments_apart()
    for c in range(LANES):
        s[c] = exp2(d[c] * A2[c]) * s[c] + x[c] * B
        total[c] += s[c] * C


@register_jitable(**PLAIN)
def four_states(s, A2, d, x, total, B, C):
    """Do it for four states at once, where the steps are tame: d, x and the total are read once for all."""
    arguments_apart()
    B0, B1, B2, B3 = load(B, 0), load(B, 1), load(B, 2), load(B, 3)
    C0, C1, C2, C3 = load(C, 0), load(C, 1), load(C, 2), load(C, 3)
    for c in range(LANES):
        c1, c2, c3 = c + LANES, c + 2 * LANES, c + 3 * LANES
        s0, s1 = decay(d[c], A2[c]) * s[c] + x[c] * B0, decay(d[c], A2[c1]) * s[c1] + x[c] * B1
        s2, s3 = decay(d[c], A2[c2]) * s[c2] + x[c] * B2, decay(d[c], A2[c3]) * s[c3] + x[c] * B3
        s[c], s[c1], s[c2], s[c3] = s0, s1, s2, s3
        total[c] += (s0 * C0 + s1 * C1) + (s2 * C2 + s3 * C3)


@register_jitable(**PLAIN)
def _gate(args, storage, wide, i, t, channel, width, y):
    """Write scale * y * silu(z) of one token, or scale * y where there is no gate; y (LANES,) is used up."""
    arguments_apart()
    gate, scale = stack(LANES, wide), wide(args.scale)
    if args.z != 0:
        read_row(shift(pointer(args.z, storage), i * args.z_b + t * args.z_l + channel), gate, width)
        for c in range(LANES):
            y[c] *= scale * gate[c] * sigmoid(gate[c])
    else:
        for c in range(LANES):
            y[c] *= scale
    move_row(y, shift(pointer(args.out, storage), (i * args.l + t) * args.e + channel), width)
