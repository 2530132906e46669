"""The floor of the scan on a CPU: its exponentials and multiply-adds, and nothing else.

The same vector code as in the kernel updates one state in the first cache again and again: one product, one exponential
and two multiply-adds a state, channel and token. No tensor is read or written, no step is computed, nothing is gated.
A scan cannot be faster on the same threads without a cheaper exponential.
"""

__all__ = ["scan_floor"]

import functools

import numpy as np
from numba.extending import register_jitable

from ..kernels.numba_math import PLAIN
from ..kernels.numba_rows import LANES
from ..kernels.numba_runtime import (
    TEAM,
    apart,
    compile_kernel,
    pack,
    pointer,
    run,
    scratch,
    scratch_slots,
    shift,
    stack,
)
from ..kernels.numba_scan_forward import four_states
from ..kernels.numba_scan_parts import GAP

ARGS = np.dtype([*TEAM, *((name, np.int64) for name in ("l", "n", "scratch", "scratch_size"))])


@register_jitable(**PLAIN)
def _floor_task(args, slot, task, storage, wide):
    n = args.n
    memory = shift(pointer(args.scratch, wide), slot * args.scratch_size)
    s, A2, B = apart(memory), apart(shift(memory, n * LANES + GAP)), apart(shift(memory, 2 * (n * LANES + GAP)))
    C = apart(shift(B, n + GAP))
    d, x, total = stack(LANES, wide), stack(LANES, wide), stack(LANES, wide)
    for c in range(LANES):
        d[c] = wide(0.1)
        x[c] = wide(0.1)
        total[c] = wide(0)
    for k in range(n * LANES):
        A2[k] = wide(-1)
        s[k] = wide(0)
    for k in range(n):
        B[k] = wide(1)
        C[k] = wide(1)
    for _ in range(args.l):
        for k in range(0, n, 4):
            four_states(shift(s, k * LANES), shift(A2, k * LANES), d, x, total, shift(B, k), shift(C, k))
    for c in range(LANES):
        # Written, or the compiler would leave everything out.
        s[c] = total[c]


@functools.cache
def _kernel():
    return compile_kernel(_floor_task, ARGS, np.float32, np.float32)


def scan_floor(b: int, l: int, e: int, n: int) -> None:
    """Do the exponentials and multiply-adds of a scan of these sizes, on the threads that a scan would use.

    e is taken as a multiple of LANES and n as one of 4. Source: design of `kernels/numba_scan_forward.py`.
    """
    tasks = b * e // LANES
    threads = scratch_slots(tasks)
    _memory, place = scratch(threads, 3 * (n * LANES + GAP))
    run(_kernel(), pack(ARGS, {"tasks": tasks, "l": l, "n": n, **place}), threads)
