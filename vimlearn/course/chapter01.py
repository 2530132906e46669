"""Checks of chapter 01: from a differential equation to a recurrence and to a convolution."""

import math

import torch
from torch import Tensor

from vimlearn.course.exercise import Wrong, call, exercise, gradients, match, parts
from vimlearn.ssm import convolution_kernel, discretize


def _vector(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


@exercise("1.1", "One Euler step")
def euler_step(answer):
    """Check s + delta (a s + b x) on two sets of plain numbers."""
    for s, a, b, x, delta in ((3.0, -0.4, 2.0, 1.1, 0.25), (-1.7, -1.3, 0.7, 2.9, 0.6)):
        slope = a * s + b * x
        match(
            call(answer, s, a, b, x, delta),
            s + delta * slope,
            name="the new level",
            rtol=1e-9,
            mistakes={
                "this is the change alone; add it to the old level s": delta * slope,
                "the inflow b x is missing: only the leak is there": s + delta * a * s,
                "the rate a of the leak is missing: the slope is a s + b x": s + delta * (s + b * x),
                "this averages the slopes at start and end; Euler takes the one at the start":
                    (s * (1 + delta * a / 2) + delta * b * x) / (1 - delta * a / 2),
                "this takes the slope in the middle of the step; Euler takes the one at the start":
                    s + delta * (a * (s + delta / 2 * slope) + b * x),
                "the leak follows the exponential; Euler keeps the slope of the start": (
                    math.exp(delta * a) * s + delta * b * x
                ),
                "the factor b is missing: the tap raises the level by b x, not by x": s + delta * (a * s + x),
                "the leak has the wrong sign: a is negative already, so the slope is a s + b x":
                    s + delta * (b * x - a * s),
                "the step goes back in time: add delta times the slope, do not subtract it": s - delta * slope,
                "delta multiplies the leak, but the inflow b x is left without it": s + delta * a * s + b * x,
                "delta multiplies the inflow, but the leak a s is left without it": s + a * s + delta * b * x,
                "delta is forgotten: this is a step of one whole minute": s + slope,
                "this is the slope; multiply it by delta and add it to s": slope,
                "this takes the slope at the new level; Euler takes it at the old one":
                    (s + delta * b * x) / (1 - delta * a),
                "this is the exact level; Euler keeps the slope of the start for the whole step":
                    math.exp(delta * a) * s + math.expm1(delta * a) / a * b * x,
            },
        )
    return "the new level is the old one plus delta times the slope at the old one."


@exercise("1.2", "The longest step Euler survives")
def euler_limits(answer):
    """Check the steps 1 / 16 and 2 / 16 for a = -16."""
    smooth, stable = _two_numbers(answer, "smooth", "stable")
    if smooth == 2 / 16 and stable == 1 / 16:
        raise Wrong("the two are exchanged: the state overshoots (1 + delta a < 0) before it explodes")
    match(smooth, 1 / 16, name="smooth", mistakes={
        "smooth is a length of time, so it is positive: a is negative, delta is not": -1 / 16,
        "smooth: at that step 1 + delta a is already -1; ask where it is 0": 2 / 16,
        "smooth: that is the limit for a = -1; here a is -16": 1.0,
        "smooth: divide by 16, do not multiply": 16.0,
        "smooth: that is the limit for the tank, a = -0.5; here a is -16": 2.0,
    })
    match(stable, 2 / 16, name="stable", mistakes={
        "stable is a length of time, so it is positive: a is negative, delta is not": -2 / 16,
        "stable: there 1 + delta a is 0, which is still stable; ask where it is -1": 1 / 16,
        "stable: that is the limit for a = -1; here a is -16": 2.0,
        "stable: that is the limit for the tank, a = -0.5; here a is -16": 4.0,
    })
    return "1 + delta a is 0 at 1/16, where it starts to overshoot, and -1 at 2/16, beyond which it grows for ever."


@exercise("1.3", "The bilinear step")
def bilinear_step(answer):
    """Check both parts of the bilinear rule for three states at once."""
    a, b, delta = _vector(-0.7, -1.9, -3.1), _vector(1.3, -0.6, 2.2), 0.4
    z = delta * a
    A_bar, B_bar = parts(call(answer, a, b, delta), "A_bar", "B_bar")
    expected_A, expected_B = discretize(a, b, delta, "bilinear")
    match(A_bar, expected_A, name="A_bar", mistakes={
        "A_bar is Euler's 1 + delta a; the slope at the end of the step is missing": 1 + z,
        "A_bar takes only the slope at the end; average it with the one at the start": 1 / (1 - z),
        "A_bar is upside down: (1 + z/2) belongs on top, for the old level": (1 - z / 2) / (1 + z / 2),
        "A_bar counts each slope in full; each counts for half a step, delta / 2": (1 + z) / (1 - z),
        "A_bar is zero-order hold's exp(delta a), not the bilinear fraction": z.exp(),
        "A_bar lacks the division by 1 - z/2, which comes from the new level on the right": 1 + z / 2,
        "A_bar is 1 everywhere: a sign or a pair of brackets is off; it is (1 + z/2) / (1 - z/2)": torch.ones_like(z),
        "A_bar forgets delta: z is delta a": (1 + a / 2) / (1 - a / 2),
        "the two results are exchanged: return A_bar first, then B_bar": expected_B,
    })
    match(B_bar, expected_B, name="B_bar", mistakes={
        "B_bar is Euler's delta b; it is divided by 1 - z/2 as well": delta * b,
        "B_bar forgets delta: the tap runs for delta minutes": b / (1 - z / 2),
        "B_bar lacks the factor b": delta / (1 - z / 2),
        "B_bar is halved; the tap runs for the whole step, at both ends alike": delta / 2 * b / (1 - z / 2),
        "B_bar has the wrong sign in the denominator: it is 1 - z/2": delta * b / (1 + z / 2),
        "B_bar is zero-order hold's; the bilinear one is delta b / (1 - z/2)": torch.expm1(z) / a * b,
    })
    return "both slopes count for half a step, and solving for the new level divides everything by 1 - z/2."


@exercise("1.4", "A zero-order hold that never breaks")
def zero_order_hold(answer):
    """Check ordinary numbers first, then tiny steps in float32, then a = 0 in values and gradients."""
    a, b, delta = _vector(-0.7, -1.9, -3.1), _vector(1.3, -0.6, 2.2), 0.4
    A_bar, B_bar = parts(call(answer, a, b, delta), "A_bar", "B_bar")
    _match_zero_order_hold(A_bar, B_bar, a, b, delta)
    a, b, delta = _vector(-1.0, -2.0, dtype=torch.float32), _vector(1.3, -0.6, dtype=torch.float32), 1e-8
    _, B_bar = parts(call(answer, a, b, delta), "A_bar", "B_bar")
    match(B_bar, discretize(a, b, delta, "zoh")[1], name="B_bar", atol=0.0, mistakes={
        "right for large steps, but exp(z) - 1 rounds to 0 in float32 at z = 1e-8; torch.expm1 does not":
            lambda: (torch.exp(delta * a) - 1) / a * b,
    })
    _match_small(answer)
    _match_at_zero(answer)
    return "exact for a held input, accurate for tiny steps, and finite at a = 0 in values and gradients."


def _match_small(answer):
    a, b = _vector(-2e-6, -1e-4, -1e-2, -0.1, -0.19, dtype=torch.float32), torch.ones(5)
    _, B_bar = parts(call(answer, a, b, 1.0), "A_bar", "B_bar")
    match(B_bar, discretize(a, b, 1.0, "zoh")[1], name="B_bar for small z in float32", mistakes={
        "exp(z) - 1 has lost digits at z = -2e-6 in float32, 1 percent of the result; torch.expm1 keeps them":
            lambda: (torch.exp(a) - 1) / a * b,
        "1 + z/2 stands in for expm1(z) / z too far out: at z = -0.1 it is wrong by 0.2 percent; keep it to z near 0":
            lambda: torch.where(a.abs() < 0.15, 1 + a / 2, torch.expm1(a) / a) * b,
    })


def _match_at_zero(answer):
    a, b, delta = _vector(-0.5, 0.0), _vector(1.3, 2.2), torch.tensor(0.4, dtype=torch.float64)
    A_bar, B_bar = parts(call(answer, a, b, 0.4), "A_bar", "B_bar")
    match(A_bar, torch.exp(0.4 * a), name="A_bar where a is 0", mistakes={
        "A_bar is 0 at a = 0; a tank without a hole keeps everything: exp(0) = 1":
            torch.exp(0.4 * a) * _vector(1.0, 0.0),
    })
    right = discretize(a, b, 0.4, "zoh")[1]
    match(B_bar, right, name="B_bar", mistakes={
        "at a = 0 this divides 0 by 0; a tank without a hole gains exactly delta b": right * _vector(1.0, math.nan),
        "at a = 0 the input is lost; a tank without a hole gains exactly delta b": right * _vector(1.0, 0.0),
        "at a = 0 the factor delta is missing; a tank without a hole gains delta b": right / _vector(1.0, 0.4),
        "at a = 0 the factor b is missing; a tank without a hole gains delta b": right / _vector(1.0, 2.2),
    })
    got = gradients(answer, a, b, delta)
    if any(grad.isnan().any() for grad in got):
        raise Wrong("the values are right, but the gradient at a = 0 is NaN: torch.where differentiates the branch "
                    "it throws away as well; put a harmless number into the division first")
    wanted = gradients(lambda a, b, delta: discretize(a, b, delta, "zoh"), a, b, delta)
    flat = gradients(lambda a, b, delta: (torch.exp(delta * a), torch.where(a == 0, delta * b, right)), a, b, delta)
    if torch.isclose(got[0][1], flat[0][1]):
        raise Wrong("the values are right, but at a = 0 B_bar has no slope in a: a constant 1 cannot have one; "
                    "expm1(z) / z starts as 1 + z / 2")
    match(got, wanted, name=("da", "db", "ddelta"))


def _match_zero_order_hold(A_bar, B_bar, a, b, delta):
    z = delta * a
    match(A_bar, z.exp(), name="A_bar", mistakes={
        "A_bar has the wrong sign in the exponent: a is negative already, and A_bar must be below 1": (-z).exp(),
        "A_bar forgets delta: it decays for delta minutes, not for one": a.exp(),
        "A_bar is Euler's 1 + delta a, only the start of the exponential": 1 + z,
        "A_bar is the bilinear fraction, not the exponential": (1 + z / 2) / (1 - z / 2),
        "A_bar is exp(z) - 1; the - 1 belongs into B_bar only": z.expm1(),
    })
    match(B_bar, z.expm1() / a * b, name="B_bar", mistakes={
        "B_bar is delta b, which is Euler's (and Vim's); here the input leaks during the step too": delta * b,
        "B_bar lacks 1/a: the integral of exp(a r) is exp(a r) / a": z.expm1() * b,
        "B_bar lacks the factor b": z.expm1() / a,
        "B_bar has the wrong sign: it is (exp(z) - 1) / a, negative over negative": -z.expm1() / a * b,
        "B_bar is divided by z = delta a; dividing by a alone keeps the factor delta": z.expm1() / z * b,
        "B_bar has one delta too many: expm1(z) / a already holds the step": delta * z.expm1() / a * b,
        "B_bar lacks the - 1, the lower end of the integral": z.exp() / a * b,
        "B_bar is multiplied by a; the integral divides by it": z.expm1() * a * b,
        "B_bar is the bilinear one, delta b / (1 - z/2)": delta * b / (1 - z / 2),
    })


@exercise("1.5", "How the step learns")
def step_gradient(answer):
    """Check d A_bar / d delta and d B_bar / d delta of zero-order hold against autograd through the package."""
    a, b, delta = _vector(-0.7, -1.9, -3.1), _vector(1.3, -0.6, 2.2), 0.4
    z = delta * a
    dA_bar, dB_bar = parts(call(answer, a, b, delta), "dA_bar", "dB_bar")
    expected_A, expected_B = _derivatives(a, b, delta)
    match(dA_bar, expected_A, name="dA_bar", mistakes={
        "dA_bar lacks the inner derivative: exp(delta a) differentiated by delta brings down a factor a": z.exp(),
        "dA_bar is a alone, the derivative of Euler's 1 + delta a": a,
        "dA_bar brings down delta; that is the derivative by a, not by delta": delta * z.exp(),
        "dA_bar has the wrong sign: a is negative already": -a * z.exp(),
    })
    match(dB_bar, expected_B, name="dB_bar", mistakes={
        "dB_bar is b, the derivative of Vim's delta b; here it is zero-order hold's": b,
        "dB_bar still has the - 1; it is a constant, and its derivative is 0": (a * z.exp() - 1) / a * b,
        "dB_bar is the derivative by a, not by delta": (delta * a * z.exp() - z.expm1()) / a.square() * b,
        "dB_bar is B_bar itself; differentiate it": z.expm1() / a * b,
        "dB_bar lacks the factor b": z.exp(),
        "dB_bar has a factor a too many: the a that comes down cancels the 1/a": a * z.exp() * b,
        "dB_bar still has its 1/a; the a that comes down cancels it": z.exp() / a * b,
        "dB_bar keeps the - 1, whose derivative is 0": z.expm1() * b,
    })
    return "a longer step leaks more, a A_bar, and adds one slice of input that is as old as the step, A_bar b."


def _derivatives(a: Tensor, b: Tensor, delta: float) -> tuple[Tensor, Tensor]:
    # One step a state, so that the sum's gradient holds each state's own derivative.
    step = torch.full_like(a, delta).requires_grad_()
    pair = discretize(a[:, None], b[:, None], step, "zoh")
    return tuple(torch.autograd.grad(part.sum(), step, retain_graph=True)[0] for part in pair)


@exercise("1.6", "How far back a state remembers")
def memory(answer):
    """Check 1 / (delta |a|) tokens, and its inverse for 197 tokens."""
    tokens, step = _two_numbers(answer, "tokens", "step")
    match(tokens, 10.0, name="tokens", mistakes={
        "tokens: that is 1/|a|, a time; divide it by delta to count tokens": 0.2,
        "tokens: that is delta |a|; what is asked is its inverse": 0.1,
        "tokens: that is 1/delta, right for a = -1; this state forgets five times as fast": 50.0,
        "tokens: multiplied by |a| instead of divided; a larger |a| forgets faster": 250.0,
        "tokens: that is the time to one half, too short by the factor ln 2; the question is 1/e": 10 * math.log(2),
        "tokens: a count is positive; delta a is negative, take its size": -10.0,
    })
    match(step, 1 / 197, name="step", mistakes={
        "step: that is the number of tokens; the step is one over it": 197.0,
        "step: that is for a = -5; the slowest state has a = -1": 1 / (5 * 197),
        "step: that is for the time to one half; the question is 1/e": math.log(2) / 197,
        "step: delta is positive; a carries the minus sign": -1 / 197,
    })
    return "a state remembers for 1 / (delta |a|) tokens: the step sets the scale of all sixteen at once."


@exercise("1.7", "The kernel, unrolled")
def unrolled_kernel(answer):
    """Check K[j] = sum over n of C A_bar^j B_bar, at length 1, 2 and 6."""
    A_bar, B_bar, C = _vector(0.9, 0.6, -0.3), _vector(0.5, 1.4, -0.8), _vector(1.1, -0.7, 0.4)
    for length in (1, 2, 6):
        kernel = convolution_kernel(A_bar, B_bar, C, length)
        powers = A_bar ** torch.arange(length, dtype=torch.float64)[:, None]
        match(call(answer, A_bar, B_bar, C, length), kernel, name="K", mistakes={
            "off by one: K starts at A_bar^1; an input reaches the output in the same step, so K[0] = C B_bar":
                (powers * A_bar) @ (B_bar * C),
            "K lacks B_bar": powers @ C,
            "K lacks C": powers @ B_bar,
            "K is backwards: K[0] is the newest input's weight, without any A_bar": kernel.flip(0),
            "K is a running sum, the response to a constant input; a single 1 goes in only once": kernel.cumsum(0),
            "K keeps the states apart; the output adds them up": powers * (B_bar * C),
            "K multiplies A_bar by j; the decay is a power, A_bar ** j":
                (A_bar * torch.arange(length, dtype=torch.float64)[:, None]) @ (B_bar * C),
        })
    match(
        gradients(lambda A_bar, B_bar, C: answer(A_bar, B_bar, C, 4), A_bar, B_bar, C),
        gradients(lambda A_bar, B_bar, C: convolution_kernel(A_bar, B_bar, C, 4), A_bar, B_bar, C),
        name=("dA_bar", "dB_bar", "dC"),
    )
    return "an input that is j steps old has been multiplied by A_bar j times, and K[0] by none."


def _two_numbers(answer: object, *names: str) -> tuple:
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise Wrong(f"give two numbers in a tuple, ({', '.join(names)})")
    return tuple(answer)
