"""The Triton backend through the public functions: operators, compilation, what is refused. See `triton_cases.py`."""

import pytest
import torch
from helpers import assert_near, scan_inputs, with_gradients

from vimlearn import Scan, VimlearnError, VisionMamba, add_rms_norm, bidirectional_scan, selective_scan
from vimlearn.conv import CONV, bidirectional_conv1d
from vimlearn.scan import SCAN

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def on_device(tensors):
    return {name: x.to(DEVICE) for name, x in tensors.items()}


def pair(tensors):
    """Return a second set of tensors for the other direction, with other numbers."""
    return {name: x.flip(0) * 0.9 for name, x in tensors.items() if name != "z"}


def one(backend):
    return lambda **t: selective_scan(**t, delta_softplus=True, reverse=True, return_last_state=True, backend=backend)


def two(backend):
    def function(z, **t):
        back = {name[:-2]: x for name, x in t.items() if name.endswith("_b")}
        front = {name: x for name, x in t.items() if not name.endswith("_b")}
        return bidirectional_scan(Scan(**front), Scan(**back), z, delta_softplus=True, scale=0.5, backend=backend)
    return function


def conv(backend):
    return lambda x, w, bias, w_b, bias_b: bidirectional_conv1d(x, w, bias, w_b, bias_b, activation="silu",
                                                                backend=backend)


def norm(backend):
    return lambda h, residual, weight: add_rms_norm(h, residual, weight, backend=backend)


def cases():
    scan = scan_inputs(b=1, l=5, e=6, n=3, dtype=torch.float32)
    x = torch.randn(1, 5, 6)
    convs = {"x": x, "w": torch.randn(6, 3), "bias": torch.randn(6), "w_b": torch.randn(6, 3), "bias_b": torch.randn(6)}
    norms = {"h": x, "residual": torch.randn(1, 5, 6), "weight": torch.randn(6)}
    both = scan | {name + "_b": value for name, value in pair(scan).items()}
    return [(one, scan), (two, both), (conv, convs), (norm, norms)]


@pytest.mark.parametrize("which", range(4), ids=["scan", "both", "conv", "norm"])
def test_operators_values_and_gradients(which):
    function, tensors = cases()[which]
    expected = with_gradients(function("loop"), {name: x.double() for name, x in tensors.items()})
    found = with_gradients(function("triton"), on_device(tensors))
    assert_near({name: x.cpu() for name, x in found.items()}, expected, 1e-5)


def test_operators_opcheck():
    x = on_device(scan_inputs(b=1, l=3, e=4, n=2, dtype=torch.float32))
    x = {name: t.requires_grad_() for name, t in x.items()}
    ops = torch.ops.vimlearn
    SCAN.choose("triton", DEVICE)
    tensors = [x[k] for k in ("u", "delta", "A", "B", "C", "D", "delta_bias")]
    torch.library.opcheck(ops.scan_triton, (*tensors, None, x["z"], True, False, True))
    torch.library.opcheck(ops.bidirectional_scan_triton, (*tensors, None, *tensors, None, x["z"], True, 0.5, True))
    weights = [torch.randn(4, 2, device=DEVICE, requires_grad=True) for _ in range(2)]
    torch.library.opcheck(ops.conv_triton, (x["u"], weights, [], [False, True], True))
    torch.library.opcheck(ops.norm_triton, (x["u"], x["z"], x["D"], 1e-5))


def test_operators_compile_in_one_piece():
    function, tensors = cases()[1]
    tensors = on_device(tensors)
    compiled = torch.compile(function("triton"), fullgraph=True, backend="aot_eager")
    assert_near(with_gradients(compiled, tensors), with_gradients(function("triton"), tensors), 1e-6)


def test_a_network_runs_on_triton(monkeypatch):
    # The convolution over patches would else be rounded to ten bits on a GPU.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model = VisionMamba(img_size=8, patch_size=4, num_classes=3, embed_dim=16, depth=1, d_state=2, backend="triton")
    images = torch.randn(1, 3, 8, 8)
    plain = VisionMamba(img_size=8, patch_size=4, num_classes=3, embed_dim=16, depth=1, d_state=2, backend="loop")
    plain.load_state_dict(model.state_dict())
    assert CONV.backend_or_auto("triton", DEVICE) == "triton"
    found = model.to(DEVICE)(images.to(DEVICE)).cpu()
    torch.testing.assert_close(found, plain(images), rtol=1e-4, atol=1e-5)


def test_operators_bad_input_is_refused():
    tensors = on_device(scan_inputs(b=1, l=3, e=4, n=2, dtype=torch.float32))
    with pytest.raises(VimlearnError, match="no forward-mode"):
        torch.func.jvp(lambda u: selective_scan(**(tensors | {"u": u}), backend="triton"), (tensors["u"],),
                       (tensors["u"],))
    with pytest.raises(VimlearnError, match="A has dtype"):
        selective_scan(**(tensors | {"A": tensors["A"].half()}), backend="triton")
