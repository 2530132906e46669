"""Wrong answers to the exercises of chapter 03, and the words with which each is turned down."""

import pytest
import torch

from vimlearn.course.exercise import grade


def states_from_left(a, x):
    s, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        s = a[:, t] * s + x[:, t]
        out.append(s)
    return torch.stack(out, 1)


def states_from_right(a, x):
    return states_from_left(a.flip(1), x.flip(1)).flip(1)


def test_then_dense_names_its_mistakes(rejected):
    assert rejected("then_dense", lambda f, s: (f[0] @ s[0], s[0] @ f[1] + s[1]), "swapped", "on the right")
    assert rejected("then_dense", lambda f, s: (f[0] + s[0], f[1] + s[1]), "sum of the matrices", "composes")
    assert rejected("then_dense", lambda f, s: (s[0] * f[0], s[0] @ f[1] + s[1]), "single entries")
    assert rejected("then_dense", lambda f, s: (s[0] @ f[0], f[0] @ s[1] + f[1]), "v has the two steps swapped")
    assert rejected("then_dense", lambda f, s: (s[0] @ f[0], f[1] + s[1]), "v1 + v2", "second step's matrix")
    assert rejected("then_dense", lambda f, s: (s[0] @ f[0], s[0] @ (f[1] + s[1])), "M2 to both")
    assert rejected("then_dense", lambda f, s: (s[0] @ f[0], s[0] @ f[1]), "lacks v2")
    assert rejected("then_dense", lambda f, s: s[0] @ f[0], "2 values (M, v)")


def doubling_from_right(a, x, grow=lambda offset: 2 * offset):
    a, x, offset = a.clone(), x.clone(), 1
    while offset < x.shape[1]:
        old_a, old_x = a.clone(), x.clone()
        for t in range(x.shape[1] - offset):
            x[:, t] = old_a[:, t] * old_x[:, t + offset] + old_x[:, t]
            a[:, t] = old_a[:, t] * old_a[:, t + offset]
        offset = grow(offset)
    return x


def test_scan_from_right_takes_another_way_of_writing_it():
    assert grade("scan_from_right", doubling_from_right).status == "right"
    assert grade("scan_from_right", states_from_right).status == "right"


def test_scan_from_right_names_its_mistakes(rejected):
    def decay_already_new(a, x):
        a, x, offset = a.clone(), x.clone(), 1
        while offset < x.shape[1]:
            a[:, :-offset] = a[:, :-offset] * a[:, offset:].clone()
            x[:, :-offset] = a[:, :-offset] * x[:, offset:] + x[:, :-offset]
            offset *= 2
        return x

    def operands_swapped(a, x):
        offset = 1
        while offset < x.shape[1]:
            x = torch.cat([a[:, offset:] * x[:, :-offset] + x[:, offset:], x[:, -offset:]], 1)
            a = torch.cat([a[:, offset:] * a[:, :-offset], a[:, -offset:]], 1)
            offset *= 2
        return x

    def padded_with_zeros(a, x):
        offset = 1
        while offset < x.shape[1]:
            nothing = torch.zeros_like(x[:, :offset])
            x = torch.cat([a[:, :-offset] * x[:, offset:] + x[:, :-offset], nothing], 1)
            a = torch.cat([a[:, :-offset] * a[:, offset:], a[:, -offset:]], 1)
            offset *= 2
        return x

    def decay_of_the_neighbour(a, x):
        s = x.clone()
        for t in reversed(range(x.shape[1] - 1)):
            s[:, t] = a[:, t + 1] * s[:, t + 1] + x[:, t]
        return s

    assert rejected("scan_from_right", states_from_left, "first token to the last")
    assert rejected("scan_from_right", lambda a, x: states_from_left(a, x.flip(1)).flip(1), "only x was turned round")
    assert rejected("scan_from_right", lambda a, x: states_from_left(a.flip(1), x.flip(1)), "reversed order", "axis 1")
    assert rejected("scan_from_right", lambda a, x: doubling_from_right(a, x, lambda o: o + 1), "not doubled",
                    "grows by 1")
    assert rejected("scan_from_right", lambda a, x: doubling_from_right(a, x, lambda o: 99), "only one round")
    assert rejected("scan_from_right", decay_already_new, "new a", "old one")
    assert rejected("scan_from_right", operands_swapped, "operands are swapped")
    assert rejected("scan_from_right", padded_with_zeros, "last tokens are lost", "(1, 0)")
    assert rejected("scan_from_right", decay_of_the_neighbour, "a[t+1]")


def test_scan_from_right_must_leave_its_inputs_alone(rejected):
    def in_place(a, x):
        for t in reversed(range(x.shape[1] - 1)):
            x[:, t] += a[:, t] * x[:, t + 1]
        return x

    assert rejected("scan_from_right", in_place, "input x in place")


def test_cost_of_ten_names_its_mistakes(rejected):
    assert rejected("cost_of_ten", (3, 25, 5, 14), "reach back only 8")
    assert rejected("cost_of_ten", (4, 40, 5, 14), "4 rounds of 10")
    assert rejected("cost_of_ten", (4, 23, 5, 14), "last round")
    assert rejected("cost_of_ten", (4, 25, 6, 14), "no arrow")
    assert rejected("cost_of_ten", (4, 25, 3, 14), "only the way up")
    assert rejected("cost_of_ten", (4, 25, 5, 8), "only the way up")
    assert rejected("cost_of_ten", (4, 25, 5, 18), "upper limit")
    assert rejected("cost_of_ten", (4, 25), "four whole numbers")


def test_late_carry_names_its_mistakes(rejected):
    def one_late(a, states, start):
        decay = torch.ones_like(a)
        for t in range(1, a.shape[1]):
            decay[:, t] = decay[:, t - 1] * a[:, t - 1]
        return states + decay * start[:, None]

    def first_only(a, states, start):
        states = states.clone()
        states[:, 0] += a[:, 0] * start
        return states

    assert rejected("late_carry", lambda a, states, start: states, "forgotten")
    assert rejected("late_carry", lambda a, states, start: states + start[:, None], "without any decay")
    assert rejected("late_carry", lambda a, states, start: states + a * start[:, None], "own decay alone")
    assert rejected("late_carry", lambda a, states, start: states + a[:, :1] * start[:, None], "first decay alone")
    assert rejected("late_carry", lambda a, states, start: states + a.prod(1, keepdim=True) * start[:, None],
                    "whole block")
    assert rejected("late_carry", first_only, "only the first token")
    assert rejected("late_carry", one_late, "one token late")
    assert rejected("late_carry", lambda a, states, start: (states + start[:, None]) * a.cumprod(1),
                    "multiplies the states")


def test_g_by_hand_names_its_mistakes(rejected):
    a, c = torch.tensor([[5.0, 0.5, -2.0]]), torch.tensor([[1.0, 2.0, 3.0]])
    assert rejected("g_by_hand", tuple(states_from_right(a, c)[0].tolist()), "this uses a[t]", "a[t+1]")
    assert rejected("g_by_hand", tuple(states_from_left(a, c)[0].tolist()), "forward")
    assert rejected("g_by_hand", (1, 2, 3), "direct gradients c alone")
    assert rejected("g_by_hand", (3, -4, -1), "order g2, g1, g0")
    assert rejected("g_by_hand", (6, 5, 3), "decays are forgotten")


@pytest.fixture
def mirrored():
    """Return right pieces of the backward pass from the right, by a loop: g and the state after each token."""

    def pieces(a, s, c):
        g = c.clone()
        for t in range(1, c.shape[1]):
            g[:, t] = a[:, t - 1] * g[:, t - 1] + c[:, t]
        after = torch.zeros_like(s)
        after[:, :-1] = s[:, 1:]
        return g, after

    return pieces


def test_backward_from_right_agrees_with_autograd(mirrored):
    a, x = (torch.rand(2, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    c = torch.rand(2, 5, 3, dtype=torch.float64)
    s = states_from_right(a, x)
    g, after = mirrored(a.detach(), s.detach(), c)
    torch.testing.assert_close(torch.autograd.grad((s * c).sum(), (a, x)), (g * after, g))

    def answer(a, s, c):
        g, after = mirrored(a, s, c)
        return g * after, g

    assert grade("backward_from_right", answer).status == "right"


def test_backward_from_right_names_its_mistakes(rejected, mirrored):
    def with_g(make_g):
        def answer(a, s, c):
            g = make_g(a, c)
            return g * mirrored(a, s, c)[1], g

        return answer

    def with_grad_a(make):
        def answer(a, s, c):
            g, after = mirrored(a, s, c)
            return make(a, s, c, g, after), g

        return answer

    name = "backward_from_right"
    assert rejected(name, with_g(lambda a, c: c), "direct gradient alone")
    assert rejected(name, with_g(states_from_left), "grad_x uses a[t]", "a[t-1]")
    assert rejected(name, with_g(states_from_right), "runs the other way")
    assert rejected(name, with_g(lambda a, c: states_from_right(a.roll(-1, 1), c)), "scan from the left")
    assert rejected(name, with_grad_a(lambda a, s, c, g, after: g * s.roll(-1, 1)), "wraps round")
    assert rejected(name, with_grad_a(lambda a, s, c, g, after: g * s), "grad_a uses s[t];")
    assert rejected(name, with_grad_a(lambda a, s, c, g, after: c * after), "grad_a uses the direct gradient")
    assert rejected(name, with_grad_a(lambda a, s, c, g, after: g), "g alone")

    def state_before(a, s, c, g, after):
        before = torch.zeros_like(s)
        before[:, 1:] = s[:, :-1]
        return g * before

    assert rejected(name, with_grad_a(state_before), "s[t-1]", "scan from the left")


def test_grad_delta_names_its_mistakes(rejected):
    def decay_path(g, before, u, delta, A, B):
        return torch.einsum("blen,blen,blen,en->ble", g, before, torch.exp(torch.einsum("ble,en->blen", delta, A)), A)

    def input_path(g, before, u, delta, A, B):
        return torch.einsum("blen,bln,ble->ble", g, B, u)

    assert grade("grad_delta", lambda *v: decay_path(*v) + input_path(*v)).status == "right"
    assert rejected("grad_delta", decay_path, "through the input", "missing")
    assert rejected("grad_delta", input_path, "through the decay", "missing")
    assert rejected("grad_delta", lambda *v: decay_path(*v) - input_path(*v), "subtracted")
    assert rejected("grad_delta", lambda *v: decay_path(*v) * input_path(*v), "multiplied")

    def no_exponential(g, before, u, delta, A, B):
        return torch.einsum("blen,blen,en->ble", g, before, A) + input_path(g, before, u, delta, A, B)

    def delta_for_u(g, before, u, delta, A, B):
        return decay_path(g, before, u, delta, A, B) + torch.einsum("blen,bln,ble->ble", g, B, delta)

    assert rejected("grad_delta", no_exponential, "derivative of exp")
    assert rejected("grad_delta", delta_for_u, "delta where u belongs")
