"""The compiled convolution and norm as PyTorch operators: gradients, fakes, compilation, and what is refused."""

import pytest
import torch
from helpers import assert_near, with_gradients
from torch.utils._python_dispatch import TorchDispatchMode

from vimlearn import VimlearnError, add_rms_norm, causal_conv1d
from vimlearn.conv import bidirectional_conv1d


def conv_inputs(b=2, l=9, e=70, k=4, dtype=torch.float64, bias=True):
    g = torch.Generator().manual_seed(0)
    tensors = {"x": torch.randn(b, l, e, generator=g), "weight": torch.randn(e, k, generator=g),
               "weight_b": torch.randn(e, k, generator=g)}
    if bias:
        tensors |= {"bias": torch.randn(e, generator=g), "bias_b": torch.randn(e, generator=g)}
    return {name: x.to(dtype) for name, x in tensors.items()}


def norm_inputs(b=2, l=9, d=50, dtype=torch.float64, residual=True):
    g = torch.Generator().manual_seed(0)
    tensors = {"h": torch.randn(b, l, d, generator=g).to(dtype), "weight": torch.randn(d, generator=g).to(dtype)}
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return tensors | ({"residual": torch.randn(b, l, d, generator=g).to(wide)} if residual else {})


class Names(TorchDispatchMode):
    """Notes the names of all operators that run."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


def both(backend, activation="silu"):
    def function(x, weight, weight_b, bias=None, bias_b=None):
        return bidirectional_conv1d(x, weight, bias, weight_b, bias_b, activation=activation, backend=backend)
    return function


def norm(backend):
    def function(h, weight, residual=None):
        return add_rms_norm(h, residual, weight, backend=backend)
    return function


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["silu", None])
def test_both_convolutions_are_two_convolutions(bias, activation):
    tensors = conv_inputs(bias=bias)
    expected = with_gradients(lambda x, weight, weight_b, bias=None, bias_b=None: (
        causal_conv1d(x, weight, bias, activation=activation, backend="loop"),
        causal_conv1d(x.flip(1), weight_b, bias_b, activation=activation, backend="loop").flip(1)), tensors)
    for backend in ("loop", "numba"):
        assert_near(with_gradients(both(backend, activation), tensors), expected, 1e-12)


@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_lower_precision(dtype, limit):
    for function, tensors in ((both, conv_inputs(dtype=dtype)), (norm, norm_inputs(dtype=dtype)),
                              (norm, norm_inputs(dtype=dtype, residual=False))):
        wide = with_gradients(function("loop"), {name: x.double() for name, x in tensors.items()})
        assert_near(with_gradients(function("numba"), tensors), wide, limit)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_parameters_beside_a_network_in_lower_precision(dtype):
    """As under autocast: the sums, and the gradients of the parameters, are float32."""
    convs, norms = conv_inputs(dtype=dtype), norm_inputs(dtype=dtype)
    convs = {name: x if name == "x" else x.float() for name, x in convs.items()}
    norms["weight"] = norms["weight"].float()
    for function, tensors in ((both, convs), (norm, norms)):
        found = with_gradients(function("numba"), tensors)
        assert_near(found, with_gradients(function("loop"), {n: x.double() for n, x in tensors.items()}), 2e-2)
        assert found["gradient of weight"].dtype == torch.float32


@pytest.mark.parametrize("function, tensors", [
    (both, conv_inputs(1, 4, 3)), (both, conv_inputs(1, 2, 2, bias=False)),
    (norm, norm_inputs(1, 3, 4)), (norm, norm_inputs(1, 2, 3, residual=False))])
def test_gradcheck(function, tensors):
    names, leaves = list(tensors), [x.requires_grad_() for x in tensors.values()]
    assert torch.autograd.gradcheck(lambda *x: function("numba")(**dict(zip(names, x, strict=True))), leaves)


def test_opcheck():
    x = {name: value.requires_grad_() for name, value in conv_inputs(dtype=torch.float32).items()}
    h = {name: value.requires_grad_() for name, value in norm_inputs(dtype=torch.float32).items()}
    both("numba")(**x)
    ops, weights, biases = torch.ops.vimlearn, [x["weight"], x["weight_b"]], [x["bias"], x["bias_b"]]
    torch.library.opcheck(ops.conv_numba, (x["x"], weights, biases, [False, True], True))
    torch.library.opcheck(ops.conv_numba, (x["x"], weights[:1], [], [True], False))
    torch.library.opcheck(ops.norm_numba, (h["h"], h["residual"], h["weight"], 1e-5))
    torch.library.opcheck(ops.norm_numba, (h["h"], None, h["weight"], 1e-5))
    with torch.no_grad():
        y, total, rstd = ops.norm_numba(h["h"], h["residual"], h["weight"], 1e-5)
        torch.library.opcheck(ops.norm_numba_backward, (y, total, total, h["weight"], rstd))
        torch.library.opcheck(ops.norm_numba_backward, (None, total, total, h["weight"], rstd))
        torch.library.opcheck(ops.conv_numba_backward,
                              ([x["x"], x["x"]], x["x"], weights, biases, [False, True], True))


def test_gradient_of_one_output_alone():
    """A loss on one direction, on the residual or on the normalised tensor alone gives the gradients of the loop."""
    for function, tensors in ((both, conv_inputs()), (norm, norm_inputs())):
        for which in (0, 1):
            def pick(backend, function=function, which=which):
                return lambda **t: function(backend)(**t)[which]
            used = dict(tensors)
            if function is both:
                skip = "_b" if which == 0 else ""
                fixed = {name + skip: used.pop(name + skip) for name in ("weight", "bias")}
            else:
                fixed = {"weight": used.pop("weight")} if which == 1 else {}
            expected = with_gradients(lambda pick=pick, fixed=fixed, **t: pick("loop")(**t, **fixed), used)
            assert_near(with_gradients(lambda pick=pick, fixed=fixed, **t: pick("numba")(**t, **fixed), used), expected,
                        1e-12)


def test_forward_mode_is_refused_and_not_zero():
    x, h = conv_inputs(), norm_inputs()
    weight, scale = x["weight"], h["weight"]
    for function, at in ((lambda x: causal_conv1d(x, weight, backend="numba"), x["x"]),
                         (lambda h: add_rms_norm(h, None, scale, backend="numba")[0], h["h"])):
        with pytest.raises(VimlearnError, match="'numba' has no forward-mode"):
            torch.func.jvp(function, (at,), (torch.ones_like(at),))


def test_directions_that_do_not_match_are_refused():
    x = conv_inputs(dtype=torch.float32)
    with pytest.raises(VimlearnError, match="differ in width"):
        bidirectional_conv1d(x["x"], x["weight"], x["bias"], x["weight_b"][:, 1:], x["bias_b"])
    with pytest.raises(VimlearnError, match="only one has a bias"):
        bidirectional_conv1d(x["x"], x["weight"], x["bias"], x["weight_b"], None)


def test_whoever_observes_operators_sees_one():
    """Without an observer the kernel is called directly; a mode or a trace must still see the operator."""
    from torch.fx.experimental.proxy_tensor import make_fx

    from vimlearn import selective_scan

    u, A = torch.randn(1, 5, 6), -torch.rand(6, 2)
    x, h = conv_inputs(dtype=torch.float32), norm_inputs(dtype=torch.float32)

    def all_three(u):
        y = selective_scan(u, u, A, u[..., :2], u[..., 2:4], backend="numba")
        return y, both("numba")(**x)[0], norm("numba")(**h)[0]

    plain = all_three(u)
    with Names() as names:
        observed = all_three(u)
    assert all(torch.equal(a, b) for a, b in zip(plain, observed, strict=True))
    wanted = ("vimlearn.scan_numba", "vimlearn.conv_numba", "vimlearn.norm_numba")
    assert all(any(name in s for s in names.seen) for name in wanted), names.seen
    traced = make_fx(lambda u: selective_scan(u, u, A, u[..., :2], u[..., 2:4], backend="numba"))(u)
    assert "vimlearn.scan_numba" in traced.code
    other = torch.randn(1, 5, 6)
    assert torch.equal(traced(other), all_three(other)[0])
    script = torch.jit.trace(lambda u: selective_scan(u, u, A, u[..., :2], u[..., 2:4], backend="numba"), u)
    assert torch.equal(script(other), all_three(other)[0])


def test_gradients_are_the_same_with_an_observer_and_there_are_no_second_ones():
    """Without an observer autograd calls the kernels, with one it calls the operators."""
    from vimlearn.kernels.layout import Scan

    from vimlearn import selective_scan
    from vimlearn.bidirectional import bidirectional_scan
    g = torch.Generator().manual_seed(0)
    u, A = torch.randn(2, 20, 6, generator=g), -torch.rand(6, 2, generator=g)

    def scan(u, A):
        return selective_scan(u, u, A, u[..., :2], u[..., 2:4], u[0, 0], u, backend="numba", return_last_state=True)

    def two(u, A):
        ends = (Scan(u, u, A, u[..., :2], u[..., 2:4]), Scan(u, u * 2, A, u[..., 2:4], u[..., :2], reverse=True))
        return bidirectional_scan(*ends, z=u, backend="numba")
    conv = conv_inputs(dtype=torch.float32)
    without_biases = {name: x for name, x in conv.items() if "bias" not in name}
    for name, function, tensors in (("scan", scan, {"u": u, "A": A}), ("bidirectional_scan", two, {"u": u, "A": A}),
                                    ("norm", norm("numba"), norm_inputs(dtype=torch.float32)),
                                    ("conv", both("numba"), conv), ("conv", both("numba"), without_biases)):
        plain = with_gradients(function, tensors)
        with Names() as names:
            observed = with_gradients(function, tensors)
        assert any(f"vimlearn.{name}_numba_backward" in seen for seen in names.seen)
        assert plain.keys() == observed.keys() and all(torch.equal(plain[k], observed[k]) for k in plain)
        leaves = {key: x.clone().requires_grad_() for key, x in tensors.items()}
        y = function(**leaves)
        y = y if torch.is_tensor(y) else y[0]
        assert y.grad_fn.name() == f"{name}_numba".title().replace("_", "") + "Backward"
        grads = torch.autograd.grad(y.square().sum(), leaves.values(), create_graph=True)
        with pytest.raises(VimlearnError, match="'numba' has no second derivatives"):
            grads[0].sum().backward()


def one_scan(u):
    from vimlearn import selective_scan
    return selective_scan(u, u, -torch.ones(70, 2), u[..., :2], u[..., 2:4], backend="numba")


def one_conv(x):
    tensors = conv_inputs(dtype=torch.float32)
    return causal_conv1d(x, tensors["weight"], tensors["bias"], activation="silu", backend="numba")


def one_norm(h):
    return add_rms_norm(h, None, torch.linspace(0.5, 2, 70), backend="numba")[0]


EACH = pytest.mark.parametrize("function", [one_scan, one_conv, one_norm])


def leaf():
    return torch.randn(2, 9, 70, generator=torch.Generator().manual_seed(0)).requires_grad_()


@EACH
def test_a_backward_pass_may_be_traced_where_the_forward_pass_was_not(function):
    """Kernels must not read the addresses of tensors that stand for others."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    x = leaf()
    y = function(x)
    expected, = torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)

    def again(ones):
        return torch.autograd.grad(y, x, ones, retain_graph=True)[0]
    traced = make_fx(again)(torch.ones_like(y))
    assert "_numba_backward" in traced.code
    torch.testing.assert_close(traced(torch.ones_like(y)), expected)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = again(mode.from_tensor(torch.ones_like(y)))
    assert type(fake) is not torch.Tensor and fake.shape == x.shape


@EACH
def test_a_loss_may_be_compiled_alone_with_its_backward_pass(function):
    x = leaf()
    y = function(x)
    expected, = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
    torch.compile(lambda y: y.square().sum().backward(), backend="eager")(y)
    torch.testing.assert_close(x.grad, expected)


@EACH
def test_whoever_differentiates_twice_gets_an_error_and_no_zeros(function):
    x = leaf()
    # The gradient that comes in is a constant here.
    gradient, = torch.autograd.grad(function(x).sum(), x, create_graph=True)
    with pytest.raises(VimlearnError, match="no second derivatives; use backend='loop'"):
        torch.autograd.grad(gradient.square().sum(), x)
    gradient, = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
    with pytest.raises(VimlearnError, match="no second derivatives"):
        torch.autograd.grad(gradient.sum(), x, allow_unused=True)


@EACH
def test_a_gradient_without_memory_of_its_own_is_no_crash(function):
    x = leaf()
    y = function(x)
    rows = torch.randn(3, *y.shape)
    expected = torch.stack([torch.autograd.grad(y, x, row, retain_graph=True)[0] for row in rows])
    try:
        found, = torch.autograd.grad(y, x, rows, is_grads_batched=True)
    except RuntimeError as error:
        assert "Batching rule not implemented" in str(error)
    else:
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("gradients", [True, False])
def test_numbers_that_are_negated_when_they_are_read(gradients):
    weight = torch.randn(70, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)).conj().imag
    x = leaf() if gradients else leaf().detach()
    assert weight.is_neg()
    found, expected = (causal_conv1d(x, w, backend="numba") for w in (weight, weight.resolve_neg()))
    assert torch.equal(found, expected)
    if gradients:
        assert torch.equal(*(torch.autograd.grad(y.sum(), x)[0] for y in (found, expected)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_are_rounded_as_pytorch_rounds_them(dtype):
    """A convolution of one tap is a product. It has to come out to the last bit, in ties and beyond the range too."""
    x = torch.randn(1, 50, 200, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.linspace(-9, 6, 200)
    x[0, 0, :4] = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0])
    x = x.to(dtype)
    # 1 + 2^-8 and 1 + 2^-11 are ties of bfloat16 and float16 for x a power of two.
    weight = torch.tensor([1 + 2.0**-8, 1 + 2.0**-11, 0.3, -7.77, 1e4]).repeat(40).unsqueeze(1)
    found = causal_conv1d(x, weight, backend="numba")
    expected = (x.float() * weight.squeeze(1)).to(dtype)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(1.0), expected.nan_to_num(1.0))
