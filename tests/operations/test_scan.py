"""The selective scan: the definition against a scalar loop, every backend against the definition."""

import itertools
import math

import hypothesis.strategies as st
import pytest
import torch
from helpers import LENGTHS, assert_near, scan_inputs, with_gradients
from hypothesis import given, settings

from vimlearn import VimlearnError, selective_scan
from vimlearn.scan import SCAN
from vimlearn.scan_parallel import BLOCK_TOKENS, associative_scan_, scan_parallel, scan_parallel_backward

# What goes into files is compiled for each shape, and has tests of its own (tests/test_export.py).
FAST = [name for name in SCAN.available(torch.device("cpu")) if name not in ("loop", "export")]


def run(backend, reverse=False, softplus=True, last=True):
    def function(**tensors):
        return selective_scan(**tensors, delta_softplus=softplus, reverse=reverse, return_last_state=last,
                              backend=backend)
    return function


def scalar_scan(u, delta, A, B, C, D, z, delta_bias):
    """The equations of the module docstring, one number at a time."""
    b, l, e = u.shape
    out, last = torch.zeros(b, l, e), torch.zeros(b, e, A.shape[1])
    for i, c in itertools.product(range(b), range(e)):
        s = [0.0] * A.shape[1]
        for t in range(l):
            step = math.log1p(math.exp(delta[i, t, c] + delta_bias[c]))
            s = [math.exp(step * A[c, k]) * s[k] + step * u[i, t, c] * B[i, t, k] for k in range(A.shape[1])]
            y = sum(s[k] * C[i, t, k] for k in range(A.shape[1])) + D[c] * u[i, t, c]
            out[i, t, c] = y * z[i, t, c] / (1 + math.exp(-z[i, t, c]))
        last[i, c] = torch.tensor(s)
    return out, last


@pytest.mark.parametrize("backend", ["loop", *FAST])
def test_equals_the_equations_number_by_number(backend):
    tensors = scan_inputs(b=2, l=9, e=3, n=4)
    out, last = run(backend)(**tensors)
    expected = scalar_scan(**tensors)
    assert_near({"out": out, "last": last}, {"out": expected[0], "last": expected[1]}, 1e-6)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [*LENGTHS, 1000])
@pytest.mark.parametrize("backend", FAST)
def test_fast_equals_loop_values_and_gradients(backend, length, reverse, poisoned_memory):
    tensors = scan_inputs(l=length)
    assert_near(with_gradients(run(backend, reverse), tensors), with_gradients(run("loop", reverse), tensors), 1e-11)


@pytest.mark.parametrize("optional", [c for k in range(4) for c in itertools.combinations(("D", "z", "delta_bias"), k)])
@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("backend", FAST)
def test_optional_tensors(backend, softplus, optional):
    tensors = scan_inputs(l=9, **dict.fromkeys(optional))
    if not softplus:
        tensors["delta"] = tensors["delta"].abs()
    found = with_gradients(run(backend, softplus=softplus), tensors)
    assert_near(found, with_gradients(run("loop", softplus=softplus), tensors), 1e-11)


@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("backend", ["loop", *FAST])
def test_lower_precision_keeps_a_float32_state(backend, reverse, dtype, limit):
    """Every backend in a lower precision against the float64 loop on the same rounded inputs."""
    tensors = scan_inputs(l=65, dtype=dtype)
    found = with_gradients(run(backend, reverse), tensors)
    wide = with_gradients(run("loop", reverse), {k: v.double() for k, v in tensors.items()})
    assert_near(found, wide, limit)
    out, last = run(backend, reverse)(**tensors)
    assert out.dtype == dtype and last.dtype == torch.float32


def test_a_bfloat16_state_would_be_seen():
    """The state is right to float32 beside bfloat16 inputs: only the output is rounded."""
    tensors = scan_inputs(l=300, dtype=torch.bfloat16)
    wide = run("loop")(**{k: v.double() for k, v in tensors.items()})[1]
    for backend in ("loop", *FAST):
        assert_near({"last": run(backend)(**tensors)[1]}, {"last": wide}, 1e-5)


@pytest.mark.parametrize("backend", ["loop", *FAST])
def test_reverse_is_flip_scan_flip(backend):
    tensors = scan_inputs(l=13)
    flipped = {k: v.flip(1) if v.dim() == 3 else v for k, v in tensors.items()}
    out, last = run(backend, reverse=True)(**tensors)
    expected, expected_last = run(backend)(**flipped)
    assert_near({"out": out, "last": last}, {"out": expected.flip(1), "last": expected_last}, 1e-12)


@pytest.mark.parametrize("backend", FAST)
def test_non_contiguous_input(backend):
    def strided(x):
        return torch.stack([x, x.new_full(x.shape, torch.nan)], dim=-1)[..., 0]
    tensors = {k: strided(v) for k, v in scan_inputs(l=67).items()}
    tensors["u"] = tensors["u"].transpose(1, 2).contiguous().transpose(1, 2)
    expanded = dict(tensors, B=tensors["B"][:1].expand(2, -1, -1))
    for inputs in (tensors, expanded):
        dense = {k: v.contiguous() for k, v in inputs.items()}
        assert_near(with_gradients(run(backend), inputs), with_gradients(run("loop"), dense), 1e-11)


@pytest.mark.parametrize("backend", ["loop", *FAST])
def test_batch_of_one_channel_of_one_state_of_one(backend):
    tensors = scan_inputs(b=1, l=1, e=1, n=1)
    assert_near(with_gradients(run(backend), tensors), with_gradients(run("loop"), tensors), 1e-12)


@pytest.mark.parametrize("which", ["out", "last"])
@pytest.mark.parametrize("backend", ["loop", *FAST])
def test_gradient_of_one_output_alone(backend, which):
    """A loss on the last state alone, or on the output alone, reaches every input that it depends on."""
    tensors = scan_inputs(l=70)
    del tensors["D"], tensors["z"]
    if which == "last":
        # The last state does not see C
        C = tensors.pop("C")
        function = lambda backend: lambda **t: run(backend)(**t, C=C)[1]  # noqa: E731
    else:
        function = lambda backend: lambda **t: run(backend)(**t)[0]  # noqa: E731
    assert_near(with_gradients(function(backend), tensors), with_gradients(function("loop"), tensors), 1e-11)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("backend", FAST)
def test_gradcheck(backend, reverse):
    tensors = scan_inputs(b=1, l=5, e=2, n=2)
    names = list(tensors)
    inputs = [v.requires_grad_() for v in tensors.values()]
    assert torch.autograd.gradcheck(lambda *x: run(backend, reverse)(**dict(zip(names, x, strict=True))), inputs)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 5, BLOCK_TOKENS + 1])
def test_opcheck_of_the_parallel_scan(length, reverse):
    x = scan_inputs(l=length)
    inputs = [x[k].requires_grad_() for k in ("u", "delta", "A", "B", "C")]
    torch.library.opcheck(scan_parallel, (*inputs, reverse))
    _, last, starts = scan_parallel(*inputs, reverse)
    plain = [t.detach() for t in (torch.ones_like(x["u"]), torch.ones_like(last), *inputs, starts)]
    torch.library.opcheck(scan_parallel_backward, (*plain, reverse))


@given(st.integers(1, 130), st.booleans(), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_associative_scan_equals_loop(length, reverse, seed):
    g = torch.Generator().manual_seed(seed)
    a, x = (torch.randn(2, length, 3, generator=g, dtype=torch.float64) for _ in range(2))
    s, expected = torch.zeros(2, 3, dtype=torch.float64), torch.zeros_like(x)
    for t in reversed(range(length)) if reverse else range(length):
        s = a[:, t] * s + x[:, t]
        expected[:, t] = s
    torch.testing.assert_close(associative_scan_(a, x, reverse), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", FAST)
def test_memory_for_the_backward_pass_is_linear_and_holds_no_states_of_single_tokens(backend):
    """What autograd keeps is at most a few (b, l, e) tensors and the states at block starts, never (b, l, e, n)."""
    kept = []
    tensors = {k: v.requires_grad_() for k, v in scan_inputs(b=1, l=512, e=8, n=16).items()}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        run(backend)(**tensors)
    assert max(kept) <= 512 * 16, f"largest kept tensor: {max(kept)} numbers"


@pytest.mark.parametrize("n", [3, 8])
@pytest.mark.parametrize("backend", FAST)
def test_long_steps_and_growing_states_have_the_right_values(backend, n):
    """Decays far below the smallest number, steps of any length side by side, and states that grow."""
    tensors = scan_inputs(l=40, e=70, n=n, dtype=torch.float32)
    tensors["delta"][:, ::3] *= 60
    tensors["A"] *= 16
    tensors["A"][::5] = 0.02
    wide = with_gradients(run("loop"), {name: x.double() for name, x in tensors.items()})
    assert_near(with_gradients(run(backend), tensors), wide, 1e-4)
    # Without the softplus steps may be negative, and a decaying state grows.
    tensors["delta"], tensors["delta_bias"] = tensors["delta"].clamp(-0.01, 0.01), torch.zeros(70)
    wide = with_gradients(run("loop", softplus=False), {name: x.double() for name, x in tensors.items()})
    assert_near(with_gradients(run(backend, softplus=False), tensors), wide, 1e-4)


def test_a_decay_beyond_the_range_gives_no_number():
    """A negative step, which only comes without the softplus, can make a decay that no float32 holds."""
    tensors = scan_inputs(l=2, e=70, n=8, dtype=torch.float32, D=None, z=None, delta_bias=None)
    tensors["delta"], tensors["A"] = torch.full((2, 2, 70), -2.0), torch.full((70, 8), -60.0)
    for backend in ("loop", "numba"):
        assert not run(backend, softplus=False)(**tensors)[1].isfinite().any()


def test_extreme_steps_stay_finite():
    """Steps of +-120 before the softplus neither overflow nor become NaN, forward and backward."""
    tensors = scan_inputs(l=50, dtype=torch.float32)
    tensors["delta"] = tensors["delta"].sign() * 120
    for backend in ("loop", *FAST):
        for name, value in with_gradients(run(backend), tensors).items():
            assert value.isfinite().all(), f"{backend}: {name}"


def test_autocast_leaves_the_scan_alone():
    tensors = scan_inputs(l=20, dtype=torch.float32)
    for backend in ("loop", *FAST):
        plain = run(backend)(**tensors)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = run(backend)(**tensors)
        assert inside[0].dtype == torch.float32
        for a, b in zip(plain, inside, strict=True):
            assert torch.equal(a, b)


def test_forward_mode_is_refused_and_not_zero():
    tensors = scan_inputs()
    u = tensors.pop("u")
    function = lambda backend: lambda u: run(backend, last=False)(u=u, **tensors)  # noqa: E731
    assert torch.func.jvp(function("loop"), (u,), (torch.ones_like(u),))[1].abs().max() > 0.1
    for backend in FAST:
        with pytest.raises(VimlearnError, match="no forward-mode"):
            torch.func.jvp(function(backend), (u,), (torch.ones_like(u),))


@pytest.mark.parametrize("backend", FAST)
def test_export_with_a_changing_length(backend):
    class Scan(torch.nn.Module):
        def forward(self, u, delta, A, B, C):
            return selective_scan(u, delta, A, B, C, backend=backend)

    def inputs(l):
        x = scan_inputs(l=l, dtype=torch.float32)
        return tuple(x[k] for k in ("u", "delta", "A", "B", "C"))

    l = {1: torch.export.Dim("l", min=2, max=4096)}
    program = torch.export.export(Scan(), inputs(70), dynamic_shapes=(l, l, None, l, l))
    for length in (2, 64, 65, 200):
        torch.testing.assert_close(program.module()(*inputs(length)), Scan()(*inputs(length)))


def test_shapes_without_numbers():
    """On the meta device every backend gives shapes and dtypes."""
    tensors = {k: v.to("meta") for k, v in scan_inputs(l=70, dtype=torch.float32).items()}
    for backend in ("loop", *FAST, "triton"):
        out, last = run(backend)(**tensors)
        assert (out.shape, last.shape, out.device.type) == ((2, 70, 5), (2, 5, 3), "meta")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 65, 1000])
def test_gpu_equals_cpu_loop(length, reverse):
    tensors = scan_inputs(l=length)
    cuda = {k: v.cuda() for k, v in tensors.items()}
    expected = with_gradients(run("loop", reverse), tensors)
    for backend in SCAN.available(torch.device("cuda")):
        found = {k: v.cpu() for k, v in with_gradients(run(backend, reverse), cuda, seed=1).items()}
        assert_near(found, expected, 1e-10)
