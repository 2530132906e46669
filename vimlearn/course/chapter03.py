"""Checks of chapter 03: the operator of the scan, its timetables, blocks with a carry, and the backward pass."""

import torch
from torch import Tensor

from vimlearn.course.exercise import Wrong, call, exercise, match, parts
from vimlearn.scan_parallel import associative_scan_


def _random(*shape: int) -> Tensor:
    """Return the same float64 normal numbers for the same shape, every time."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def _decays(*shape: int) -> Tensor:
    """Return numbers between 0.4 and 0.95, all different."""
    return 0.4 + 0.55 * torch.sigmoid(_random(*shape).flip(1))


@exercise("3.1", "Two dense steps at once")
def then_dense(answer):
    """(M2 M1, M2 v1 + v2), section 3 of the chapter."""
    M1, v1, M2, v2 = _random(3, 3), _random(3), _random(3, 3).T.contiguous() + 0.5, _random(3, 1)[:, 0] - 1
    M, v = parts(call(answer, (M1, v1), (M2, v2)), "M", "v")
    match(
        M,
        M2 @ M1,
        name="M",
        mistakes={
            "M is M1 @ M2, the swapped order; `first` acts on the state first, so it stands on the right": M1 @ M2,
            "M is the product of single entries (*); doing two matrices one after the other is @": M1 * M2,
            "M is the sum of the matrices; doing one step after the other composes them, it does not add": M1 + M2,
        },
    )
    match(
        v,
        M2 @ v1 + v2,
        name="v",
        mistakes={
            "v has the two steps swapped: what `first` added passes through M2, not what `second` added through M1": (
                M1 @ v2 + v1
            ),
            "v is only v1 + v2; what `first` added still has to pass through the second step's matrix": v1 + v2,
            "v applies M2 to both parts; v2 is added last and passes through nothing": M2 @ (v1 + v2),
            "v lacks v2, what the second step adds": M2 @ v1,
            "v multiplies from the left (v1 @ M2); the step is M2 @ v1": v1 @ M2 + v2,
        },
    )
    return "what acts first stands on the right, and what it added passes through the second step."


def _rounds_from_right(a: Tensor, x: Tensor, next_offset=lambda o: 2 * o, x_first=True, swapped=False, keep=True,
                       partner_decay=False, same_a=False, reach=1):
    """Hillis-Steele from the right, with the mistakes of exercise 3.2 as options."""
    offset = 1
    while offset * reach < x.shape[1]:
        a_new = torch.cat([a[:, :-offset] * a[:, offset:], a[:, -offset:]], 1)
        decay = a if x_first else a_new
        mine, partner = x[:, :-offset], x[:, offset:]
        joined = (decay[:, offset:] * mine + partner if swapped else
                  decay[:, offset:] * partner + mine if partner_decay else decay[:, :-offset] * partner + mine)
        x = torch.cat([joined, x[:, -offset:] if keep else torch.zeros_like(x[:, -offset:])], 1)
        a, offset = a if same_a else a_new, next_offset(offset)
    return x


def _wrapped(a: Tensor, x: Tensor) -> Tensor:
    """Hillis-Steele from the right in a ring: tokens without a partner take one from the front."""
    offset = 1
    while offset < x.shape[1]:
        x, a, offset = x + a * x.roll(-offset, 1), a * a.roll(-offset, 1), 2 * offset
    return x


@exercise("3.2", "The scan from the right")
def scan_from_right(answer):
    """s[t] = a[t] s[t+1] + x[t], as the reverse direction of the package's scan."""
    # Long ones first: with one or two tokens several mistakes give the same numbers.
    for l in (7, 16, 2, 1):
        a, x = _decays(2, l, 3), _random(2, l, 3)
        match(
            call(answer, a, x),
            associative_scan_(a.clone(), x.clone(), reverse=True),
            name=f"the tensor of states for {l} tokens",
            mistakes={
                "this scan runs from the first token to the last; here the last token is the start": (
                    lambda a=a, x=x: associative_scan_(a.clone(), x.clone())
                ),
                "the decays and x disagree on the direction: only x was turned round": (
                    lambda a=a, x=x: associative_scan_(a.clone(), x.flip(1)).flip(1)
                ),
                "the offset is not doubled but grows by 1: the pairs reach 1, 2, 4, 8, ... tokens after each round": (
                    lambda a=a, x=x: _rounds_from_right(a, x, lambda o: o + 1)
                ),
                "only one round was done; go on and double the offset until it reaches the length": (
                    lambda a=a, x=x: _rounds_from_right(a, x, lambda o: 10**9)
                ),
                "x is combined with the new a; it needs the old one, so update x before a or keep a copy": (
                    lambda a=a, x=x: _rounds_from_right(a, x, x_first=False)
                ),
                "the operands are swapped: a token keeps its x and multiplies what reaches it by its own decay": (
                    lambda a=a, x=x: _rounds_from_right(a, x, swapped=True)
                ),
                "the last tokens are lost: without a partner a token combines with (1, 0) and keeps its value": (
                    lambda a=a, x=x: _rounds_from_right(a, x, keep=False)
                ),
                "the decay is the partner's; what a token adds from its partner passes through its own decay": (
                    lambda a=a, x=x: _rounds_from_right(a, x, partner_decay=True)
                ),
                "the decays stay those of single tokens; combine a as well, a[t] a[t+o]": (
                    lambda a=a, x=x: _rounds_from_right(a, x, same_a=True)
                ),
                "a round is missing; go on while the offset is smaller than the length": (
                    lambda a=a, x=x: _rounds_from_right(a, x, reach=2)
                ),
                "it wraps round: roll gives the last tokens a partner from the front; they have none": (
                    lambda a=a, x=x: _wrapped(a, x)
                ),
                "the decay used is that of the token the state comes from, a[t+1]; here a[t] belongs to token t": (
                    lambda a=a, x=x: associative_scan_(a.roll(-1, 1), x.clone(), reverse=True)
                ),
            },
        )
    return "the last token is the start, and each decay belongs to its own token."


@exercise("3.3", "Count on paper")
def cost_of_ten(answer):
    """Rounds and arrows of both timetables for ten tokens."""
    answer = answer.tolist() if hasattr(answer, "tolist") else answer
    if not isinstance(answer, tuple | list) or len(answer) != 4:
        raise Wrong("give four whole numbers in a tuple: rounds and combinations of one, then of the other")
    rounds, work, rounds_tree, work_tree = answer
    if [rounds_tree, work_tree, rounds, work] == [4, 25, 5, 14]:
        raise Wrong("the right numbers, but Hillis-Steele comes first, then up-and-down")
    match(
        rounds,
        4,
        name="the number of rounds of Hillis-Steele",
        mistakes={
            "3 rounds of Hillis-Steele reach back only 8 tokens; the last two of ten are not finished": 3,
            "9 is the depth of the loop; Hillis-Steele doubles its reach each round": 9,
        },
    )
    match(
        work,
        25,
        name="the number of combinations of Hillis-Steele",
        mistakes={
            "40 is 4 rounds of 10; the first tokens of each round are finished and have no arrow": 40,
            "36 is 4 rounds of 9; the round with offset o has only 10 - o arrows": 36,
            "23 leaves out the last round, with offset 8 and 2 arrows": 23,
            "17 is the count for 8 tokens": 17,
        },
    )
    match(
        rounds_tree,
        5,
        name="the number of rounds of up-and-down",
        mistakes={
            "6 counts a round on the way down that has no arrow: to length 2 nothing is left to fill in": 6,
            "4 is the depth of Hillis-Steele; going up and coming down takes longer": 4,
            "3 counts only the way up": 3,
            "7 is 2 log2(10) rounded up, an upper limit; count the rounds that have arrows": 7,
            "8 is twice the rounds of Hillis-Steele, an upper limit; count the rounds that have arrows": 8,
        },
    )
    match(
        work_tree,
        14,
        name="the number of combinations of up-and-down",
        mistakes={
            "8 counts only the way up; the even tokens still have to be filled in": 8,
            "9 is the work of the loop": 9,
            "11 is the count for 8 tokens": 11,
            "18 is 2 (l - 1), an upper limit; some arrows fall off at the right edge": 18,
            "20 is 2 l, an upper limit; count the arrows": 20,
        },
    )
    return "one more round than Hillis-Steele, and little more than half its work."


@exercise("3.4", "A carry that comes late")
def late_carry(answer):
    """states + (a[0] ... a[t]) start, by linearity."""
    for m in (6, 2, 1):
        a, x, start = _decays(2, m, 3, 4), _random(2, m, 3, 4), _random(2, 3, 4)
        states = associative_scan_(a.clone(), x.clone())
        reach, first = a.cumprod(1), torch.zeros_like(a)
        first[:, 0] = 1
        s = start.unsqueeze(1)
        match(
            call(answer, a, states, start),
            states + reach * s,
            name=f"the tensor of states for a block of {m}",
            mistakes={
                "the carry is forgotten: these are still the states from 0": states,
                "the start is added without any decay; it fades token by token": states + s,
                "only the first token feels the carry here; it lives on in all later states": states + first * a * s,
                "every token uses the first decay alone; the start has met all decays up to its token": (
                    states + a[:, :1] * s
                ),
                "each token uses its own decay alone; the start has met the earlier ones too": states + a * s,
                "the decay is one token late: at the first token the start has already been multiplied by a[0]": (
                    states + reach / a * s
                ),
                "every token uses the decay of the whole block; at token t only a[0] ... a[t] were met": (
                    states + reach[:, -1:] * s
                ),
                "the decay is right, but the states from 0 are left out": reach * s,
                "the decays are multiplied along the wrong axis; tokens are axis 1 of (b, m, e, n)": (
                    states + a.cumprod(2) * s
                ),
                "the decays are multiplied along the last axis, the states; tokens are axis 1": (
                    states + a.cumprod(3) * s
                ),
                "the decay multiplies the states as well; only the start has to fade": reach * (states + s),
            },
        )
    return "the recurrence is linear, so the start adds its own faded copy to every state."


@exercise("3.5", "Three gradients by hand")
def g_by_hand(answer):
    """g[t] = a[t+1] g[t+1] + c[t] with a = (5, 0.5, -2) and c = (1, 2, 3)."""
    match(
        answer,
        (-1.0, -4.0, 3.0),
        name=("g0", "g1", "g2"),
        mistakes={
            "this uses a[t] between g[t] and g[t+1]; the edge from s[t] to s[t+1] carries a[t+1]": (18.5, 3.5, 3.0),
            "this runs forward, as the states do; it is the last state that matters only directly": (1.0, 2.5, -2.0),
            "these are the direct gradients c alone; s[0] also matters through s[1] and s[2]": (1.0, 2.0, 3.0),
            "the values are right, but in the order g2, g1, g0": (3.0, -4.0, -1.0),
            "the decays are forgotten: what comes back from s[t+1] is multiplied by a[t+1]": (6.0, 5.0, 3.0),
            "each g takes in only the direct gradient of the next token, c[t+1]; it needs the whole g[t+1]": (
                2.0, -4.0, 3.0,
            ),
            "the direct gradients of s[0] and s[1] are left out": (-3.0, -6.0, 3.0),
        },
    )
    return "from the end, each edge with its own decay; a[0] is never used."


@exercise("3.6", "Backward from the right")
def backward_from_right(answer):
    """grad_x = g with g[t] = a[t-1] g[t-1] + c[t], grad_a[t] = g[t] s[t+1]."""
    for l in (6, 2, 1):
        a, x, c = _decays(2, l, 3), _random(2, l, 3), _random(2, l, 3) + 0.5
        s = associative_scan_(a.clone(), x.clone(), reverse=True)
        grad_a, grad_x = parts(call(answer, a, s, c), "grad_a", "grad_x")
        g = associative_scan_(a.roll(1, 1), c.clone())
        zero = torch.zeros_like(s[:, :1])
        after, before = torch.cat([s[:, 1:], zero], 1), torch.cat([zero, s[:, :-1]], 1)
        match(
            grad_x,
            g,
            name=f"the gradient of x for {l} tokens",
            mistakes={
                "grad_x is c, the direct gradient alone; x[t] also matters through s[t-1], s[t-2], ...": c,
                "grad_x uses a[t]; the edge from s[t] to s[t-1] carries a[t-1]": (
                    lambda a=a, c=c: associative_scan_(a.clone(), c.clone())
                ),
                "grad_x is scanned from the right, as the states were; the gradient runs the other way": (
                    lambda a=a, c=c: associative_scan_(a.clone(), c.clone(), reverse=True)
                ),
                "grad_x is the one of the scan from the left, g[t] = a[t+1] g[t+1] + c[t]; mirror it": (
                    lambda a=a, c=c: associative_scan_(a.roll(-1, 1), c.clone(), reverse=True)
                ),
                "half is mirrored: the decays are a[t-1], but the scan still runs from the right": (
                    lambda a=a, c=c: associative_scan_(a.roll(1, 1), c.clone(), reverse=True)
                ),
                "grad_x uses a[t+1]; roll the decays the other way, to a[t-1]": (
                    lambda a=a, c=c: associative_scan_(a.roll(-1, 1), c.clone())
                ),
                "the two results are exchanged: the gradient of a comes first, then that of x": g * after,
            },
        )
        match(
            grad_a,
            g * after,
            name=f"the gradient of a for {l} tokens",
            mistakes={
                "grad_a wraps round: the last token has no state after it, but roll gives it s[0]": g * s.roll(-1, 1),
                "grad_a uses s[t-1], as for the scan from the left; here a[t] multiplies s[t+1]": g * before,
                "grad_a uses s[t]; a[t] multiplies the state that reached token t, s[t+1]": g * s,
                "grad_a uses the direct gradient c; the whole gradient g belongs there": c * after,
                "grad_a also holds the factor a; the derivative of a s by a is s": g * after * a,
                "grad_a is g alone, which is the gradient of x": g,
            },
        )
    return "the gradient runs against the states, with a[t-1], and a[t] meets s[t+1]."


@exercise("3.7", "The gradient of delta")
def grad_delta(answer):
    """The sum over n of p A + g B u, with p = g s[t-1] exp(delta A)."""
    b, l, e, n = 2, 5, 3, 4
    g, before, u, delta = _random(b, l, e, n), _random(b, l, e, n).flip(0), _random(b, l, e), _decays(b, l, e)
    A, B = -_decays(e, n), _random(b, l, n)
    a, d = torch.exp(delta.unsqueeze(-1) * A), delta.unsqueeze(-1)
    decay, into = (g * before * a * A).sum(-1), (g * B.unsqueeze(-2)).sum(-1)
    match(
        call(answer, g, before, u, delta, A, B),
        decay + into * u,
        name="the gradient of delta",
        mistakes={
            "the path through the input delta u B is missing": decay,
            "the path through the decay exp(delta A) is missing": into * u,
            "the derivative of exp(delta A) by its exponent is missing: it is exp(delta A) itself": (
                (g * before * A).sum(-1) + into * u
            ),
            "the factor A is missing: the derivative of delta A by delta is A": (g * before * a).sum(-1) + into * u,
            "the input path holds delta where u belongs; that would be the gradient of u": decay + into * delta,
            "the input path lacks u: the derivative of delta u B by delta is u B": decay + into,
            "the decay path holds delta where A belongs; that is on the way to A's gradient": (
                (g * before * a * d).sum(-1) + into * u
            ),
            "the two paths are multiplied; gradients along two paths add": decay * into * u,
            "the two paths are subtracted; gradients along two paths add": decay - into * u,
        },
    )
    return "a larger step forgets more and takes in more, and the two effects add."
