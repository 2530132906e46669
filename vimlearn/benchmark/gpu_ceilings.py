"""What a GPU can do at most, measured: bytes moved a second, and exponentials a second.

A scan reads u, delta, B, C and z once, writes its output once, and takes one exponential a state. It cannot be faster
than the larger of the two times.
"""

__all__ = ["bandwidth", "exponentials", "scan_floor_seconds"]

import torch
import triton
import triton.language as tl

STEPS = 256


@triton.jit
def _exponentials_kernel(x, steps, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at)
    for _ in range(steps):
        # Below 0 on purpose: the value stays between 0 and 1, whatever the number of steps.
        value = tl.exp2(-value)
    tl.store(x + at, value)


def seconds(call, repeats: int = 20) -> float:
    """Return the fastest of several runs of `call` on the current GPU, by its own clock."""
    call()
    fastest = float("inf")
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        fastest = min(fastest, start.elapsed_time(end) / 1e3)
    return fastest


def bandwidth() -> float:
    """Return bytes a second, read and written, of a copy that no cache holds."""
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source))


def exponentials() -> float:
    """Return exponentials a second of a kernel that does nothing else, in registers."""
    x = torch.rand(2**24, device="cuda")
    block = 1024
    return x.numel() * STEPS / seconds(lambda: _exponentials_kernel[(x.numel() // block,)](x, STEPS, BLOCK=block))


def scan_floor_seconds(b: int, l: int, e: int, n: int, size: int, directions: int, bytes_a_second: float,
                       exponentials_a_second: float) -> float:
    """Return the time below which no scan forward can be: one gate and output, the rest once a direction.

    size: bytes of a number in memory.
    """
    numbers = directions * (2 * e + 2 * n) + 2 * e
    moved = b * l * numbers * size / bytes_a_second
    return max(moved, directions * b * l * e * n / exponentials_a_second)
