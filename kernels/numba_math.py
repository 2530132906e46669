"""Arithmetic that LLVM turns into vector code: numbers in memory, exponential, softplus, sigmoid.

A loop that calls a library's `exp` is not vectorised, so the float32 forms are polynomials. The float64 forms call the
library: they are there to be exact, for gradient checks, and are slow.
"""

__all__ = ["LOG2E", "PLAIN", "SELDOM", "SUMS", "decay", "exp", "exp2", "load", "sigmoid", "softplus", "softplus_slope",
           "store"]

import math

import numpy as np
from numba import types
from numba.extending import overload, register_jitable

from .numba_runtime import as_uint, as_wide, from_half, multiply_add, to_half

# A product and a sum may become one instruction. Nothing may be reordered, or the rounding trick of `exp2` breaks.
PLAIN = {"fastmath": {"contract", "nsz"}, "error_model": "numpy", "forceinline": True}
# The same for code that is seldom met: with `out_of_line` it stays out of its callers.
SELDOM = PLAIN | {"forceinline": False}
# Sums over channels may be reordered, in the same way on every run: a vector of partial sums, then their sum.
SUMS = {"fastmath": {"contract", "nsz", "reassoc"}, "error_model": "numpy", "forceinline": True}

F = np.float32
LOG2E = 1.4426950408889634
LN2 = 0.6931471805599453
# Constants are float32 where a float64 one would turn the arithmetic around it into float64.
# 1.5 * 2^23: float32 numbers near it are 1 apart, so adding it rounds to a whole number.
MAGIC = F(12582912.0)
# 2^f = 1 + f (P0 + P1 f + ...) for |f| <= 1/2, relative error at most 7.1e-8.
P0, P1, P2, P3, P4 = F(0.69314719), F(0.24022233), F(0.05550483), F(0.00967178), F(0.00133424)
# log(1 + w) = w (Q0 + Q1 w + ...) for 0 <= w <= 1, relative error at most 1.9e-8.
Q0, Q1, Q2, Q3, Q4 = F(0.99999998), F(-0.4999932), F(0.33315927), F(-0.24822132), F(0.19037219)
Q5, Q6, Q7, Q8 = F(-0.13536584), F(0.07690007), F(-0.02876573), F(0.00506177)


def load(memory, i):
    """Return number i as float32 or float64; uint16 in memory is bfloat16, int16 is float16."""
    raise NotImplementedError("compiled code only")


@overload(load, jit_options=PLAIN)
def _load(memory, i):
    if memory.dtype == types.uint16:
        return lambda memory, i: as_wide(np.uint32(memory[i]) << np.uint32(16))
    if memory.dtype == types.int16:
        return lambda memory, i: from_half(memory[i])
    return lambda memory, i: memory[i]


def store(memory, i, x):
    """Write x as number i, rounded to the nearest, ties to even; uint16 in memory is bfloat16, int16 is float16."""
    raise NotImplementedError("compiled code only")


@overload(store, jit_options=PLAIN)
def _store(memory, i, x):
    def plain(memory, i, x):
        memory[i] = x

    def rounded(memory, i, x):
        bits = as_uint(x)
        up = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        # Rounded up like a number, the bits of a NaN could become those of an infinity.
        memory[i] = np.uint16(up if x == x else np.uint32(0x7FC0))

    def half(memory, i, x):
        memory[i] = to_half(x)
    return {types.uint16: rounded, types.int16: half}.get(memory.dtype, plain)


def decay(d, A2):
    """Return 2^(d A2) for -126 <= d A2 <= 0."""
    raise NotImplementedError("compiled code only")


def exp2(t):
    """Return 2^t."""
    raise NotImplementedError("compiled code only")


@register_jitable(**PLAIN)
def _power(t):
    """Return 2^t for -126 <= t <= 128: a polynomial for the fraction, the whole part added to the exponent bits."""
    shifted = t + MAGIC
    return _scaled(t - (shifted - MAGIC), shifted)


@register_jitable(**PLAIN)
def _scaled(f, shifted):
    p = ((((P4 * f + P3) * f + P2) * f + P1) * f + P0) * f + F(1)
    return as_wide(as_uint(p) + (as_uint(shifted) << np.uint32(23)))


@overload(decay, jit_options=PLAIN)
def _decay(d, A2):
    if d == types.float64:
        return lambda d, A2: math.exp(d * A2 * LN2)

    def fused(d, A2):
        # Twice the product inside a sum is cheaper than the product once and two sums.
        shifted = multiply_add(d, A2, MAGIC)
        return _scaled(multiply_add(d, A2, MAGIC - shifted), shifted)
    return fused


# The comparisons are false for NaN, which passes through them.
@overload(exp2, jit_options=PLAIN)
def _exp2(t):
    if t == types.float64:
        return lambda t: math.exp(t * LN2)

    def clamped(t):
        t = F(128) if t > F(128) else t
        return _power(F(-126) if F(-126) > t else t)
    return clamped


def exp(x):
    """Return e^x."""
    raise NotImplementedError("compiled code only")


@overload(exp, jit_options=PLAIN)
def _exp(x):
    if x == types.float64:
        return lambda x: math.exp(x)
    return lambda x: exp2(x * F(LOG2E))


def _exp_of_minus(x):
    raise NotImplementedError("compiled code only")


@overload(_exp_of_minus, jit_options=PLAIN)
def _exp_of_minus_overload(x):
    if x == types.float64:
        return lambda x: math.exp(-abs(x))

    def clamped(x):
        t = abs(x) * F(-LOG2E)
        return _power(F(-126) if F(-126) > t else t)
    return clamped


@register_jitable(**PLAIN)
def sigmoid(x):
    """Return 1 / (1 + exp(-x)), in float32 at least 2^-126."""
    w = _exp_of_minus(x)
    return (F(1) if x > F(0) else w) / (F(1) + w)


def _log1p(w):
    raise NotImplementedError("compiled code only")


@overload(_log1p, jit_options=PLAIN)
def _log1p_overload(w):
    if w == types.float64:
        return lambda w: math.log1p(w)

    def polynomial(w):
        w2 = w * w
        w4 = w2 * w2
        low = (Q3 * w + Q2) * w2 + (Q1 * w + Q0)
        high = (Q7 * w + Q6) * w2 + (Q5 * w + Q4)
        return w * ((Q8 * w4 + high) * w4 + low)
    return polynomial


def softplus(p):
    """Return log(1 + exp(p)), and p itself above 20, as PyTorch does."""
    raise NotImplementedError("compiled code only")


@overload(softplus, jit_options=PLAIN)
def _softplus(p):
    if p == types.float64:
        return lambda p: p if p > 20 else max(p, 0.0) + math.log1p(math.exp(-abs(p)))
    # Above 20 the second term is too small to change p, so that nothing has to be chosen.
    return lambda p: (p if p > F(0) else F(0)) + _log1p(_exp_of_minus(p))


@register_jitable(**PLAIN)
def softplus_slope(p):
    """Return the derivative of `softplus`, exact also where p is very negative and the step small."""
    return F(1) if p > F(20) else sigmoid(p)
