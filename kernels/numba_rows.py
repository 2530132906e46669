"""Rows of memory: LANES numbers that lie side by side, the unit that every kernel for the CPU works in."""

__all__ = ["LANES", "by_rows", "move_row", "prefetch_row", "prefetch_write", "read_row"]

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload, register_jitable
from torch import Tensor

from .numba_math import PLAIN, F, load, store
from .numba_runtime import prefetch, shift

# Known to the compiler, so that a loop over a row becomes straight vector code.
LANES = 64


@intrinsic
def _copy(typingctx, source, target):
    """Copy LANES numbers between arrays of one type: all are loaded, then stored, so they become vectors for certain.

    The compiler turns a loop that only copies into LANES single moves, before it thinks of vectors.
    """
    def generate(context, builder, signature, args):
        size = context.get_abi_sizeof(args[0].type.pointee)
        vector = ir.VectorType(args[0].type.pointee, LANES).as_pointer()
        numbers = builder.load(builder.bitcast(args[0], vector), align=size)
        builder.store(numbers, builder.bitcast(args[1], vector), align=size)
        return context.get_dummy_value()
    return types.void(source, target), generate


def _move_full(source, target):
    raise NotImplementedError("compiled code only")


@overload(_move_full, jit_options=PLAIN)
def _move_full_overload(source, target):
    def convert(source, target):
        for c in range(LANES):
            store(target, c, load(source, c))
    return (lambda source, target: _copy(source, target)) if source == target else convert


@register_jitable(**PLAIN)
def move_row(source, target, width):
    """Write the first `width` of LANES numbers of the source to the target, in the type of its numbers."""
    if width == LANES:
        _move_full(source, target)
    else:
        for c in range(width):
            store(target, c, load(source, c))


@register_jitable(**PLAIN)
def read_row(source, row, width):
    """Write `width` numbers of the source to row (LANES,), and 0 behind them: sums over LANES must not meet a NaN."""
    move_row(source, row, width)
    for c in range(width, LANES):
        row[c] = F(0)


@register_jitable(**PLAIN)
def prefetch_row(start):
    """Ask for the LANES numbers from the pointer `start` on, which may point anywhere: asking does no harm."""
    for c in range(0, LANES, 16):
        prefetch(shift(start, c), False)


@register_jitable(**PLAIN)
def prefetch_write(start):
    """Ask for memory that will be written: a store waits until its line is there, and few stores can wait."""
    for c in range(0, LANES, 16):
        prefetch(shift(start, c), True)


def by_rows(x: Tensor) -> Tensor:
    """Return x, or a copy of it if the numbers of a row do not lie side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()
