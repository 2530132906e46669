"""The selective scan on the CPU, backward: the gradient of a scan is a scan in the other direction.

With g[t] the gradient of the state s[t] and a[t] = exp(d[t] A) its decay,

    g[t] = a[t+1] g[t+1] + C[t] grad_y[t]

and every other gradient is a sum over g and s at one token. Nothing of size (b, l, e, n) is stored: a chunk of CHUNK
tokens is run forward again from its kept state, its states and decays stay in the second cache, and the chunk is then
walked in the other direction. B and C belong to all channels of a token, so each block of channels writes its share of
their gradients to a place of its own, and the caller adds the shares: the result does not depend on who came first.
"""

__all__ = ["backward_scratch", "scan_backward_task"]

import numpy as np
from numba.extending import register_jitable

from .numba_math import LOG2E, PLAIN, SELDOM, SUMS, F, decay, exp2, load, sigmoid, softplus, softplus_slope
from .numba_rows import LANES, move_row, prefetch_row, prefetch_write, read_row
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

# Rows of LANES that are kept for each token of a chunk: u, step, slope of the softplus, gradient of y, gradient of z
# but for its factor y.
ROWS = 5


def backward_scratch(l: int, n: int, r: int) -> int:
    """Return how many numbers a thread needs."""
    per_chunk = CHUNK * ROWS * LANES + (2 * CHUNK + 1) * (n * LANES + GAP)
    return l * LANES + per_chunk + 3 * (n * LANES + GAP) + r * LANES


@register_jitable(**PLAIN)
def scan_backward_task(args, slot, task, storage, wide):
    """Write all gradients of one sequence and one block of channels, in every direction."""
    blocks = (args.e + LANES - 1) // LANES
    i, block = task // blocks, task % blocks
    width = min(LANES, args.e - block * LANES)
    y = shift(pointer(args.scratch, wide), slot * args.scratch_size)
    for k in range(args.directions):
        _scan_backward(args, direction(args, k), storage, wide, i, block, width, y, k == 0, k == args.directions - 1)


@register_jitable(**PLAIN)
def _scan_backward(args, scan, storage, wide, i, block, width, y, is_first, is_last):
    """Write the gradients of one direction. The scans so far are added up in y (l, LANES), for the gradient of z."""
    l, n, channel = args.l, args.n, block * LANES
    per_token = n * LANES + GAP
    rows = apart(shift(y, l * LANES))
    states = apart(shift(y, (l + CHUNK * ROWS) * LANES))
    decays = apart(shift(y, (l + CHUNK * ROWS) * LANES + (CHUNK + 1) * per_token))
    rest = (l + CHUNK * ROWS) * LANES + (2 * CHUNK + 1) * per_token
    g, grad_A = apart(shift(y, rest)), apart(shift(y, rest + per_token))
    A2, weight = apart(shift(y, rest + 2 * per_token)), apart(shift(y, rest + 3 * per_token))
    bias, D = stack(LANES, wide), stack(LANES, wide)
    grad_D, grad_bias = stack(LANES, wide), stack(LANES, wide)
    longest, worst = stack(LANES, wide), stack(LANES, wide)
    for j in range(min(CHUNK, l)):
        prefetch_token(args, scan, storage, i, token_at(l - 1 - j, l, scan.reverse), channel)
    read_parameters(args, scan, wide, storage, channel, width, A2, weight, bias, D, longest)
    for k in range(n):
        for c in range(LANES):
            grad_A[k * LANES + c] = wide(0)
            at = ((i * args.e) + channel + c) * n + k
            g[k * LANES + c] = pointer(scan.grad_last, wide)[at] if scan.grad_last != 0 and c < width else wide(0)
    for c in range(LANES):
        grad_D[c] = wide(0)
        grad_bias[c] = wide(0)
    for chunk in range((l - 1) // CHUNK, -1, -1):
        start = chunk * CHUNK
        count = min(CHUNK, l - start)
        _read_start(args, scan, wide, i, chunk, channel, width, states)
        for c in range(LANES):
            worst[c] = wide(-np.inf)
        for j in range(count):
            t = token_at(start + j, l, scan.reverse)
            if is_last:
                prefetch_write(shift(pointer(args.grad_z, storage), (i * l + t) * args.e + channel))
            _read_token(args, scan, storage, wide, i, t, channel, width, weight, bias, shift(rows, j * ROWS * LANES),
                        worst, is_last)
        tame = is_tame(worst, longest)
        for j in range(count):
            t = token_at(start + j, l, scan.reverse)
            prefetch_write(shift(pointer(scan.grad_u, storage), (i * l + t) * args.e + channel))
            prefetch_write(shift(pointer(scan.grad_delta, storage), (i * l + t) * args.e + channel))
            _forward_again(args, scan, storage, wide, i, t, A2, D, tame, shift(y, t * LANES),
                           shift(rows, j * ROWS * LANES), shift(states, j * per_token), shift(decays, j * per_token),
                           is_first)
            if is_last and args.z != 0:
                _gate_backward(args, storage, i, t, channel, width, shift(y, t * LANES),
                               shift(rows, (j * ROWS + 4) * LANES))
        for j in range(count - 1, -1, -1):
            t = token_at(start + j, l, scan.reverse)
            prefetch_token(args, scan, storage, i, token_at(start + j - CHUNK, l, scan.reverse), channel)
            for k in range(j, n, CHUNK):
                prefetch_row(state_at_start(args, scan, wide, i, chunk - 1, k, channel))
            _token_backward(args, scan, storage, wide, i, t, block, width, A2, D, shift(rows, j * ROWS * LANES),
                            shift(states, j * per_token), shift(decays, j * per_token), g, grad_A, grad_D, grad_bias)
    for c in range(width):
        for k in range(n):
            pointer(scan.grad_A, wide)[(i * args.e + channel + c) * n + k] = grad_A[k * LANES + c]
        pointer(scan.grad_D, wide)[i * args.e + channel + c] = grad_D[c]
        pointer(scan.grad_bias, wide)[i * args.e + channel + c] = grad_bias[c]


@register_jitable(**PLAIN)
def _read_start(args, scan, wide, i, chunk, channel, width, s):
    for k in range(args.n):
        read_row(state_at_start(args, scan, wide, i, chunk, k, channel), shift(s, k * LANES), width)


@register_jitable(**PLAIN)
def _read_token(args, scan, storage, wide, i, t, channel, width, weight, bias, rows, worst, is_last):
    """Write to rows what does not depend on states: the first four, and for the last direction all."""
    arguments_apart()
    u, d, slope, grad_y = rows, shift(rows, LANES), shift(rows, 2 * LANES), shift(rows, 3 * LANES)
    grad_z, z = shift(rows, 4 * LANES), stack(LANES, wide)
    read_step(scan, args.r, storage, i, t, channel, width, weight, bias, d)
    for c in range(LANES):
        slope[c] = wide(1)
    if args.softplus:
        for c in range(LANES):
            slope[c] = softplus_slope(d[c])
            d[c] = softplus(d[c])
    for c in range(LANES):
        worst[c] = d[c] if d[c] > worst[c] else worst[c]
    read_row(shift(pointer(scan.u, storage), i * scan.u_b + t * scan.u_l + channel), u, width)
    read_row(shift(pointer(args.grad_out, storage), i * args.grad_out_b + t * args.grad_out_l + channel), grad_y, width)
    for c in range(LANES):
        grad_y[c] *= wide(args.scale)
    if args.z != 0:
        read_row(shift(pointer(args.z, storage), i * args.z_b + t * args.z_l + channel), z, width)
        for c in range(LANES):
            half = sigmoid(z[c])
            if is_last:
                grad_z[c] = grad_y[c] * (half + z[c] * half * (wide(1) - half))
            grad_y[c] *= z[c] * half


@register_jitable(**PLAIN)
def _forward_again(args, scan, storage, wide, i, t, A2, D, tame, y, rows, s, a, is_first):
    """Do token t as in the forward pass; keep the states before (s) and after it (behind s), and its decays."""
    arguments_apart()
    n, u, d = args.n, rows, shift(rows, LANES)
    x, total = stack(LANES, wide), stack(LANES, wide)
    for c in range(LANES):
        x[c] = u[c] * d[c]
        total[c] = u[c] * D[c]
    B, C = pointer(scan.B, storage), pointer(scan.C, storage)
    at_B, at_C = i * scan.B_b + t * scan.B_l, i * scan.C_b + t * scan.C_l
    k = 0
    while k + 4 <= n and tame:
        _four_states_again(shift(s, k * LANES), shift(s, (n + k) * LANES + GAP), shift(a, k * LANES),
                           shift(A2, k * LANES), d, x, total, shift(B, at_B + k), shift(C, at_C + k))
        k += 4
    if k < n:
        _other_states_again(shift(s, k * LANES), shift(s, (n + k) * LANES + GAP), shift(a, k * LANES),
                            shift(A2, k * LANES), d, x, total, shift(B, at_B + k), shift(C, at_C + k), n - k)
    if args.z != 0:
        for c in range(LANES):
            y[c] = total[c] if is_first else y[c] + total[c]


@register_jitable(**SELDOM)
def _other_states_again(before, after, a, A2, d, x, total, B, C, count):
    """Do `count` states of one token."""
    out_of_line()
    arguments_apart()
    for k in range(count):
        Bk, Ck = load(B, k), load(C, k)
        for c in range(LANES):
            at = k * LANES + c
            a[at] = exp2(d[c] * A2[at])
            after[at] = a[at] * before[at] + x[c] * Bk
            total[c] += after[at] * Ck


@register_jitable(**PLAIN)
def _four_states_again(before, after, a, A2, d, x, total, B, C):
    """Do four states of one token, where the steps are tame."""
    arguments_apart()
    B0, B1, B2, B3 = load(B, 0), load(B, 1), load(B, 2), load(B, 3)
    C0, C1, C2, C3 = load(C, 0), load(C, 1), load(C, 2), load(C, 3)
    for c in range(LANES):
        c1, c2, c3 = c + LANES, c + 2 * LANES, c + 3 * LANES
        a0, a1, a2, a3 = decay(d[c], A2[c]), decay(d[c], A2[c1]), decay(d[c], A2[c2]), decay(d[c], A2[c3])
        s0, s1 = a0 * before[c] + x[c] * B0, a1 * before[c1] + x[c] * B1
        s2, s3 = a2 * before[c2] + x[c] * B2, a3 * before[c3] + x[c] * B3
        a[c], a[c1], a[c2], a[c3] = a0, a1, a2, a3
        after[c], after[c1], after[c2], after[c3] = s0, s1, s2, s3
        total[c] += (s0 * C0 + s1 * C1) + (s2 * C2 + s3 * C3)


@register_jitable(**PLAIN)
def _token_backward(args, scan, storage, wide, i, t, block, width, A2, D, rows, s, a, g, grad_A, grad_D, grad_bias):
    """Take g, the gradient of the state after token t, to the state before it; write the gradients at token t."""
    arguments_apart()
    n, channel = args.n, block * LANES
    u, d, slope, grad_y = rows, shift(rows, LANES), shift(rows, 2 * LANES), shift(rows, 3 * LANES)
    x, grad_x, grad_d = stack(LANES, wide), stack(LANES, wide), stack(LANES, wide)
    for c in range(LANES):
        x[c] = u[c] * d[c]
        grad_x[c] = wide(0)
        grad_d[c] = wide(0)
    B, C = pointer(scan.B, storage), pointer(scan.C, storage)
    at_B, at_C = i * scan.B_b + t * scan.B_l, i * scan.C_b + t * scan.C_l
    share = ((block * args.b + i) * args.l + t) * n
    grad_B, grad_C, k = shift(pointer(scan.grad_B, wide), share), shift(pointer(scan.grad_C, wide), share), 0
    while k + 4 <= n:
        row = k * LANES
        _four_states_backward(shift(s, row), shift(s, row + n * LANES + GAP), shift(a, row), shift(A2, row), d, x,
                              grad_y, shift(B, at_B + k), shift(C, at_C + k), shift(g, row), grad_x, grad_d,
                              shift(grad_A, row), shift(grad_B, k), shift(grad_C, k))
        k += 4
    if k < n:
        row = k * LANES
        _other_states_backward(shift(s, row), shift(s, row + n * LANES + GAP), shift(a, row), shift(A2, row), d, x,
                               grad_y, shift(B, at_B + k), shift(C, at_C + k), shift(g, row), grad_x, grad_d,
                               shift(grad_A, row), shift(grad_B, k), shift(grad_C, k), n - k)
    for c in range(LANES):
        # A2 = A log2(e) took the place of A in the sum
        grad_d[c] = (grad_d[c] * wide(1 / LOG2E) + grad_x[c] * u[c]) * slope[c]
        grad_x[c] = grad_x[c] * d[c] + grad_y[c] * D[c]
        grad_D[c] += grad_y[c] * u[c]
        grad_bias[c] += grad_d[c]
    at = (i * args.l + t) * args.e + channel
    move_row(grad_x, shift(pointer(scan.grad_u, storage), at), width)
    move_row(grad_d, shift(pointer(scan.grad_delta, storage), at), width)


@register_jitable(**SELDOM)
def _other_states_backward(before, after, a, A2, d, x, grad_y, B, C, g, grad_x, grad_d, grad_A, grad_B, grad_C, count):
    """Do `count` states of one token."""
    out_of_line()
    arguments_apart()
    for k in range(count):
        row = k * LANES
        _state_backward(shift(before, row), shift(after, row), shift(a, row), shift(A2, row), d, x, grad_y, load(B, k),
                        load(C, k), shift(g, row), grad_x, grad_d, shift(grad_A, row), shift(grad_B, k),
                        shift(grad_C, k))


@register_jitable(**SUMS)
def _state_backward(before, after, a, A2, d, x, grad_y, B, C, g, grad_x, grad_d, grad_A, grad_B, grad_C):
    """Do one of the n states: add to grad_x, grad_d and grad_A (LANES,), write this block's share of grad_B, grad_C."""
    arguments_apart()
    sum_B, sum_C = F(0), F(0)
    for c in range(LANES):
        gradient = g[c] + grad_y[c] * C
        sum_C += grad_y[c] * after[c]
        sum_B += gradient * x[c]
        grad_x[c] += gradient * B
        g[c] = gradient * a[c]
        exponent = g[c] * before[c]
        grad_d[c] += exponent * A2[c]
        grad_A[c] += exponent * d[c]
    grad_B[0] = sum_B
    grad_C[0] = sum_C


@register_jitable(**SUMS)
def _four_states_backward(before, after, a, A2, d, x, grad_y, B, C, g, grad_x, grad_d, grad_A, grad_B, grad_C):
    """Do four states like `_state_backward`: d, x, grad_y and the two sums over states are read once for all."""
    arguments_apart()
    B0, B1, B2, B3 = load(B, 0), load(B, 1), load(B, 2), load(B, 3)
    C0, C1, C2, C3 = load(C, 0), load(C, 1), load(C, 2), load(C, 3)
    sum_B0 = sum_B1 = sum_B2 = sum_B3 = sum_C0 = sum_C1 = sum_C2 = sum_C3 = F(0)
    for c in range(LANES):
        c1, c2, c3 = c + LANES, c + 2 * LANES, c + 3 * LANES
        g0, g1 = g[c] + grad_y[c] * C0, g[c1] + grad_y[c] * C1
        g2, g3 = g[c2] + grad_y[c] * C2, g[c3] + grad_y[c] * C3
        sum_C0 += grad_y[c] * after[c]
        sum_C1 += grad_y[c] * after[c1]
        sum_C2 += grad_y[c] * after[c2]
        sum_C3 += grad_y[c] * after[c3]
        sum_B0 += g0 * x[c]
        sum_B1 += g1 * x[c]
        sum_B2 += g2 * x[c]
        sum_B3 += g3 * x[c]
        h0, h1, h2, h3 = g0 * a[c], g1 * a[c1], g2 * a[c2], g3 * a[c3]
        e0, e1, e2, e3 = h0 * before[c], h1 * before[c1], h2 * before[c2], h3 * before[c3]
        g[c], g[c1], g[c2], g[c3] = h0, h1, h2, h3
        grad_A[c] += e0 * d[c]
        grad_A[c1] += e1 * d[c]
        grad_A[c2] += e2 * d[c]
        grad_A[c3] += e3 * d[c]
        grad_x[c] += (g0 * B0 + g1 * B1) + (g2 * B2 + g3 * B3)
        grad_d[c] += (e0 * A2[c] + e1 * A2[c1]) + (e2 * A2[c2] + e3 * A2[c3])
    grad_B[0], grad_B[1], grad_B[2], grad_B[3] = sum_B0, sum_B1, sum_B2, sum_B3
    grad_C[0], grad_C[1], grad_C[2], grad_C[3] = sum_C0, sum_C1, sum_C2, sum_C3


@register_jitable(**PLAIN)
def _gate_backward(args, storage, i, t, channel, width, y, grad_z):
    """Write the gradient of z at one token: y (LANES,), the sum of all directions, times what grad_z (LANES,) holds."""
    arguments_apart()
    for c in range(LANES):
        grad_z[c] *= y[c]
    move_row(grad_z, shift(pointer(args.grad_z, storage), (i * args.l + t) * args.e + channel), width)
