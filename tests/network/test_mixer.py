"""The bidirectional mixer: initialisation, symmetry, parameter counts."""

import math

import pytest
import torch
from helpers import assert_near

from vimlearn import BidirectionalMixer


def test_initialisation():
    m = BidirectionalMixer(192, depth=24)
    e, n, r = 384, 16, 12
    for A_log in (m.A_log, m.A_b_log):
        torch.testing.assert_close(A_log.exp(), torch.arange(1.0, n + 1).expand(e, n))
    assert (m.D == 1).all() and (m.D_b == 1).all()
    steps = torch.nn.functional.softplus(m.dt_proj.bias)
    assert 0.000999 < steps.min() < 0.0015 and 0.07 < steps.max() < 0.1001
    # Log-uniform between 1e-3 and 1e-1: half of the draws lie below 1e-2.
    assert (steps < 1e-2).float().mean() == pytest.approx(0.5, abs=0.1)
    assert (m.dt_proj_b.bias == 0).all()
    assert m.out_proj.weight.std().item() == pytest.approx(0.00601, rel=0.01)
    bounds = {"in_proj.weight": 192**-0.5, "x_proj.weight": e**-0.5, "x_proj_b.weight": e**-0.5,
              "dt_proj.weight": r**-0.5, "dt_proj_b.weight": r**-0.5, "conv1d.weight": 0.5, "conv1d.bias": 0.5,
              "conv1d_b.weight": 0.5, "conv1d_b.bias": 0.5, "out_proj.weight": (e * 24) ** -0.5}
    parameters = dict(m.named_parameters())
    for name, bound in bounds.items():
        largest, spread = parameters[name].abs().max().item(), parameters[name].std().item()
        assert 0.95 * bound < largest <= bound, name
        assert spread == pytest.approx(bound / math.sqrt(3), rel=0.08), name


def test_keys_and_their_order():
    keys = ["A_log", "D", "A_b_log", "D_b", "in_proj.weight", "conv1d.weight", "conv1d.bias", "x_proj.weight",
            "dt_proj.weight", "dt_proj.bias", "conv1d_b.weight", "conv1d_b.bias", "x_proj_b.weight", "dt_proj_b.weight",
            "dt_proj_b.bias", "out_proj.weight"]
    assert list(BidirectionalMixer(32).state_dict()) == keys
    assert list(BidirectionalMixer(32, bidirectional=False).state_dict()) == [k for k in keys if "_b" not in k]


@pytest.mark.parametrize("d, count", [(192, 282_048), (384, 1_043_328), (768, 4_003_584)])
def test_one_layer_has_the_published_count(d, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in BidirectionalMixer(d).parameters()) + d == count


def swap_directions(mixer):
    """Return the state dict with forward and backward parameters exchanged."""
    state = mixer.state_dict()
    other = {"A_log": "A_b_log", "D": "D_b"} | {f"{m}.{p}": f"{m}_b.{p}" for m in ("conv1d", "x_proj", "dt_proj")
                                                for p in ("weight", "bias")}
    other |= {v: k for k, v in other.items()}
    return {k: state[other.get(k, k)] for k in state}


@pytest.mark.parametrize("backend", ["loop", "parallel"])
def test_flipping_the_tokens_and_swapping_the_directions_flips_the_output(backend):
    mixer = BidirectionalMixer(32, backend=backend).double()
    with torch.no_grad():
        for p in mixer.parameters():
            p += 0.1 * torch.randn_like(p)
    mirror = BidirectionalMixer(32, backend=backend).double()
    mirror.load_state_dict(swap_directions(mixer))
    h = torch.randn(2, 11, 32, dtype=torch.float64)
    assert_near({"out": mirror(h.flip(1)).flip(1)}, {"out": mixer(h)}, 1e-12)
    # The directions do differ
    assert not torch.allclose(mixer(h.flip(1)).flip(1), mixer(h), rtol=1e-3)


def test_forward_only_sees_only_the_past():
    h = torch.randn(1, 9, 32)
    for bidirectional, first in ((False, 4), (True, 0)):
        mixer = BidirectionalMixer(32, bidirectional=bidirectional)
        before = mixer(h)
        changed = h.clone()
        changed[:, 4] += 1
        assert (mixer(changed) != before).any(-1)[0].nonzero()[0].item() == first


def test_halving_is_half():
    """Without halving the output is twice as large, since `out_proj` is linear."""
    mixer = BidirectionalMixer(32)
    plain = BidirectionalMixer(32, halve_directions=False)
    plain.load_state_dict(mixer.state_dict())
    h = torch.randn(2, 5, 32)
    torch.testing.assert_close(plain(h), 2 * mixer(h))


def test_gate_of_zero_closes_the_mixer():
    mixer = BidirectionalMixer(32)
    with torch.no_grad():
        mixer.in_proj.weight[64:] = 0
    assert (mixer(torch.randn(1, 4, 32)) == 0).all()
