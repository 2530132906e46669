"""The selective scan on the CPU, forward: one sequence and LANES channels a task, in all directions, gated once.

The state, (n, LANES), stays in the first cache and never goes to memory, but for one in CHUNK tokens that the backward
pass starts from. Fused with the recurrence are the projection of the step from rank r, its bias and softplus, the skip
D u, the sum of the directions, and the gate.
"""

__all__ = ["forward_scratch", "four_states", "scan_forward_task"]

from numba.extending import register_jitable

from .numba_math import PLAIN, decay, exp2, load, sigmoid, softplus
from .numba_rows import LANES, move_row, read_row
from .numba_runtime import apart, arguments_apart, pointer, shift, stack
from .numba_scan_parts import CHUNK, GAP, direction, is_tame, read_parameters, read_step, token_at


def forward_scratch(l: int, n: int, r: int) -> int:
    """Return how many numbers a thread needs: the sum of the directions, state and A, the projection of the step."""
    return (l + 2 * n + r) * LANES + 2 * GAP


@register_jitable(**PLAIN)
def scan_forward_task(args, slot, task, storage, wide):
    """Scan one sequence and one block of channels in every direction, and write the gated sum."""
    blocks = (args.e + LANES - 1) // LANES
    i, channel = task // blocks, task % blocks * LANES
    width = min(LANES, args.e - channel)
    y = shift(pointer(args.scratch, wide), slot * args.scratch_size)
    for k in range(args.l * LANES):
        y[k] = wide(0)
    for k in range(args.directions):
        _scan(args, direction(args, k), storage, wide, i, channel, width, y)
    _gate(args, storage, wide, i, channel, width, y)


@register_jitable(**PLAIN)
def _scan(args, scan, storage, wide, i, channel, width, y):
    """Add the scan of one direction, with its skip and without a gate, to y (l, LANES)."""
    arguments_apart()
    l, n, r = args.l, args.n, args.r
    s, A2 = apart(shift(y, l * LANES)), apart(shift(y, (l + n) * LANES + GAP))
    weight = apart(shift(y, (l + 2 * n) * LANES + 2 * GAP))
    bias, D, d, x, total = (stack(LANES, wide), stack(LANES, wide), stack(LANES, wide), stack(LANES, wide),
                            stack(LANES, wide))
    longest = stack(LANES, wide)
    read_parameters(args, scan, wide, storage, channel, width, A2, weight, bias, D, longest)
    u, B, C = pointer(scan.u, storage), pointer(scan.B, storage), pointer(scan.C, storage)
    for k in range(n * LANES):
        s[k] = wide(0)
    for step in range(l):
        t = token_at(step, l, scan.reverse)
        if scan.starts != 0 and step % CHUNK == 0:
            _write_state(pointer(scan.starts, wide), ((step // CHUNK * args.b + i) * n) * args.e + channel, 1, args.e,
                         n, width, s)
        read_step(scan, r, storage, i, t, channel, width, weight, bias, d)
        if args.softplus:
            for c in range(LANES):
                d[c] = softplus(d[c])
        read_row(shift(u, i * scan.u_b + t * scan.u_l + channel), x, width)
        for c in range(LANES):
            total[c] = y[t * LANES + c] + D[c] * x[c]
            x[c] *= d[c]
        at_B, at_C = i * scan.B_b + t * scan.B_l, i * scan.C_b + t * scan.C_l
        tame, k = is_tame(d, longest), 0
        while k + 4 <= n and tame:
            four_states(shift(s, k * LANES), shift(A2, k * LANES), d, x, total, shift(B, at_B + k), shift(C, at_C + k))
            k += 4
        while k < n:
            _one_state(shift(s, k * LANES), shift(A2, k * LANES), d, x, total, load(B, at_B + k), load(C, at_C + k))
            k += 1
        for c in range(LANES):
            y[t * LANES + c] = total[c]
    if scan.last != 0:
        _write_state(pointer(scan.last, wide), (i * args.e + channel) * n, n, 1, n, width, s)


@register_jitable(**PLAIN)
def _one_state(s, A2, d, x, total, B, C):
    """Take one of the n states of LANES channels one token on, s = 2^(d A2) s + x B, and add C s to the total."""
    arguments_apart()
    for c in range(LANES):
        s[c] = exp2(d[c] * A2[c]) * s[c] + x[c] * B
        total[c] += s[c] * C


@register_jitable(**PLAIN)
def four_states(s, A2, d, x, total, B, C):
    """Do the same for four states at once, where the steps are tame: d, x and the total are read once for all."""
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
def _write_state(memory, start, channel_stride, state_stride, n, width, s):
    for k in range(n):
        for c in range(width):
            memory[start + k * state_stride + c * channel_stride] = s[k * LANES + c]


@register_jitable(**PLAIN)
def _gate(args, storage, wide, i, channel, width, y):
    """Write scale * y * silu(z), or scale * y where there is no gate."""
    arguments_apart()
    z, out, scale = pointer(args.z, storage), pointer(args.out, storage), wide(args.scale)
    gate = stack(LANES, wide)
    for t in range(args.l):
        row, at = t * LANES, i * args.z_b + t * args.z_l + channel
        if args.z != 0:
            read_row(shift(z, at), gate, width)
            for c in range(LANES):
                y[row + c] *= gate[c] * sigmoid(gate[c])
        for c in range(LANES):
            y[row + c] *= scale
        move_row(shift(y, row), shift(out, (i * args.l + t) * args.e + channel), width)
