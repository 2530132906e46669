"""Linear state-space models: discretisation, recurrence and convolution."""

import math
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.integrate import solve_ivp
from scipy.signal import cont2discrete

from vimlearn import VimlearnError
from vimlearn.ssm import DISCRETIZATIONS, causal_convolution, convolution_kernel, discretize, recurrence

A_DENSE = torch.tensor([[-0.1, -2.0], [2.0, -0.3]], dtype=torch.float64)
B = torch.tensor([1.0, 0.5], dtype=torch.float64)
C = torch.tensor([0.7, -1.1], dtype=torch.float64)


@pytest.mark.parametrize("method", ["euler", "bilinear", "zoh"])
def test_dense_agrees_with_scipy(method):
    A_bar, B_bar = discretize(A_DENSE, B, 0.3, method, dense=True)
    expected = cont2discrete((A_DENSE.numpy(), B.numpy()[:, None], C.numpy()[None], np.zeros((1, 1))), 0.3, method)
    np.testing.assert_allclose(A_bar, expected[0], rtol=1e-12)
    np.testing.assert_allclose(B_bar, expected[1][:, 0], rtol=1e-12)


@pytest.mark.parametrize("method", DISCRETIZATIONS)
def test_diagonal_is_dense_with_zeros(method):
    a = torch.tensor([-0.5, -3.0, 0.2], dtype=torch.float64)
    b = torch.tensor([1.0, -2.0, 0.3], dtype=torch.float64)
    A_bar, B_bar = discretize(a, b, 0.4, method)
    dense_A, dense_B = discretize(torch.diag(a), b, 0.4, method, dense=True)
    torch.testing.assert_close(torch.diag(A_bar), dense_A, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(B_bar, dense_B, rtol=1e-12, atol=1e-14)


def test_vim_form_is_exact_decay_and_plain_input():
    a, b = torch.tensor([-2.0]), torch.tensor([3.0])
    A_bar, B_bar = discretize(a, b, 0.5, "vim")
    assert A_bar.item() == pytest.approx(np.exp(-1.0), rel=1e-6)
    assert B_bar.item() == 1.5


@given(st.floats(-40, 3), st.floats(0.01, 2))
@settings(max_examples=50, deadline=None)
def test_zero_order_hold_solves_the_equation(a, delta):
    """One step from s = 0.7 under a held input of 1.3 ends where a numerical solver of the equation ends."""
    A_bar, B_bar = discretize(torch.tensor([a]).double(), torch.tensor([2.0]).double(), delta, "zoh")
    end = solve_ivp(lambda t, s: a * s + 2.0 * 1.3, (0, delta), [0.7], rtol=1e-10, atol=1e-12, method="LSODA").y[0, -1]
    assert (A_bar * 0.7 + B_bar * 1.3).item() == pytest.approx(end, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("dense", [False, True])
def test_zero_order_hold_at_a_singular_matrix(dense):
    """A = 0 is an integrator: the state adds delta B x. Values and gradients are finite."""
    a = torch.zeros(1, 1, dtype=torch.float64) if dense else torch.zeros(1, dtype=torch.float64)
    a.requires_grad_()
    A_bar, B_bar = discretize(a, torch.tensor([2.0], dtype=torch.float64), 0.25, "zoh", dense=dense)
    assert A_bar.item() == 1 and B_bar.item() == pytest.approx(0.5)
    B_bar.sum().backward()
    # d/da of (exp(delta a) - 1) / a * b at 0 is delta^2 b / 2
    assert a.grad.item() == pytest.approx(0.25**2)


@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-5), (torch.float64, 1e-11)])
@pytest.mark.parametrize("z", [-1.0, -0.06, -0.05, -0.049, -1e-3, -1e-7, -1e-20, 0.0, 1e-6, 0.04, 0.3])
def test_gradient_of_zero_order_hold_near_zero(z, dtype, limit):
    """d/da of (exp(a) - 1) / a, against its series in exact fractions."""
    a = torch.tensor([z], dtype=dtype, requires_grad=True)
    discretize(a, torch.ones(1, dtype=dtype), 1.0, "zoh")[1].sum().backward()
    exact = sum(Fraction(k, math.factorial(k + 1)) * Fraction(a.item()) ** (k - 1) for k in range(1, 25))
    assert a.grad.item() == pytest.approx(float(exact), rel=limit)


@pytest.mark.parametrize("method", DISCRETIZATIONS)
def test_gradients_of_the_discretisation(method):
    a = torch.tensor([-0.5, -3.0], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    delta = torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b, delta: discretize(a, b, delta, method), (a, b, delta))


@pytest.mark.parametrize("method", DISCRETIZATIONS)
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("length", [1, 2, 7, 64, 197])
def test_recurrence_equals_convolution(method, dense, length):
    a = A_DENSE if dense else torch.tensor([-0.5, -3.0], dtype=torch.float64)
    A_bar, B_bar = discretize(a, B, 0.1, method, dense=dense)
    x = torch.randn(3, length, dtype=torch.float64)
    y = causal_convolution(x, convolution_kernel(A_bar, B_bar, C, length))
    torch.testing.assert_close(y, recurrence(A_bar, B_bar, C, x), rtol=1e-10, atol=1e-12)


def test_skip_adds_the_input():
    A_bar, B_bar = discretize(torch.tensor([-1.0]), torch.tensor([1.0]), 0.1)
    x, c = torch.randn(4), torch.tensor([1.0])
    torch.testing.assert_close(recurrence(A_bar, B_bar, c, x, D=2.0), recurrence(A_bar, B_bar, c, x) + 2 * x)


def test_kernel_starts_at_the_input_itself():
    kernel = convolution_kernel(torch.tensor([0.5]), torch.tensor([3.0]), torch.tensor([2.0]), 3)
    assert kernel.tolist() == [6.0, 3.0, 1.5]


@pytest.mark.parametrize("call, words", [
    (lambda: discretize(torch.ones(2), torch.ones(2), 0.1, "zho"), "did you mean 'zoh'"),
    (lambda: discretize(torch.ones(2), torch.ones(3), 0.1), "same last size n"),
    (lambda: discretize(torch.ones(2, 3), torch.ones(2), 0.1, dense=True), r"expected \(n, n\)"),
    (lambda: recurrence(torch.ones(2), torch.ones(3), torch.ones(3), torch.ones(4)), "A_bar, B_bar, C have shapes"),
    (lambda: convolution_kernel(torch.ones(2, 2, 2), torch.ones(2), torch.ones(2), 4), "A_bar, B_bar, C have shapes"),
    (lambda: causal_convolution(torch.ones(4), torch.ones(3)), r"expected \(4,\)"),
])
def test_bad_input_is_named(call, words):
    with pytest.raises(VimlearnError, match=words):
        call()
