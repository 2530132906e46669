"""RMSNorm and LayerNorm with the residual add in front."""

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_near, with_gradients

from vimlearn import RMSNorm, add_rms_norm
from vimlearn.norm import NORM, LayerNorm, add_layer_norm

BACKENDS = [name for name in NORM.available(torch.device("cpu")) if name != "export"]


def norm_inputs(b=2, l=7, d=6, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    normal = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)  # noqa: E731
    # Small numbers, so that eps matters.
    h, residual, weight = normal(b, l, d) * 0.01, normal(b, l, d) * 0.01, normal(d)
    return {"h": h.to(dtype), "residual": residual, "weight": weight.to(dtype)}


@pytest.mark.parametrize("backend", BACKENDS)
def test_rms_equals_torch(backend):
    def expected(h, residual, weight):
        total = h + residual
        return F.rms_norm(total, weight.shape, weight, 1e-5), total
    tensors = norm_inputs()
    found = with_gradients(lambda **t: add_rms_norm(**t, eps=1e-5, backend=backend), tensors)
    assert_near(found, with_gradients(expected, tensors), 1e-12)


def test_layer_norm_equals_torch():
    tensors = norm_inputs() | {"bias": torch.randn(6, dtype=torch.float64)}

    def expected(h, residual, weight, bias):
        return F.layer_norm(h + residual, weight.shape, weight, bias, 1e-5), h + residual
    found = with_gradients(lambda **t: add_layer_norm(**t, eps=1e-5), tensors)
    assert_near(found, with_gradients(expected, tensors), 1e-12)


@pytest.mark.parametrize("module", [RMSNorm, LayerNorm])
def test_first_block_has_no_residual(module):
    h = torch.randn(2, 3, 8)
    normed, residual = module(8)(h)
    assert torch.equal(residual, h)
    assert torch.equal(normed, module(8)(torch.zeros_like(h), h)[0])


@pytest.mark.parametrize("module", [RMSNorm, LayerNorm])
def test_residual_stays_float32(module):
    """A small branch survives beside a large residual stream: in bfloat16 it would be lost."""
    h, residual = torch.full((1, 1, 8), 0.01, dtype=torch.bfloat16), torch.full((1, 1, 8), 100.0)
    normed, total = module(8).bfloat16()(h, residual)
    assert normed.dtype == torch.bfloat16
    assert total.dtype == torch.float32 and (total - 100).min() > 0.009
    # Also from the first block on, where nothing is added yet
    assert module(8).bfloat16()(h)[1].dtype == torch.float32
