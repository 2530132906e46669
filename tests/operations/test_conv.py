"""Causal depthwise convolution."""

import pytest
import torch
import torch.nn.functional as F
from helpers import LENGTHS, assert_near, with_gradients

from vimlearn import causal_conv1d
from vimlearn.conv import CONV

BACKENDS = [name for name in CONV.available(torch.device("cpu")) if name != "export"]


def conv_inputs(b=2, l=7, e=5, k=4, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = {"x": (b, l, e), "weight": (e, k), "bias": (e,)}
    return {name: torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for name, shape in shapes.items()}


def by_torch(x, weight, bias, activation=None, reverse=False):
    """PyTorch's own convolution on the transposed tensor, padded on the left; flipped for the reverse direction."""
    x = x.flip(1) if reverse else x
    y = F.conv1d(F.pad(x.transpose(1, 2), (weight.shape[1] - 1, 0)), weight[:, None], bias, groups=x.shape[2])
    y = F.silu(y.transpose(1, 2)) if activation else y.transpose(1, 2)
    return y.flip(1) if reverse else y


@pytest.mark.parametrize("k", [1, 2, 4, 7])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_torch_values_and_gradients(backend, length, reverse, activation, k):
    tensors = conv_inputs(l=length, k=k)
    how = {"activation": activation, "reverse": reverse}
    found = with_gradients(lambda **t: causal_conv1d(**t, **how, backend=backend), tensors)
    assert_near(found, with_gradients(lambda **t: by_torch(**t, **how), tensors), 1e-12)


@pytest.mark.parametrize("reverse, seen", [(False, [2, 3, 4, 5]), (True, [0, 1, 2])])
def test_sees_only_its_side(reverse, seen):
    """A change of token 2 reaches tokens 2 to 5 (k = 4), or in reverse tokens 0 to 2."""
    tensors = conv_inputs(b=1, l=10)
    before = causal_conv1d(**tensors, reverse=reverse)
    tensors["x"][:, 2] += 1
    changed = (causal_conv1d(**tensors, reverse=reverse) != before).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == seen


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_lower_precision(backend, dtype, limit):
    tensors = conv_inputs(l=65, dtype=dtype)
    out = causal_conv1d(**tensors, activation="silu", backend=backend)
    assert out.dtype == dtype
    wide = causal_conv1d(**{k: v.double() for k, v in tensors.items()}, activation="silu", backend="loop")
    assert_near({"out": out}, {"out": wide}, limit)


def test_without_bias_and_with_float32_weight_beside_bfloat16():
    tensors = conv_inputs(dtype=torch.float32)
    x = tensors["x"].bfloat16()
    out = causal_conv1d(x, tensors["weight"])
    assert_near({"out": out}, {"out": by_torch(x.double(), tensors["weight"].double(), None)}, 1e-2)
