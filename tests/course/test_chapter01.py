"""Planted wrong answers of chapter 01: each must be rejected with a line that names its mistake."""

import math

import pytest
import torch

from vimlearn.course.exercise import grade


def test_euler_step_names_its_mistakes(rejected):
    assert rejected("euler_step", lambda s, a, b, x, delta: delta * (a * s + b * x), "change alone")
    assert rejected("euler_step", lambda s, a, b, x, delta: s + delta * (a * s + x), "factor b is missing")
    assert rejected("euler_step", lambda s, a, b, x, delta: s + delta * (-a * s + b * x), "leak", "wrong sign")
    assert rejected("euler_step", lambda s, a, b, x, delta: s - delta * (a * s + b * x), "back in time")
    assert rejected("euler_step", lambda s, a, b, x, delta: s + a * s + b * x, "delta is forgotten")
    assert rejected("euler_step", lambda s, a, b, x, delta: (1 + delta * a) * s + b * x, "inflow", "without it")
    assert rejected("euler_step", lambda s, a, b, x, delta: (1 + a) * s + delta * b * x, "leak a s is left")
    assert rejected("euler_step", lambda s, a, b, x, delta: (s + delta * b * x) / (1 - delta * a), "new level",
                    "old one")

    def exact(s, a, b, x, delta):
        decay = math.exp(a * delta)
        return decay * s + (decay - 1) / a * b * x

    assert rejected("euler_step", exact, "exact level", "slope of the start")


def test_euler_limits_names_its_mistakes(rejected):
    assert rejected("euler_limits", (0.125, 0.0625), "exchanged")
    assert rejected("euler_limits", (1.0, 2.0), "a = -1")
    assert rejected("euler_limits", (0.0625, 2.0), "stable", "a = -1")
    assert rejected("euler_limits", (-0.0625, -0.125), "positive")
    assert rejected("euler_limits", (0.0625, 4.0), "tank")
    assert rejected("euler_limits", (0.0625, 0.0625), "stable", "-1")
    assert rejected("euler_limits", 0.125, "two numbers")
    assert rejected("euler_limits", (0.0625, None), "should be a number")


def bilinear(a, b, delta, *, half=0.5, below=-1, top=1, input_scale=1.0):
    z = delta * a
    bottom = 1 + below * half * z
    return (1 + top * half * z) / bottom, input_scale * delta * b / bottom


def test_bilinear_step_names_its_mistakes(rejected):
    assert rejected("bilinear_step", lambda a, b, delta: (1 + delta * a, delta * b), "A_bar", "Euler")
    assert rejected("bilinear_step", lambda a, b, delta: bilinear(a, b, delta, half=1.0), "delta / 2")
    assert rejected("bilinear_step", lambda a, b, delta: bilinear(a, b, delta, half=1.0, top=0), "end; average")
    assert rejected("bilinear_step", lambda a, b, delta: bilinear(a, b, delta, below=1, top=-1), "upside down")
    assert rejected("bilinear_step", lambda a, b, delta: bilinear(a, b, delta, below=1), "1 everywhere", "a sign")
    assert rejected("bilinear_step", lambda a, b, delta: (torch.exp(delta * a), delta * b), "zero-order hold")
    assert rejected("bilinear_step", lambda a, b, delta: bilinear(a, b, delta, input_scale=0.5), "B_bar is halved")
    assert rejected("bilinear_step", lambda a, b, delta: (bilinear(a, b, delta)[0], delta * b), "B_bar", "Euler")
    assert rejected("bilinear_step", lambda a, b, delta: (bilinear(a, b, delta)[0], b / (1 - delta * a / 2)),
                    "forgets delta")
    assert rejected("bilinear_step", lambda a, b, delta: (bilinear(a, b, delta)[0], delta / (1 - delta * a / 2)),
                    "factor b")
    assert rejected("bilinear_step", lambda a, b, delta: bilinear(a, b, delta)[0], "2 values")


def held(a, delta):
    return (torch.exp(delta * a) - 1) / a


def test_zero_order_hold_names_its_mistakes(rejected):
    assert rejected("zero_order_hold", lambda a, b, delta: (torch.exp(-delta * a), delta * b),
                    "wrong sign in the exponent")
    assert rejected("zero_order_hold", lambda a, b, delta: (torch.exp(a), delta * b), "forgets delta")
    assert rejected("zero_order_hold", lambda a, b, delta: (1 + delta * a, delta * b), "A_bar is Euler")
    assert rejected("zero_order_hold", lambda a, b, delta: (torch.exp(delta * a), delta * b), "B_bar is delta b",
                    "Euler")
    assert rejected("zero_order_hold", lambda a, b, delta: (torch.exp(delta * a), a * held(a, delta) * b), "lacks 1/a")
    assert rejected("zero_order_hold", lambda a, b, delta: (torch.exp(delta * a), held(a, delta)), "factor b")
    assert rejected("zero_order_hold", lambda a, b, delta: (torch.exp(delta * a), -held(a, delta) * b), "B_bar",
                    "wrong sign")
    assert rejected("zero_order_hold", lambda a, b, delta: (torch.exp(delta * a), held(a, delta) * b / delta),
                    "divided by z")
    assert rejected("zero_order_hold", lambda a, b, delta: (torch.exp(delta * a), torch.exp(delta * a) / a * b),
                    "lacks the - 1")


def test_zero_order_hold_wants_small_steps_and_zero(rejected):
    assert rejected("zero_order_hold", lambda a, b, delta: (torch.exp(delta * a), held(a, delta) * b), "expm1",
                    "float32")
    assert rejected("zero_order_hold", lambda a, b, delta: (torch.exp(delta * a), torch.expm1(delta * a) / a * b),
                    "a = 0", "0 by 0")

    def one_where(a, b, delta):
        z = delta * a
        return torch.exp(z), delta * b * torch.where(z == 0, 1 + z / 2, torch.expm1(z) / z)

    def flat_at_zero(a, b, delta):
        z = delta * a
        safe = torch.where(z == 0, 1.0, z)
        return torch.exp(z), delta * b * torch.where(z == 0, 1.0, torch.expm1(safe) / safe)

    def nothing_at_zero(a, b, delta):
        z = delta * a
        safe = torch.where(z == 0, 1.0, z)
        return torch.exp(z), delta * b * torch.where(z == 0, 0.0, torch.expm1(safe) / safe)

    def no_gradient_for_delta(a, b, delta):
        z = delta * a
        safe = torch.where(z == 0, 1.0, z)
        step = delta.detach() if isinstance(delta, torch.Tensor) else delta
        return torch.exp(z), step * b * torch.where(z == 0, 1 + z / 2, torch.expm1(safe) / safe)

    assert rejected("zero_order_hold", one_where, "gradient at a = 0 is NaN", "torch.where")
    assert rejected("zero_order_hold", flat_at_zero, "no slope in a", "1 + z / 2")
    assert rejected("zero_order_hold", nothing_at_zero, "input is lost")
    assert rejected("zero_order_hold", no_gradient_for_delta, "ddelta")


def test_step_gradient_names_its_mistakes(rejected):
    def answer(dA_bar, dB_bar):
        return lambda a, b, delta: (dA_bar(a, delta), dB_bar(a, b, delta))

    right = (lambda a, delta: a * torch.exp(delta * a)), (lambda a, b, delta: torch.exp(delta * a) * b)
    assert grade("step_gradient", answer(*right)).status == "right"
    assert rejected("step_gradient", answer(lambda a, delta: torch.exp(delta * a), right[1]), "dA_bar lacks",
                    "factor a")
    assert rejected("step_gradient", answer(lambda a, delta: a, right[1]), "Euler")
    assert rejected("step_gradient", answer(lambda a, delta: delta * torch.exp(delta * a), right[1]),
                    "brings down delta")
    assert rejected("step_gradient", answer(lambda a, delta: -a * torch.exp(delta * a), right[1]), "dA_bar",
                    "wrong sign")
    assert rejected("step_gradient", answer(right[0], lambda a, b, delta: b), "Vim")
    assert rejected("step_gradient", answer(right[0], lambda a, b, delta: held(a, delta) * b), "B_bar itself")
    assert rejected("step_gradient", answer(right[0], lambda a, b, delta: torch.exp(delta * a)), "factor b")
    assert rejected("step_gradient", answer(right[0], lambda a, b, delta: torch.exp(delta * a) / a * b), "1/a")
    assert rejected("step_gradient", answer(right[0], lambda a, b, delta: a * torch.exp(delta * a) * b),
                    "factor a too many")


def test_memory_names_its_mistakes(rejected):
    assert rejected("memory", (0.2, 1 / 197), "tokens", "divide it by delta")
    assert rejected("memory", (0.1, 1 / 197), "inverse")
    assert rejected("memory", (50, 1 / 197), "a = -1")
    assert rejected("memory", (6.93, 1 / 197), "one half")
    assert rejected("memory", (10, 197), "step", "one over")
    assert rejected("memory", (10, 1 / 985), "a = -5")
    assert rejected("memory", (10, -1 / 197), "positive")
    assert rejected("memory", 10, "two numbers")


def test_memory_takes_three_digits():
    assert grade("memory", (10, 0.00508)).status == "right"


def test_unrolled_kernel_names_its_mistakes(rejected):
    def from_ages(first, last=0):
        def kernel(A_bar, B_bar, C, length):
            return torch.stack([(C * A_bar**j * B_bar).sum() for j in range(first, length + first + last)])
        return kernel

    def backwards(A_bar, B_bar, C, length):
        return torch.stack([(C * A_bar**j * B_bar).sum() for j in reversed(range(length))])

    def constant_input(A_bar, B_bar, C, length):
        s, out = torch.zeros_like(A_bar), []
        for _ in range(length):
            s = A_bar * s + B_bar
            out.append((C * s).sum())
        return torch.stack(out)

    assert rejected("unrolled_kernel", from_ages(1), "off by one", "A_bar^1")
    assert rejected("unrolled_kernel", from_ages(0, last=1), "shape")
    assert rejected("unrolled_kernel", backwards, "backwards")
    assert rejected("unrolled_kernel", constant_input, "running sum")
    plain, ones = from_ages(0), torch.ones(3)
    assert rejected("unrolled_kernel", lambda A_bar, B_bar, C, length: plain(A_bar, ones, C, length), "lacks B_bar")
    assert rejected("unrolled_kernel", lambda A_bar, B_bar, C, length: plain(A_bar, B_bar, ones, length), "lacks C")
    assert rejected("unrolled_kernel", lambda A_bar, B_bar, C, length: plain(A_bar.detach(), B_bar, C, length),
                    "dA_bar")


@pytest.mark.parametrize("name", ["euler_limits", "memory"])
def test_predictions_start_untouched(name):
    assert grade(name, None).status == "not started"
