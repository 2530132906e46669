"""Checks of chapter 02: the selective scan, its step, its loop, its ends and its memory."""

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from vimlearn.course.exercise import Wrong, call, exercise, gradients, match, parts
from vimlearn.scan import selective_scan

_STEPS = {"delta = 0": 0.0, "delta = ln 2": math.log(2), "delta = 20": 20.0}


@exercise("2.1", "Three steps on paper")
def three_steps(answer):
    """s = exp(-delta) 4 + delta 10 for three steps delta."""
    if not isinstance(answer, dict) or set(answer) != set(_STEPS):
        raise Wrong(f"keep the dict with the keys {', '.join(map(repr, _STEPS))} and fill in a number for each")
    for key, delta in _STEPS.items():
        keep = math.exp(-delta)
        match(answer[key], 4 * keep + 10 * delta, name=f"the state after {key}", mistakes={
            f"{key}: that is zero-order hold; Mamba and Vim write delta B u and not (1 - keep) B u":
                4 * keep + 10 * (1 - keep),
            f"{key}: that is Euler for keep; keep is exp(delta A) and not 1 + delta A": 4 * (1 - delta) + 10 * delta,
            f"{key}: the input enters without its step; what is written is delta B u": 4 * keep + 10,
            f"{key}: that is only what is kept of the old state; the input writes delta B u": 4 * keep,
            f"{key}: that is only what is written; exp(delta A) times the old state is missing": 10 * delta,
            f"{key}: the old state is carried over without decay; keep is exp(-delta)": 4 + 10 * delta,
            f"{key}: A is -1, so keep is exp(-delta) and not exp(delta)": 4 / keep + 10 * delta,
        })
    return "a step of 0 ignores the token, a large one erases the state and writes delta times the input."


@exercise("2.2", "A safe step")
def safe_step(answer):
    """softplus(delta + bias), linear above 20, with finite values and gradients in float32."""
    g = torch.Generator().manual_seed(22)
    raw, bias = torch.randn(2, 5, 3, generator=g, dtype=torch.float64), torch.tensor([-2.0, 0.5, 1.5]).double()
    x = raw + bias
    match(call(answer, raw, bias), F.softplus(x), name="the step", mistakes={
        "the softplus is missing: this is delta + bias, which can be negative": x,
        "the bias is added after the softplus; it belongs inside, or the step can become negative":
            F.softplus(raw) + bias,
        "the bias is missing; the softplus is taken of delta + bias": F.softplus(raw),
        "this is a sigmoid; softplus is log(1 + exp(x))": torch.sigmoid(x),
        "this is exp(x) alone; softplus is log(1 + exp(x))": x.exp(),
        "this is a ReLU; softplus is smooth and never 0": F.relu(x),
        "log1p adds the 1 itself: log1p(exp(x)), not log1p(1 + exp(x))": torch.log1p(1 + x.exp()),
        "the base is wrong: softplus uses the natural logarithm": F.softplus(x) / math.log(2),
        "the bias is subtracted; add it to delta": F.softplus(raw - bias),
    })
    _check_extremes(answer)
    _check_threshold(answer)
    return "bias inside, log1p for small steps, linear above 20, and no NaN in the gradient."


def _check_threshold(answer) -> None:
    """The threshold belongs to the sum, and lies at 20: delta and bias stand on both sides of it."""
    delta, bias = torch.tensor([5.1, 9.0, 12.0, 15.0, 25.0])[:, None].expand(1, 5, 3), torch.tensor([0.0, 10.0, -10.0])
    x = delta + bias
    clamped = torch.log1p(x.clamp(max=20).exp())
    match(call(answer, delta, bias), F.softplus(x), name="the step around 20", rtol=1e-5, atol=1e-9, mistakes={
        "above the threshold the bias is missing; return delta + bias there": torch.where(x > 20, delta, clamped),
        "the threshold looks at delta alone; it belongs to delta + bias": torch.where(delta > 20, x, clamped),
        "the threshold lies far below 20, where softplus is not x yet": torch.where(x > 5, x, F.softplus(x)),
        "the threshold lies below 20, where softplus is not x yet": torch.where(x > 8, x, F.softplus(x)),
    })


def _check_extremes(answer) -> None:
    far, none = torch.tensor([-30.0, -18.0, 19.0, 30.0, 200.0]).reshape(1, 5, 1), torch.zeros(1)
    got, right = call(answer, far, none), F.softplus(far)
    match(got.isfinite(), torch.ones_like(far, dtype=torch.bool), name="isfinite(step)", mistakes={
        "at 200 in float32 the step is not finite: exp overflows above 88; return x itself above 20": far < 88,
    })
    if (got[:, :2] <= 0).any():
        raise Wrong("at -18 and -30 in float32 the step is exactly 0: 1 + exp(x) rounds to 1; use torch.log1p(exp(x))")
    if abs(got[0, 4, 0].item() - 200) > 1:
        raise Wrong(f"at 200 the step is {got[0, 4, 0].item():.4g}, expected 200: clamp only what goes into exp, "
                    "and return x itself above 20")
    match(got, right, name="the step far from 0 in float32", rtol=1e-5, atol=0)
    slopes = gradients(answer, far, none)[0]
    if slopes.isnan().any():
        raise Wrong("the gradient at 200 is NaN: where multiplies exp's infinite slope by 0; clamp what goes into exp")
    match(slopes, gradients(lambda x, b: F.softplus(x + b), far, none)[0], name="the gradient for delta", rtol=1e-4)


@exercise("2.3", "One step of one channel")
def scan_step(answer):
    """One update of the (n,) state and the output read from it."""
    g = torch.Generator().manual_seed(23)
    s, B, C = (torch.randn(4, generator=g, dtype=torch.float64) for _ in range(3))
    u, step, A = torch.tensor(1.7).double(), torch.tensor(0.6).double(), -torch.tensor([0.3, 1.0, 2.2, 3.7]).double()
    keep, write = torch.exp(step * A), step * u * B
    new = keep * s + write
    got, y = parts(call(answer, s, u, step, A, B, C), "new state", "output")
    match(got, new, name="the new state", mistakes={
        **{message: wrong(keep, write, s, u, step, A, B) for message, wrong in _STATE_MISTAKES.items()},
        "the two results are exchanged: return the new state first, then the output": (new * C).sum(),
        "C belongs to the output; into the state the token writes with B": keep * s + step * u * C,
    })
    match(y, (new * C).sum(), name="the output", mistakes={
        "the output reads the old state; it must read the new one": (s * C).sum(),
        "the output reads with B; it must read with C": (new * B).sum(),
        "the output is not summed over the n states": new * C,
        "the output is the plain sum of the state; C is missing": new.sum(),
    })
    return "keep, write, then read from the new state."


# What can go wrong in keep * s + write. The tensors broadcast to the shape of the state.
_STATE_MISTAKES = {
    "the exponential is missing: keep is exp(step A), and this multiplies the state by step A":
        lambda keep, write, s, u, step, A, B: step * A * s + write,
    "this is Euler for A: keep is exp(step A) and not 1 + step A":
        lambda keep, write, s, u, step, A, B: (1 + step * A) * s + write,
    "this is zero-order hold for B: Mamba and Vim write step B u":
        lambda keep, write, s, u, step, A, B: keep * s + torch.expm1(step * A) / A * B * u,
    "this writes with 1 - keep, as section 3 does first; Mamba and Vim write step u B":
        lambda keep, write, s, u, step, A, B: keep * s + (1 - keep) * u * B,
    "u is missing in what is written: write is step u B":
        lambda keep, write, s, u, step, A, B: keep * s + step * B,
    "the input enters without the step: write is step u B":
        lambda keep, write, s, u, step, A, B: keep * s + u * B,
    "the old state is not carried over: this is write alone":
        lambda keep, write, s, u, step, A, B: write + 0 * s,
    "the old state is carried over without decay: multiply it by exp(step A)":
        lambda keep, write, s, u, step, A, B: s + write,
    "nothing is written: add step u B":
        lambda keep, write, s, u, step, A, B: keep * s,
    "B is missing in what is written: write is step u B":
        lambda keep, write, s, u, step, A, B: keep * s + step * u,
    "the step is missing in keep: it is exp(step A) and not exp(A)":
        lambda keep, write, s, u, step, A, B: torch.exp(A) * s + write,
    "A is negative already: keep is exp(step A) and not exp(-step A)":
        lambda keep, write, s, u, step, A, B: s / keep + write,
    "this takes softplus once more; the step is already positive":
        lambda keep, write, s, u, step, A, B: torch.exp(F.softplus(step) * A) * s + F.softplus(step) * u * B,
    "the decay also hits the new input: keep multiplies the old state alone":
        lambda keep, write, s, u, step, A, B: keep * (s + write),
}


def _scan_from(s, u, step, A, B, C, *, carry=True, late=False, state_of=None):
    """Scan from s. The options plant a mistake: no carry, outputs one state late, another update `state_of`."""
    first, y = s, []
    for t in range(u.shape[1]):
        step_t, u_t, B_t = step[:, t, :, None], u[:, t, :, None], B[:, t, None, :]
        keep, write, old = torch.exp(step_t * A), step_t * u_t * B_t, s if carry else first
        s = keep * old + write if state_of is None else state_of(keep, write, old, u_t, step_t, A, B_t)
        y.append(((old if late else s) * C[:, t, None, :]).sum(-1))
    return torch.stack(y, dim=1), s


@exercise("2.4", "Start from a given state")
def scan_from(answer):
    """The vectorised loop with a given first state, in values and gradients."""
    g = torch.Generator().manual_seed(24)
    s, u, raw, B, C = (torch.randn(shape, generator=g, dtype=torch.float64)
                       for shape in ((2, 3, 4), (2, 5, 3), (2, 5, 3), (2, 5, 4), (2, 5, 4)))
    inputs = (s, u, F.softplus(raw), -torch.rand(3, 4, generator=g, dtype=torch.float64) * 2 - 0.1, B, C)
    y, last = parts(call(answer, *inputs), "y", "last state")
    right, right_last = _scan_from(*inputs)
    zero = torch.zeros_like(s)
    match(y, right, name="y", mistakes={
        "the given state s is not used: the scan starts from 0": lambda: _scan_from(zero, *inputs[1:])[0],
        "the outputs read the state from before the update; each must read the new state":
            lambda: _scan_from(*inputs, late=True)[0],
        "the outputs read with B; they read with C": lambda: _scan_from(*inputs[:5], B)[0],
        "B and C are exchanged: the token writes with B and reads with C": lambda: _scan_from(*inputs[:4], C, B)[0],
        "the state is not carried from token to token: every token starts from the given s":
            lambda: _scan_from(*inputs, carry=False)[0],
        **{message: lambda wrong=wrong: _scan_from(*inputs, state_of=wrong)[0]
           for message, wrong in _STATE_MISTAKES.items()},
    })
    match(last, right_last, name="the last state", mistakes={
        "this is the first state that was given; return the state after the last token": s,
        "this is the state before the last token; return the state after it":
            lambda: _scan_from(s, *(x[:, :-1] for x in inputs[1:3]), inputs[3], *(x[:, :-1] for x in inputs[4:]))[1],
        "this is a state without carry: it holds the last token alone": lambda: _scan_from(*inputs, carry=False)[1],
    })
    names = tuple(f"the gradient for {name}" for name in ("s", "u", "step", "A", "B", "C"))
    match(gradients(answer, *inputs), gradients(_scan_from, *inputs), name=names)
    return "the state is all that the future needs of the past, in values and gradients."


@exercise("2.5", "Skip and gate")
def skip_and_gate(answer):
    """(y + D u) silu(z), each part left out where it is None."""
    g = torch.Generator().manual_seed(25)
    y, u, z = (torch.randn(2, 4, 3, generator=g, dtype=torch.float64) for _ in range(3))
    D = torch.tensor([0.5, -1.3, 2.0], dtype=torch.float64)
    gate = F.silu(z)
    match(call(answer, y, u, D, z), (y + D * u) * gate, name="the output", mistakes={
        "D is forgotten: the skip D u is added before the gate": y * gate,
        "the gate comes before the skip; add D u first, then gate the sum": y * gate + D * u,
        "the gate is a sigmoid; silu(z) is z sigmoid(z)": (y + D * u) * torch.sigmoid(z),
        "the gate is z itself; silu(z) is z sigmoid(z)": (y + D * u) * z,
        "the gate is missing: multiply by silu(z)": y + D * u,
        "the skip is D alone; it is D times u": (y + D) * gate,
        "the skip is u alone; it is D times u": (y + u) * gate,
        "the skip multiplies D by y; it is D times u": (y + D * y) * gate,
        "the skip replaces y; add it to y": D * u * gate,
        "silu is applied to the sum; it is applied to z, and the sum is multiplied by it": F.silu(y + D * u) * z,
        "the gate is added; it multiplies": y + D * u + gate,
    })
    for D_or_none, z_or_none, right in ((D, None, y + D * u), (None, z, y * gate), (None, None, y)):
        given = f"D={'given' if D_or_none is not None else None}, z={'given' if z_or_none is not None else None}"
        match(call(answer, y, u, D_or_none, z_or_none), right, name=f"the output for {given}")
    return "skip first, gate last, each only if it is there."


@exercise("2.6", "Reverse by flips")
def reverse_by_flips(answer):
    """The backward scan made of a forward scan and flips, in values, last state and gradients."""
    g = torch.Generator().manual_seed(26)
    u, raw, B, C, z = (torch.randn(2, 5, size, generator=g, dtype=torch.float64) for size in (3, 3, 4, 4, 3))
    A, D = -torch.rand(3, 4, generator=g, dtype=torch.float64) * 2 - 0.1, torch.tensor([0.5, -1.3, 2.0]).double()
    inputs = (u, F.softplus(raw), A, B, C, D, z)
    none = SimpleNamespace(co_consts=())
    if any(isinstance(const, tuple) and "reverse" in const for const in getattr(answer, "__code__", none).co_consts):
        raise Wrong("reverse=True is what your function should equal; build it of a forward scan and flips")
    out, last = parts(call(answer, *inputs), "out", "last state")
    right, right_last = _backward_scan(*inputs)
    match(out, right, name="out", mistakes={
        "A is flipped, too; it has no token axis": lambda: _backward_scan(*inputs[:2], A.flip(1), *inputs[3:])[0],
        "z is not used": lambda: _backward_scan(*inputs[:-1], None)[0],
        "D is not used": lambda: _backward_scan(*inputs[:5], None, z)[0],
        "softplus is taken once more; the step is already positive": lambda: _backward_scan(
            u, F.softplus(inputs[1]), *inputs[2:])[0],
        "nothing is flipped along the tokens, dim=1: this is the forward scan": lambda: _flipped(inputs, set())[0],
        "the output is not flipped back into image order": right.flip(1),
        "only the output is flipped; flip the inputs too": lambda: _flipped(inputs, set())[0].flip(1),
        **{f"{names} must be flipped too": (lambda left=left: _flipped(inputs, set("usBCz") - set(left))[0].flip(1))
           for names, left in _LEFT_OUT.items()},
    })
    match(last, right_last, name="the last state", mistakes={
        "this is the last state of the forward scan; take it from the scan of the flipped inputs":
            lambda: _flipped(inputs, set())[1],
        "the last state has no token axis, so it must not be flipped (axis 1 are the channels)": right_last.flip(1),
        "the last state has no token axis, so it must not be flipped (axis 2 are the states)": right_last.flip(2),
    })
    names = tuple(f"the gradient for {name}" for name in ("u", "step", "A", "B", "C", "D", "z"))
    match(gradients(answer, *inputs), gradients(_backward_scan, *inputs), name=names)
    return "everything with a token axis is flipped, the output is flipped back, the last state is left alone."


_LEFT_OUT = {"z": "z", "B and C": "BC", "step": "s", "u": "u", "B": "B", "C": "C", "step, B and C": "sBC",
             "step, B, C and z": "sBCz", "B, C and z": "BCz", "u and z": "uz", "step and z": "sz"}


def _backward_scan(u, step, A, B, C, D, z):
    return selective_scan(u, step, A, B, C, D, z, reverse=True, return_last_state=True, backend="loop")


def _flipped(inputs, which: set[str]):
    """Scan forwards with the inputs named by a letter of `which` flipped, the output left as it comes."""
    u, step, A, B, C, D, z = inputs
    u, step, B, C, z = (x.flip(1) if letter in which else x
                        for letter, x in zip("usBCz", (u, step, B, C, z), strict=True))
    return selective_scan(u, step, A, B, C, D, z, return_last_state=True, backend="loop")


@exercise("2.7", "Count on paper")
def count_states(answer):
    """Tokens, numbers in the states of one scan, and gigabytes for a batch of 8 in Vim-S at 512 pixels."""
    if not isinstance(answer, dict) or set(answer) != {"tokens", "numbers", "gigabytes"}:
        raise Wrong("keep the dict with the keys 'tokens', 'numbers' and 'gigabytes' and fill in a number for each")
    tokens, numbers = 32 * 32 + 1, 1025 * 768 * 16
    match(answer["tokens"], tokens, name="tokens", mistakes={
        "tokens: the class token is missing": tokens - 1,
        "tokens: 197 belongs to 224 pixels; this image has 512 / 16 = 32 patches per side": 197,
        "tokens: these are the patches of one side; there are 32 rows of 32": 32,
        "tokens: 512 x 512 are the pixels; a patch of 16 x 16 pixels makes one token": 512 * 512,
    })
    match(answer["numbers"], numbers, name="numbers", mistakes={
        "numbers: this is l e; each channel keeps n = 16 states": 1025 * 768,
        "numbers: this is e n, one state; there is one for each token": 768 * 16,
        "numbers: this uses the model width d = 384; the scan runs on e = 768 channels": 1025 * 384 * 16,
        "numbers: the class token is missing in l": 1024 * 768 * 16,
        "numbers: these are bytes; count numbers here": numbers * 4,
        "numbers: one direction only here; the second direction comes in the third question": numbers * 2,
    })
    right = numbers * 4 * 24 * 2 * 8 / 1e9
    # As rounded in the text, 19.3, will do.
    match(answer["gigabytes"], right, name="gigabytes", rtol=5e-3, mistakes={
        "gigabytes: these are units of 2^30 bytes (GiB); divide by 10^9": right * 1e9 / 2**30,
        "gigabytes: the second direction is missing": right / 2,
        "gigabytes: a float32 number has 4 bytes": right / 4,
        "gigabytes: the batch of 8 is missing": right / 8,
        "gigabytes: the 24 blocks are missing": right / 24,
        "gigabytes: this is one scan alone; multiply by 24 blocks, 2 directions and 8 images": numbers * 4 / 1e9,
        "gigabytes: this counts keep too; the question is for the states alone": right * 2,
        "gigabytes: these are megabytes; divide by 10^9": right * 1e3,
        "gigabytes: these are bytes; divide by 10^9": right * 1e9,
    })
    return "19.3 GB for eight images, linear in the number of tokens."
