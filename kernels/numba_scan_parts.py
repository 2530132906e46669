"""What the forward and the backward pass of the scan on the CPU share: the record they are given, and how it is read.

A task is one sequence and LANES channels that lie side by side in memory. Every inner loop runs over these channels.
The compiler knows their number, and makes straight vector code of the loop.
"""

__all__ = ["CHUNK", "GAP", "SCAN_ARGS", "direction", "is_tame", "prefetch_token", "read_parameters", "read_step",
           "state_at_start", "token_at"]

import numpy as np
from numba.extending import register_jitable

from .numba_math import LOG2E, PLAIN, exp, load
from .numba_rows import LANES, prefetch_row, read_row
from .numba_runtime import TEAM, arguments_apart, pointer, shift, stack

# Tokens between two kept states. The backward pass holds states and decays of one chunk, which fit the second cache.
CHUNK = 16
# Unused numbers between arrays whose sizes are powers of two: without them the same places of all arrays would compete
# for the same lines of the cache.
GAP = 80
# Steps longer than this are left to the careful code, whatever A.
MAX_STEP = 1e4

# Addresses (0: there is no such tensor), and strides in numbers: _b between sequences, _l between tokens.
DIRECTION = np.dtype([(name, np.int64) for name in (
    "u", "u_b", "u_l", "delta", "delta_b", "delta_l", "B", "B_b", "B_l", "C", "C_b", "C_l", "A", "D", "delta_bias",
    "delta_weight", "reverse", "starts", "last", "grad_last", "grad_u", "grad_delta", "grad_B", "grad_C", "grad_A",
    "grad_D", "grad_bias")])
SCAN_ARGS = np.dtype([*TEAM, *((name, np.int64) for name in (
    "b", "l", "e", "n", "r", "directions", "softplus", "log_A", "scratch", "scratch_size", "z", "z_b", "z_l", "out",
    "grad_out", "grad_out_b", "grad_out_l", "grad_z")), ("scale", np.float64), ("first", DIRECTION),
    ("second", DIRECTION)])


@register_jitable(**PLAIN)
def direction(args, k):
    """Return the record of direction k."""
    return args.first if k == 0 else args.second


@register_jitable(**PLAIN)
def token_at(step, length, reverse):
    """Return which token a direction meets as number `step`."""
    return length - 1 - step if reverse else step


@register_jitable(**PLAIN)
def prefetch_token(args, scan, storage, i, t, channel):
    """Ask for the rows of token t a chunk before they are read: they lie too far apart for the processor to guess."""
    prefetch_row(shift(pointer(scan.u, storage), i * scan.u_b + t * scan.u_l + channel))
    if args.r == 0:
        prefetch_row(shift(pointer(scan.delta, storage), i * scan.delta_b + t * scan.delta_l + channel))
    if args.z != 0:
        prefetch_row(shift(pointer(args.z, storage), i * args.z_b + t * args.z_l + channel))
    if args.grad_out != 0:
        prefetch_row(shift(pointer(args.grad_out, storage), i * args.grad_out_b + t * args.grad_out_l + channel))


@register_jitable(**PLAIN)
def read_parameters(args, scan, wide, storage, channel, width, A2, weight, bias, D, longest):
    """Read what does not change from token to token, for `width` channels from `channel` on; the rest becomes 0.

    Writes A2 = A log2(e) (n, LANES), the rows of the step's projection (r, LANES), bias and D (LANES,), and `longest`
    (LANES,): up to this step all exponents lie between -126 and 0, which `decay` can do. It is -inf where a decay can
    be above 1: with a positive A, or with steps that may be negative. With `log_A` memory holds log(-A) in place of A.
    """
    arguments_apart()
    A, lowest, highest = pointer(scan.A, wide), stack(LANES, wide), stack(LANES, wide)
    for c in range(LANES):
        lowest[c] = highest[c] = wide(0)
        for k in range(args.n):
            A2[k * LANES + c] = A[(channel + c) * args.n + k] if c < width else wide(0)
    for k in range(args.n):
        for c in range(LANES):
            a = A2[k * LANES + c]
            a = wide(LOG2E) * (-exp(a) if args.log_A else a)
            A2[k * LANES + c] = a
            lowest[c], highest[c] = min(lowest[c], a), max(highest[c], a)
    for c in range(LANES):
        bound = wide(-126) / min(lowest[c], wide(-126 / MAX_STEP))
        longest[c] = bound if args.softplus and highest[c] <= wide(0) else wide(-np.inf)
    for c in range(LANES):
        bias[c] = pointer(scan.delta_bias, wide)[channel + c] if scan.delta_bias != 0 and c < width else wide(0)
        D[c] = pointer(scan.D, wide)[channel + c] if scan.D != 0 and c < width else wide(0)
    for k in range(args.r):
        for c in range(LANES):
            at = (channel + c) * args.r + k
            weight[k * LANES + c] = load(pointer(scan.delta_weight, storage), at) if c < width else wide(0)


@register_jitable(**PLAIN)
def state_at_start(args, scan, wide, i, chunk, k, channel):
    """Return the pointer to what state k was at the start of a chunk, for the channels (e,) from `channel` on."""
    return shift(pointer(scan.starts, wide), ((chunk * args.b + i) * args.n + k) * args.e + channel)


@register_jitable(**PLAIN)
def is_tame(d, longest):
    """Return whether no step of the row d is longer than `longest`. A NaN is tame: it comes out as NaN."""
    beyond = 0
    for c in range(LANES):
        beyond += d[c] > longest[c]
    return beyond == 0


@register_jitable(**PLAIN)
def read_step(scan, r, storage, i, t, channel, width, weight, bias, d):
    """Put delta + bias of token t, the step before the softplus, into d (LANES,)."""
    arguments_apart()
    delta, at = pointer(scan.delta, storage), i * scan.delta_b + t * scan.delta_l
    if r == 0:
        read_row(shift(delta, at + channel), d, width)
        for c in range(LANES):
            d[c] += bias[c]
    else:
        for c in range(LANES):
            d[c] = bias[c]
        k = 0
        while k + 4 <= r:
            x0, x1 = load(delta, at + k), load(delta, at + k + 1)
            x2, x3 = load(delta, at + k + 2), load(delta, at + k + 3)
            rows = shift(weight, k * LANES)
            for c in range(LANES):
                d[c] += (x0 * rows[c] + x1 * rows[c + LANES]) + (x2 * rows[c + 2 * LANES] + x3 * rows[c + 3 * LANES])
            k += 4
        while k < r:
            x = load(delta, at + k)
            for c in range(LANES):
                d[c] += x * weight[k * LANES + c]
            k += 1
