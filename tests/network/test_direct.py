"""A mixer in inference that runs as one call of kernels: the same numbers, and only where nobody could tell."""

import pytest
import torch
from helpers import LENGTHS, assert_near
from torch import nn
from vimlearn.kernels import numba_mixer

from vimlearn import BidirectionalMixer

D = 40


@pytest.fixture
def calls(monkeypatch):
    """Count the calls of the direct way."""
    made, mix = [], numba_mixer.mix

    def counted(*args):
        made.append(args[0].shape)
        return mix(*args)
    monkeypatch.setattr(numba_mixer, "mix", counted)
    return made


def plain_mixer(**changes):
    mixer = BidirectionalMixer(D, d_state=changes.pop("d_state", 6), **changes)
    for parameter in mixer.parameters():
        # Steps and decays as after some training, no two channels alike.
        parameter.data += 0.1 * torch.randn_like(parameter)
    # The kernels are loaded when something is first computed with them.
    with torch.no_grad():
        mixer(torch.randn(1, 2, D))
    return mixer


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("changes", [{}, {"bidirectional": False}, {"halve_directions": False}, {"d_conv": 3},
                                     {"d_state": 1}, {"dt_rank": 1}, {"expand": 4}],
                         ids=lambda c: " ".join(map(str, *c.items())) if c else "as published")
@torch.no_grad()
def test_numbers_are_those_of_the_loop(length, changes, calls, poisoned_memory):
    mixer, h = plain_mixer(**changes), torch.randn(3, length, D)
    found = mixer(h)
    assert calls[-1] == h.shape
    exact = BidirectionalMixer(D, **{"d_state": 6} | changes, backend="loop").double()
    exact.load_state_dict(mixer.state_dict())
    assert_near({"mixed": found}, {"mixed": exact(h.double())}, 2e-5)


@torch.no_grad()
def test_inputs_stay_as_they_are(calls):
    mixer, h = plain_mixer(), torch.randn(2, 9, D)
    before = [x.clone() for x in (h, *mixer.parameters())]
    assert torch.equal(mixer(h), mixer(h)) and len(calls) >= 2
    assert all(map(torch.equal, before, (h, *mixer.parameters())))


@torch.no_grad()
def test_parameters_that_move_in_memory_are_followed(calls):
    mixer, h = plain_mixer(), torch.randn(2, 9, D)
    before = mixer(h)
    mixer.A_log.data = mixer.A_log + 1
    changed = mixer(h)
    mixer.A_log.data.sub_(1)
    assert not torch.allclose(before, changed, rtol=1e-3) and len(calls) >= 3
    torch.testing.assert_close(mixer(h), before)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def _double_x_proj(mixer):
    mixer.x_proj.register_forward_hook(lambda module, args, output: 2 * output)


def _double_before_out_proj(mixer):
    mixer.out_proj.register_forward_pre_hook(lambda module, args: (2 * args[0],))


def _double_by_subclass(mixer):
    doubled = Doubled(*mixer.x_proj.weight.shape[::-1], bias=False)
    doubled.weight = mixer.x_proj.weight
    mixer.x_proj = doubled


def _double_by_method(mixer):
    forward = mixer.out_proj.forward
    mixer.out_proj.forward = lambda x: 2 * forward(x)


def _add_a_bias(mixer):
    mixer.out_proj.bias = nn.Parameter(torch.ones(D))


def _parametrize(mixer):
    torch.nn.utils.parametrizations.weight_norm(mixer.in_proj)
    mixer.in_proj.parametrizations.weight.original0.data *= 2


def _override_inputs(mixer):
    compute = mixer.inputs

    def inputs(h):
        scans, z = compute(h)
        return scans, 2 * z
    mixer.inputs = inputs


@pytest.mark.parametrize("change", [_double_x_proj, _double_before_out_proj, _double_by_subclass, _double_by_method,
                                    _add_a_bias, _parametrize, _override_inputs])
@torch.no_grad()
def test_what_somebody_changed_is_not_passed_by(change, calls):
    mixer, h = plain_mixer(), torch.randn(2, 9, D)
    before = mixer(h)
    change(mixer)
    count = len(calls)
    after = mixer(h)
    assert len(calls) == count and not torch.allclose(before, after, rtol=1e-3, atol=1e-3)


def test_not_with_gradients(calls):
    mixer, h = plain_mixer(), torch.randn(2, 9, D)
    count = len(calls)
    mixer(h).sum().backward()
    assert len(calls) == count and all(p.grad is not None for p in mixer.parameters())


@torch.no_grad()
def test_not_for_another_backend_dtype_or_autocast(calls):
    mixer, h = plain_mixer(), torch.randn(2, 9, D)
    count = len(calls)
    mixer.backend = "parallel"
    mixer(h)
    mixer.backend = "auto"
    with torch.autocast("cpu", torch.bfloat16):
        assert mixer(h).dtype == torch.bfloat16
    assert mixer.bfloat16()(h.bfloat16()).dtype == torch.bfloat16
    assert len(calls) == count


@torch.no_grad()
def test_not_where_the_weights_have_gaps_in_memory(calls):
    mixer, h = plain_mixer(), torch.randn(2, 9, D)
    before = mixer(h)
    count = len(calls)
    mixer.x_proj.weight.data = mixer.x_proj.weight.t().contiguous().t()
    torch.testing.assert_close(mixer(h), before)
    assert len(calls) == count


@torch.no_grad()
def test_not_where_shapes_do_not_fit(calls):
    mixer, h = plain_mixer(), torch.randn(2, 9, D)
    mixer.x_proj = nn.Linear(mixer.d_inner, 5, bias=False)
    count = len(calls)
    with pytest.raises(RuntimeError):
        mixer(h)
    assert len(calls) == count


@torch.no_grad()
def test_whoever_counts_operations_sees_the_operators(calls):
    from torch.utils._python_dispatch import TorchDispatchMode
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))
    mixer, h = plain_mixer(), torch.randn(2, 9, D)
    count = len(calls)
    with Watch():
        mixer(h)
    assert len(calls) == count and any("bidirectional_scan_numba" in name for name in seen)
