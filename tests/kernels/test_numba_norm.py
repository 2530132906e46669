"""Residual add and RMSNorm on the CPU by Numba: values and every gradient against the loop in float64."""

import pytest
import torch
from helpers import assert_near, strided
from vimlearn.kernels.numba_norm import ROWS, norm_backward, norm_forward

from vimlearn.norm import add_rms_norm_loop

EPS = 1e-3


def inputs(b=2, l=7, d=70, dtype=torch.float64, size=0.05):
    """Return h, residual, weight and the gradients of both results; the numbers are small, so that eps matters."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*shape):
        return torch.randn(shape, dtype=torch.float64)
    return ((normal(b, l, d) * size).to(dtype), (normal(b, l, d) * size).to(wide), normal(d).to(dtype),
            normal(b, l, d).to(dtype), normal(b, l, d).to(wide))


def by_kernel(h, residual, weight, grad_y, grad_residual):
    """Return the results and all gradients by name."""
    y, total, rstd = norm_forward(h, residual, weight, EPS)
    grad, grad_weight = norm_backward(grad_y, grad_residual, total, weight, rstd)
    return {"y": y, "residual": total, "rstd": rstd, "gradient of the sum": grad, "gradient of weight": grad_weight}


def by_loop(h, residual, weight, grad_y, grad_residual):
    """The same in float64, by PyTorch's autograd."""
    h, weight = h.double().requires_grad_(), weight.double().requires_grad_()
    y, total = add_rms_norm_loop(h, None if residual is None else residual.double(), weight, EPS)
    pairs = [(out, grad.double()) for out, grad in ((y, grad_y), (total, grad_residual)) if grad is not None]
    grad, grad_weight = torch.autograd.grad([out for out, _ in pairs], [h, weight], [grad for _, grad in pairs],
                                            materialize_grads=True)
    rstd = (total.detach().square().mean(-1) + EPS).rsqrt()
    return {"y": y.detach(), "residual": total.detach(), "rstd": rstd, "gradient of the sum": grad,
            "gradient of weight": grad_weight}


@pytest.mark.parametrize("d", [1, 3, 64, 70, 192])
@pytest.mark.parametrize("length", [1, 2, 3, 7, ROWS, 65, 197])
def test_equals_the_loop(length, d, poisoned_memory):
    tensors = inputs(l=length, d=d)
    assert_near(by_kernel(*tensors), by_loop(*tensors), 1e-12)


@pytest.mark.parametrize("missing", [(1,), (3,), (4,), (3, 4), (1, 4)])
def test_without_residual_or_gradients(missing, poisoned_memory):
    tensors = [None if i in missing else tensor for i, tensor in enumerate(inputs())]
    assert_near(by_kernel(*tensors), by_loop(*tensors), 1e-12)


@pytest.mark.parametrize("dtype, limit", [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
def test_lower_precision(dtype, limit, poisoned_memory):
    tensors = inputs(l=197, d=200, dtype=dtype)
    found, expected = by_kernel(*tensors), by_loop(*tensors)
    assert found["y"].dtype == found["gradient of weight"].dtype == dtype
    wide = {name: found[name] for name in ("residual", "rstd", "gradient of the sum")}
    assert {value.dtype for value in wide.values()} == {torch.float32}
    assert_near(found, expected, limit)
    # The stream and its gradient are float32 whatever the dtype of the network.
    assert_near(wide, {name: expected[name] for name in wide}, 2e-6)


def test_float32_weight_beside_bfloat16_keeps_its_precision():
    h, residual, _, grad_y, grad_residual = inputs(dtype=torch.bfloat16)
    tensors = h, residual, torch.randn(70), grad_y, grad_residual
    found, expected = by_kernel(*tensors), by_loop(*tensors)
    assert found["gradient of weight"].dtype == torch.float32
    # Rounded once, at the end.
    assert (found["y"] == expected["y"].bfloat16()).float().mean() > 0.99
    wide = {name: found[name] for name in ("gradient of the sum", "gradient of weight")}
    assert_near(wide, {name: expected[name] for name in wide}, 2e-6)


@pytest.mark.parametrize("how", ["slice", "tokens outside", "channels outside"])
def test_any_strides(how):
    h, residual, weight, grad_y, grad_residual = inputs()
    other = strided(h, how), strided(residual, how), weight, strided(grad_y, how), strided(grad_residual, how)
    assert not other[0].is_contiguous()
    found = by_kernel(*other)
    assert all(value.is_contiguous() for value in found.values())
    assert_near(found, by_kernel(h, residual, weight, grad_y, grad_residual), 0)


def test_the_number_of_threads_does_not_change_a_bit():
    tensors, threads = inputs(b=8, l=300, d=192, dtype=torch.float32), torch.get_num_threads()
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        try:
            found.append(by_kernel(*tensors))
        finally:
            torch.set_num_threads(threads)
    for other in found[1:]:
        for name, value in found[0].items():
            assert torch.equal(value, other[name]), name
