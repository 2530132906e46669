"""Wrong answers to the exercises of chapter 02, written out one by one, and what the checks say about them."""

import math

import torch
import torch.nn.functional as F

from vimlearn import selective_scan
from vimlearn.course.exercise import grade


def test_three_steps_names_its_mistakes(rejected):
    def answer(first, second, third):
        return {"delta = 0": first, "delta = ln 2": second, "delta = 20": third}

    assert rejected("three_steps", answer(4, 7, 10), "ln 2", "zero-order hold")
    assert rejected("three_steps", answer(4, 8.931, 10), "delta = 20", "zero-order hold")
    assert rejected("three_steps", answer(14, 8.931, 200), "delta = 0", "without its step")
    assert rejected("three_steps", answer(4, 8.159, 124), "ln 2", "Euler")
    assert rejected("three_steps", answer(4, 2, 0), "ln 2", "only what is kept")
    assert rejected("three_steps", answer(0, 6.931, 200), "delta = 0", "old state is missing")
    assert rejected("three_steps", answer(4, 14.931, 200), "ln 2", "not exp(delta)")
    assert rejected("three_steps", answer(4, 8.931, None), "delta = 20", "number")
    assert rejected("three_steps", {"delta = 0": 4}, "keys")
    assert rejected("three_steps", 4.0, "dict")


def test_safe_step_names_its_mistakes(rejected):
    assert rejected("safe_step", lambda delta, bias: delta + bias, "softplus is missing")
    assert rejected("safe_step", lambda delta, bias: F.softplus(delta) + bias, "after the softplus", "inside")
    assert rejected("safe_step", lambda delta, bias: F.softplus(delta), "bias is missing")
    assert rejected("safe_step", lambda delta, bias: torch.sigmoid(delta + bias), "sigmoid")
    assert rejected("safe_step", lambda delta, bias: (delta + bias).exp(), "exp(x) alone")
    assert rejected("safe_step", lambda delta, bias: (delta + bias).relu(), "ReLU")
    assert rejected("safe_step", lambda delta, bias: torch.log1p(1 + torch.exp(delta + bias)), "log1p adds the 1")
    assert rejected("safe_step", lambda delta, bias: torch.log2(1 + torch.exp(delta + bias)), "natural logarithm")
    assert rejected("safe_step", lambda delta, bias: F.softplus(delta - bias), "subtracted")


def test_safe_step_looks_at_the_extremes(rejected):
    def clamped(delta, bias):
        return torch.log1p(torch.exp((delta + bias).clamp(max=20)))

    def without_clamp(delta, bias):
        x = delta + bias
        return torch.where(x > 20, x, torch.log1p(torch.exp(x)))

    def without_log1p(delta, bias):
        x = delta + bias
        return torch.where(x > 20, x, torch.log(1 + torch.exp(x.clamp(max=20))))

    assert rejected("safe_step", lambda delta, bias: torch.log1p(torch.exp(delta + bias)), "at 200", "overflows")
    assert rejected("safe_step", clamped, "at 200", "expected 200")
    assert rejected("safe_step", without_clamp, "gradient", "NaN", "clamp")
    assert rejected("safe_step", without_log1p, "exactly 0", "log1p")
    assert rejected("safe_step", lambda delta, bias: F.softplus((delta + bias).detach()), "gradient")


def test_safe_step_takes_another_right_form():
    def other(delta, bias):
        x = delta + bias
        return x.relu() + torch.log1p(torch.exp(-x.abs()))

    assert grade("safe_step", other).status == "right"
    assert grade("safe_step", lambda delta, bias: torch.logaddexp(delta + bias, torch.zeros(()))).status == "right"


def test_scan_step_names_its_mistakes(rejected):
    def state(update):
        """Make an answer of a wrong update; the output is read as it should be."""

        def answer(s, u, step, A, B, C):
            s = update(s, u, step, A, B)
            return s, s @ C

        return answer

    def zero_order_hold(s, u, step, A, B):
        keep = torch.exp(step * A)
        return keep * s + (keep - 1) / A * B * u

    def twice_softplus(s, u, step, A, B):
        step = F.softplus(step)
        return torch.exp(step * A) * s + step * B * u

    assert rejected("scan_step", state(lambda s, u, d, A, B: d * A * s + d * u * B), "exponential is missing")
    assert rejected("scan_step", state(lambda s, u, d, A, B: s + d * (A * s + B * u)), "Euler")
    assert rejected("scan_step", state(zero_order_hold), "zero-order hold")
    assert rejected("scan_step", state(lambda s, u, d, A, B: (d * A).exp() * s + u * B), "without the step")
    assert rejected("scan_step", state(lambda s, u, d, A, B: d * u * B), "not carried over")
    assert rejected("scan_step", state(lambda s, u, d, A, B: s + d * u * B), "without decay")
    assert rejected("scan_step", state(lambda s, u, d, A, B: (d * A).exp() * s), "nothing is written")
    assert rejected("scan_step", state(lambda s, u, d, A, B: (d * A).exp() * s + d * u), "B is missing")
    assert rejected("scan_step", state(lambda s, u, d, A, B: A.exp() * s + d * u * B), "step is missing in keep")
    assert rejected("scan_step", state(lambda s, u, d, A, B: (-d * A).exp() * s + d * u * B), "negative already")
    assert rejected("scan_step", state(lambda s, u, d, A, B: (d * A).exp() * (s + d * u * B)), "old state alone")
    assert rejected("scan_step", state(twice_softplus), "softplus once more")


def test_scan_step_looks_at_the_output(rejected):
    def step(read):
        def answer(s, u, d, A, B, C):
            new = torch.exp(d * A) * s + d * u * B
            return new, read(s, new, B, C)

        return answer

    def exchanged(s, u, d, A, B, C):
        new = torch.exp(d * A) * s + d * u * B
        return new @ C, new

    assert rejected("scan_step", step(lambda old, new, B, C: old @ C), "old state")
    assert rejected("scan_step", step(lambda old, new, B, C: new @ B), "with C")
    assert rejected("scan_step", step(lambda old, new, B, C: new * C), "not summed")
    assert rejected("scan_step", step(lambda old, new, B, C: new.sum()), "C is missing")
    assert rejected("scan_step", lambda s, u, d, A, B, C: torch.exp(d * A) * s + d * u * B, "2 values")
    assert rejected("scan_step", exchanged, "exchanged")


def loop(s, u, step, A, B, C, update=None, late=False, carry=True):
    """A scan from s, with one line to be planted wrongly."""
    start, y = s, []
    for t in range(u.shape[1]):
        old = s if carry else start
        d, x, b = step[:, t, :, None], u[:, t, :, None], B[:, t, None]
        s = update(old, x, d, A, b) if update else (d * A).exp() * old + d * x * b
        y.append(((old if late else s) * C[:, t, None]).sum(-1))
    return torch.stack(y, 1), s


def test_scan_from_names_its_mistakes(rejected):
    def planted(**how):
        return lambda *inputs: loop(*inputs, **how)

    assert rejected("scan_from", lambda s, *rest: loop(torch.zeros_like(s), *rest), "starts from 0")
    assert rejected("scan_from", planted(late=True), "before the update")
    assert rejected("scan_from", planted(carry=False), "not carried")
    assert rejected("scan_from", planted(update=lambda s, u, d, A, B: (1 + d * A) * s + d * u * B), "Euler")
    assert rejected("scan_from", planted(update=lambda s, u, d, A, B: d * A * s + d * u * B), "exponential is missing")
    assert rejected("scan_from", planted(update=lambda s, u, d, A, B: (d * A).exp() * s + u * B), "without the step")
    assert rejected("scan_from", planted(
        update=lambda s, u, d, A, B: (d * A).exp() * s + ((d * A).exp() - 1) / A * u * B), "zero-order hold")
    assert rejected("scan_from", planted(
        update=lambda s, u, d, A, B: (F.softplus(d) * A).exp() * s + F.softplus(d) * u * B), "softplus once more")
    assert rejected("scan_from", planted(
        update=lambda s, u, d, A, B: (d * A).exp().detach() * s + d * u * B), "gradient for step")


def test_scan_from_looks_at_the_last_state(rejected):
    def one_early(s, u, step, A, B, C):
        y, _ = loop(s, u, step, A, B, C)
        return y, loop(s, u[:, :-1], step[:, :-1], A, B[:, :-1], C[:, :-1])[1]

    assert rejected("scan_from", lambda s, *rest: (loop(s, *rest)[0], s), "given")
    assert rejected("scan_from", one_early, "before the last token")
    assert rejected("scan_from", lambda *inputs: loop(*inputs)[0], "2 values")
    assert rejected("scan_from", lambda s, *rest: (loop(s, *rest)[0].transpose(1, 2), s), "axes exchanged")


def test_scan_from_may_not_change_the_given_state(rejected):
    def in_place(s, u, step, A, B, C):
        y = []
        for t in range(u.shape[1]):
            s *= (step[:, t, :, None] * A).exp()
            s += (step * u)[:, t, :, None] * B[:, t, None]
            y.append((s * C[:, t, None]).sum(-1))
        return torch.stack(y, 1), s.clone()

    assert rejected("scan_from", in_place, "input s in place", "clone")


def test_skip_and_gate_names_its_mistakes(rejected):
    def always(form):
        return lambda y, u, D, z: form(y, u, D, z)

    assert rejected("skip_and_gate", always(lambda y, u, D, z: y * F.silu(z)), "D is forgotten")
    assert rejected("skip_and_gate", always(lambda y, u, D, z: y * F.silu(z) + D * u), "before the skip")
    assert rejected("skip_and_gate", always(lambda y, u, D, z: (y + D * u) * z.sigmoid()), "sigmoid", "silu")
    assert rejected("skip_and_gate", always(lambda y, u, D, z: (y + D * u) * z), "z itself")
    assert rejected("skip_and_gate", always(lambda y, u, D, z: y + D * u), "gate is missing")
    assert rejected("skip_and_gate", always(lambda y, u, D, z: (y + D) * F.silu(z)), "D alone")
    assert rejected("skip_and_gate", always(lambda y, u, D, z: (y + u) * F.silu(z)), "u alone")
    assert rejected("skip_and_gate", always(lambda y, u, D, z: (y + D * y) * F.silu(z)), "D by y")
    assert rejected("skip_and_gate", always(lambda y, u, D, z: D * u * F.silu(z)), "replaces y")
    assert rejected("skip_and_gate", always(lambda y, u, D, z: F.silu(y + D * u) * z), "silu is applied to the sum")
    assert rejected("skip_and_gate", always(lambda y, u, D, z: y + D * u + F.silu(z)), "gate is added")
    assert rejected("skip_and_gate", always(lambda y, u, D, z: (y + D * u) * F.silu(z)), "TypeError")


def test_skip_and_gate_leaves_out_what_is_none(rejected):
    def stops_without_skip(y, u, D, z):
        return y if D is None else (y + D * u) * (1 if z is None else F.silu(z))

    assert rejected("skip_and_gate", stops_without_skip, "D=None, z=given")


def test_reverse_by_flips_names_its_mistakes(rejected):
    def flips(inputs="usBCz", back=True, state=None):
        def answer(u, s, A, B, C, D, z):
            u, s, B, C, z = (x.flip(1) if name in inputs else x
                             for name, x in zip("usBCz", (u, s, B, C, z), strict=True))
            out, last = selective_scan(u, s, A, B, C, D, z, return_last_state=True)
            return out.flip(1) if back else out, last if state is None else last.flip(state)

        return answer

    def forward_state(u, s, A, B, C, D, z):
        _, last = selective_scan(u, s, A, B, C, D, z, return_last_state=True)
        return flips()(u, s, A, B, C, D, z)[0], last

    assert rejected("reverse_by_flips", flips(inputs="", back=False), "nothing is flipped")
    assert rejected("reverse_by_flips", flips(back=False), "not flipped back")
    assert rejected("reverse_by_flips", flips(inputs=""), "only the output")
    assert rejected("reverse_by_flips", flips(inputs="usBC"), "z must be flipped")
    assert rejected("reverse_by_flips", flips(inputs="usz"), "B and C must be flipped")
    assert rejected("reverse_by_flips", flips(inputs="uBCz"), "step must be flipped")
    assert rejected("reverse_by_flips", flips(inputs="u"), "step, B, C and z must be flipped")
    assert rejected("reverse_by_flips", flips(state=1), "no token axis", "axis 1")
    assert rejected("reverse_by_flips", flips(state=2), "no token axis", "axis 2")
    assert rejected("reverse_by_flips", forward_state, "forward scan")
    assert rejected("reverse_by_flips", lambda *inputs: flips()(*inputs)[0], "2 values")


def test_count_states_names_its_mistakes(rejected):
    def answer(tokens=1025, numbers=1025 * 768 * 16, gigabytes=19.346):
        return {"tokens": tokens, "numbers": numbers, "gigabytes": gigabytes}

    assert grade("count_states", answer()).status == "right"
    assert rejected("count_states", answer(tokens=1024), "class token")
    assert rejected("count_states", answer(tokens=197), "224 pixels")
    assert rejected("count_states", answer(tokens=32), "one side")
    assert rejected("count_states", answer(numbers=1025 * 768), "n = 16")
    assert rejected("count_states", answer(numbers=768 * 16), "one for each token")
    assert rejected("count_states", answer(numbers=1025 * 384 * 16), "d = 384")
    assert rejected("count_states", answer(gigabytes=18.018), "2^30")
    assert rejected("count_states", answer(gigabytes=9.673), "second direction")
    assert rejected("count_states", answer(gigabytes=4.8366), "4 bytes")
    assert rejected("count_states", answer(gigabytes=2.4183), "batch of 8")
    assert rejected("count_states", answer(gigabytes=0.8061), "24 blocks")
    assert rejected("count_states", answer(gigabytes=0.05038), "one scan alone")
    assert rejected("count_states", answer(gigabytes=38.69), "keep too")
    assert rejected("count_states", answer(gigabytes=19346.2), "megabytes")
    assert rejected("count_states", answer(gigabytes=math.nan), "gigabytes")
    assert rejected("count_states", {"tokens": 1025}, "keys")


def test_hostile_answers_get_one_line(rejected):
    for name in ("safe_step", "scan_step", "scan_from", "skip_and_gate", "reverse_by_flips"):
        assert rejected(name, lambda *inputs: "text", "")
        assert rejected(name, 3, "function")
