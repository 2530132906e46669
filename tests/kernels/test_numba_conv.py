"""The convolution on the CPU by Numba: values and every gradient against the loop in float64."""

import pytest
import torch
from helpers import assert_near, strided
from vimlearn.kernels.layout import Conv
from vimlearn.kernels.numba_conv import PART, SEGMENT, conv_backward, conv_forward

from vimlearn.conv import causal_conv1d_loop

BOTH = (False, True)


def inputs(b=2, l=7, e=70, k=4, dtype=torch.float64, reverses=BOTH, bias=True):
    """Return x, a convolution for each of `reverses`, and the gradients of their results."""
    def normal(*shape):
        return torch.randn(shape, dtype=torch.float64).to(dtype)
    convs = [Conv(normal(e, k), normal(e) if bias else None, reverse) for reverse in reverses]
    return normal(b, l, e), convs, [normal(b, l, e) for _ in convs]


def by_kernel(x, convs, grads, silu=True):
    """Return the results and all gradients by name."""
    results = {f"output {i}": out for i, out in enumerate(conv_forward(x, convs, silu))}
    results["gradient of x"], others = conv_backward(grads, x, convs, silu)
    for i, (weight, bias) in enumerate(others):
        results |= {f"gradient of weight {i}": weight} | ({} if bias is None else {f"gradient of bias {i}": bias})
    return results


def by_loop(x, convs, grads, silu=True):
    """The same in float64, by PyTorch's autograd."""
    x = x.double().requires_grad_()
    parameters = {f"gradient of {name} {i}": tensor.double().requires_grad_() for i, conv in enumerate(convs)
                  for name, tensor in (("weight", conv.weight), ("bias", conv.bias)) if tensor is not None}
    outs = [causal_conv1d_loop(x, parameters[f"gradient of weight {i}"], parameters.get(f"gradient of bias {i}"),
                               "silu" if silu else None, conv.reverse) for i, conv in enumerate(convs)]
    leaves = {"gradient of x": x} | parameters
    found = torch.autograd.grad(outs, list(leaves.values()), [grad.double() for grad in grads])
    return {f"output {i}": out.detach() for i, out in enumerate(outs)} | dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("k", [1, 3, 4, 9])
@pytest.mark.parametrize("length", [1, 2, 3, 7, SEGMENT, 65, PART, 197])
def test_equals_the_loop(length, k, silu, poisoned_memory):
    tensors = inputs(l=length, k=k)
    assert_near(by_kernel(*tensors, silu=silu), by_loop(*tensors, silu=silu), 1e-12)


@pytest.mark.parametrize("reverses", [(False,), (True,), (True, False), (False, False)])
def test_one_direction_or_two_in_any_order(reverses, poisoned_memory):
    tensors = inputs(l=65, reverses=reverses)
    assert_near(by_kernel(*tensors), by_loop(*tensors), 1e-12)


@pytest.mark.parametrize("e", [1, 5, 64, 130])
def test_any_number_of_channels_and_no_bias(e, poisoned_memory):
    tensors = inputs(e=e, bias=False)
    assert_near(by_kernel(*tensors), by_loop(*tensors), 1e-12)


@pytest.mark.parametrize("dtype, limit", [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
def test_lower_precision(dtype, limit, poisoned_memory):
    tensors = inputs(l=197, dtype=dtype)
    found = by_kernel(*tensors)
    assert {value.dtype for value in found.values()} == {dtype}
    assert_near(found, by_loop(*tensors), limit)


def test_float32_weights_beside_bfloat16_keep_their_precision(poisoned_memory):
    x, convs, grads = inputs(l=65, dtype=torch.bfloat16)
    convs = [Conv(torch.randn(70, 4), torch.randn(70), conv.reverse) for conv in convs]
    found, expected = by_kernel(x, convs, grads), by_loop(x, convs, grads)
    wide = {name for name, value in found.items() if value.dtype == torch.float32}
    assert wide == {f"gradient of {name} {i}" for name in ("weight", "bias") for i in (0, 1)}
    assert_near(found, expected, 1e-2)
    assert_near({name: found[name] for name in wide}, {name: expected[name] for name in wide}, 2e-6)


def test_large_numbers_reach_the_ends_of_the_silu():
    """Far below 0 the SiLU and its slope are 0, far above the identity and 1; the exponential is out of range.

    The limit is wide because a sum of thousands that comes out near 0 has lost its digits.
    """
    x, convs, grads = inputs(l=65, dtype=torch.float32)
    assert_near(by_kernel(1000 * x, convs, grads), by_loop(1000 * x, convs, grads), 1e-4)


@pytest.mark.parametrize("how", ["slice", "tokens outside", "channels outside"])
def test_any_strides(how):
    x, convs, grads = inputs()
    other = strided(x, how), convs, [strided(grad, how) for grad in grads]
    assert not other[0].is_contiguous()
    found = by_kernel(*other)
    assert all(value.is_contiguous() for value in found.values())
    assert_near(found, by_kernel(x, convs, grads), 0)


def test_expanded_gradients_and_transposed_weights():
    x, convs, grads = inputs()
    grads = [grad[:1, :1, :1].expand_as(x) for grad in grads]
    convs = [conv._replace(weight=conv.weight.T.contiguous().T) for conv in convs]
    assert_near(by_kernel(x, convs, grads), by_loop(x, convs, grads), 1e-12)


def test_the_number_of_threads_does_not_change_a_bit():
    tensors, threads = inputs(b=8, l=300, dtype=torch.float32), torch.get_num_threads()
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
