"""The cases of the Triton kernels: values and every gradient against the float64 loop on the CPU.

Not collected by itself. `test_triton_device.py` runs it on a GPU, `test_triton_interpreted.py` in a process of its own
under the interpreter, where sizes are small because a token takes it a tenth of a second.
"""

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_near, scan_inputs
from vimlearn.kernels import triton_scan_chunks
from vimlearn.kernels.layout import Conv, Scan
from vimlearn.kernels.triton_conv import conv_backward, conv_forward
from vimlearn.kernels.triton_norm import norm_backward, norm_forward
from vimlearn.kernels.triton_scan import scan_backward, scan_forward, starts_shape

from vimlearn import VimlearnError
from vimlearn.conv import causal_conv1d_loop
from vimlearn.norm import add_rms_norm_loop
from vimlearn.scan import selective_scan_loop

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
LIMITS = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
FIELDS = {"u": "u", "delta": "delta", "A": "A", "B": "B", "C": "C", "D": "D", "bias": "delta_bias"}

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def sizes(small, large):
    """Return the sizes for the interpreter, and on a GPU the large ones too."""
    return [*small, *large] if ON_GPU else small


def scan_of(tensors, reverse):
    return Scan(**{field: tensors.get(field) for field in FIELDS.values()}, reverse=reverse)


def random(*shape, dtype=torch.float32, seed=7):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def on_device(x):
    """Return x on the device in the strides it has."""
    return None if x is None else torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=DEVICE).copy_(x)


def expected_scan(scans, z, softplus, scale, grad_out, grad_last):
    """Return outputs and gradients of the float64 loop by name."""
    wide = [scan._replace(**{k: x.detach().double().requires_grad_() for k, x in scan._asdict().items()
                             if isinstance(x, torch.Tensor)}) for scan in scans]
    gate = None if z is None else z.double().requires_grad_()
    ys, lasts = zip(*(selective_scan_loop(s.u, s.delta, s.A, s.B, s.C, s.D, None, s.delta_bias, softplus, s.reverse)
                      for s in wide), strict=True)
    out = sum(ys) * scale * (1 if z is None else F.silu(gate))
    total = (out * grad_out.double()).sum()
    total = total + sum((x * g.double()).sum() for x, g in zip(lasts, grad_last, strict=True) if g is not None)
    total.backward()
    results = {"out": out} | {f"last {i}": x for i, x in enumerate(lasts)}
    results |= {f"{k} of scan {i}": getattr(s, k).grad for i, s in enumerate(wide) for k in FIELDS.values()
                if getattr(s, k) is not None}
    return {k: v.detach() for k, v in results.items()} | ({} if z is None else {"z": gate.grad})


def found_scan(scans, z, softplus, scale, grad_out, grad_last):
    """Return the same of the kernels, and see dtypes and layouts."""
    scans = [s._replace(**{k: on_device(x) for k, x in s._asdict().items() if isinstance(x, torch.Tensor)})
             for s in scans]
    z, grad_out, grad_last = on_device(z), on_device(grad_out), [on_device(x) for x in grad_last]
    out, lasts, starts = scan_forward(scans, z, softplus, scale, True)
    assert all(x.shape == starts_shape(s.u.shape, s.A.shape[1]) for x, s in zip(starts, scans, strict=True))
    grads, grad_z = scan_backward(grad_out, grad_last, scans, starts, z, softplus, scale)
    results = {"out": out} | {f"last {i}": x for i, x in enumerate(lasts)}
    given = {"out": scans[0].u} | {f"last {i}": s.A for i, s in enumerate(scans)}
    for i, (scan, grad) in enumerate(zip(scans, grads, strict=True)):
        for k in FIELDS.values():
            if getattr(scan, k) is None:
                assert getattr(grad, k) is None
            else:
                results[f"{k} of scan {i}"], given[f"{k} of scan {i}"] = getattr(grad, k), getattr(scan, k)
    if z is not None:
        results["z"], given["z"] = grad_z, z
    for k, x in results.items():
        assert x.dtype == given[k].dtype and x.is_contiguous(), k
    return {k: x.cpu() for k, x in results.items()}


def check_scan(b, l, e, n, reverses=(False, True), dtype=torch.float32, softplus=True, last=True, change=None,
               **leave_out):
    tensors = [scan_inputs(b, l, e, n, dtype, seed=i, **leave_out) for i in range(len(reverses))]
    z = tensors[0].get("z")
    scans = [scan_of(t, reverse) for t, reverse in zip(tensors, reverses, strict=True)]
    if not softplus:
        scans = [s._replace(delta=s.delta.abs()) for s in scans]
    if change is not None:
        scans, z = [change(s) for s in scans], z if z is None else change(z)
    state = scans[0].A.dtype
    grad_last = [random(b, e, n, dtype=state, seed=i) if last else None for i in range(len(scans))]
    arguments = scans, z, softplus, 0.5, random(b, l, e, dtype=dtype), grad_last
    assert_near(found_scan(*arguments), expected_scan(*arguments), LIMITS[dtype])


@pytest.mark.parametrize("l", sizes([1, 2, 7], [63, 64, 65, 196, 197, 1000]))
def test_both_directions(l):
    check_scan(2 if l == 2 or ON_GPU else 1, l, 5, 3)


@pytest.mark.parametrize("l, reverse", sizes([(33, False), (17, True)], [(63, True), (1000, False), (197, True)]))
def test_one_direction_over_several_chunks(l, reverse):
    check_scan(1, l, 3, 4, (reverse,))


@pytest.mark.parametrize("e, n", sizes([(40, 16), (33, 20)], [(384, 16), (100, 1), (192, 64)]))
def test_widths_that_do_not_fill_blocks(e, n):
    check_scan(1, 5, e, n)


@pytest.mark.parametrize("count, l, reverses", [(2, 63, (False,)), (5, 65, (True,)), (2, 18, (False, True))])
def test_split_into_segments(count, l, reverses, monkeypatch):
    monkeypatch.setattr(triton_scan_chunks, "splits", lambda *sizes: count)
    check_scan(1, l, 3, 3, reverses)


def test_split_of_a_long_sequence_forward(monkeypatch):
    monkeypatch.setattr(triton_scan_chunks, "splits", lambda *sizes: 9)
    tensors = scan_inputs(1, 197, 3, 2, torch.float32)
    scans = [scan_of(tensors, True)]
    moved = [s._replace(**{k: on_device(getattr(s, k)) for k in FIELDS.values()}) for s in scans]
    out, lasts, starts = scan_forward(moved, on_device(tensors["z"]), True, 1.0, False)
    expected = expected_scan(scans, tensors["z"], True, 1.0, torch.zeros(1, 197, 3), [None])
    found = {"out": out.cpu()} | {f"last {i}": x.cpu() for i, x in enumerate(lasts)}
    assert_near(found, {k: expected[k] for k in found}, 1e-5)
    assert [x.shape for x in starts] == [(0,)]


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("missing", [("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")])
def test_optional_tensors(missing, softplus):
    check_scan(1, 3, 3, 2, softplus=softplus, last=False, **dict.fromkeys(missing))


@pytest.mark.parametrize("reverses", [(False, False), (True, False), (True, True)])
def test_any_pair_of_directions(reverses):
    check_scan(1, 5, 3, 2, reverses)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    check_scan(1, sizes([9], [197])[-1], 5, 16, dtype=dtype)


def widen(x):
    """Return x (b, l, c) as a slice of a matrix that is wider, with NaN around it."""
    if isinstance(x, Scan):
        return x._replace(**{k: widen(getattr(x, k)) for k in ("u", "delta", "B", "C")})
    wide = torch.full((x.shape[0], x.shape[1] + 1, x.shape[2] + 6), float("nan"), dtype=x.dtype)
    wide[:, :-1, 2:-4] = x
    return wide[:, :-1, 2:-4]


def transposed(x):
    """Return x with tokens side by side in memory instead of channels."""
    if isinstance(x, Scan):
        tokens = {k: transposed(getattr(x, k)) for k in ("u", "delta", "B", "C")}
        return x._replace(**tokens, A=x.A.T.contiguous().T)
    return x.transpose(1, 2).contiguous().transpose(1, 2)


@pytest.mark.parametrize("change", [widen, transposed])
def test_strides(change):
    check_scan(2, 3, 5, 3, change=change)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_extreme_steps_give_no_nan(dtype):
    tensors = scan_inputs(1, 5, 3, 2, dtype)
    tensors["delta"] = torch.linspace(-120, 120, 15).reshape(1, 5, 3).to(dtype)
    tensors["z"] = torch.linspace(-120, 120, 15).reshape(1, 5, 3).to(dtype)
    # Or the sum over 100 u B leaves the range of float16.
    tensors["u"] *= 0.01
    arguments = [scan_of(tensors, False)], tensors["z"], True, 1.0, random(1, 5, 3, dtype=dtype), [None]
    found = found_scan(*arguments)
    assert all(x.isfinite().all() for x in found.values())
    assert_near(found, expected_scan(*arguments), LIMITS[dtype])


def test_softplus_far_below_zero_keeps_its_digits():
    """With D = 0 the output of the first token is softplus(delta) u B C: its relative error is that of the softplus."""
    one = torch.ones(1, 1, 64)
    delta = torch.linspace(-80, 30, 64).reshape(1, 1, 64)
    scan = Scan(one, delta, -one[0].T.contiguous(), one[..., :1], one[..., :1])
    out, _, _ = scan_forward([scan._replace(**{k: on_device(getattr(scan, k)) for k in "u delta A B C".split()})],
                             None, True, 1.0, False)
    # At -80 an error of a digit in the exponent of 2 is 115 times as large in the power.
    assert (out.cpu().double() / F.softplus(delta.double()) - 1).abs().max() < 1e-5


def test_results_do_not_change_from_run_to_run():
    b, l, e = sizes([(1, 4, 40)], [(4, 197, 384)])[-1]
    scans = [scan_of(scan_inputs(b, l, e, 16, torch.float32, seed=i), bool(i)) for i in range(2)]
    arguments = scans, random(b, l, e), True, 0.5, random(b, l, e), [None, None]
    first, second = found_scan(*arguments), found_scan(*arguments)
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_refuses_what_it_cannot_do():
    scan = scan_of(scan_inputs(1, 2, 3, 2, torch.float32), False)
    with pytest.raises(VimlearnError, match="project delta first"):
        scan_forward([scan._replace(delta_weight=torch.ones(3, 3))], None, True, 1.0, False)
    with pytest.raises(VimlearnError, match="two with as many"):
        scan_forward([scan, scan_of(scan_inputs(1, 2, 3, 4, torch.float32), True)], None, True, 1.0, False)
    with pytest.raises(VimlearnError, match="with as many"):
        conv_forward(torch.ones(1, 2, 3), [Conv(torch.ones(3, 2), None), Conv(torch.ones(3, 4), None)], True)


def check_conv(b, l, e, k, reverses=(False, True), silu=True, bias=True, dtype=torch.float32, change=None):
    x, grads = random(b, l, e, dtype=dtype), [random(b, l, e, dtype=dtype, seed=i) for i in range(len(reverses))]
    if change is not None:
        x, grads = change(x), [change(g) for g in grads]
    # Weights in the dtype of x for one direction, in that of the sums for the other.
    types = dtype, torch.float64 if dtype == torch.float64 else torch.float32
    convs = [Conv(random(e, k, dtype=types[i], seed=i), random(e, dtype=types[i], seed=i + 9) if bias else None, r)
             for i, r in enumerate(reverses)]
    moved = [Conv(on_device(c.weight), on_device(c.bias), c.reverse) for c in convs]
    outs = conv_forward(on_device(x), moved, silu)
    grad_x, grad_convs = conv_backward([on_device(g) for g in grads], on_device(x), moved, silu)
    wide = x.double().requires_grad_()
    leaves = [[None if t is None else t.double().requires_grad_() for t in c[:2]] for c in convs]
    ys = [causal_conv1d_loop(wide, *leaf, "silu" if silu else None, r)
          for leaf, r in zip(leaves, reverses, strict=True)]
    sum((y * g.double()).sum() for y, g in zip(ys, grads, strict=True)).backward()
    found = {"x": grad_x} | {f"y {i}": y for i, y in enumerate(outs)}
    expected = {"x": wide.grad} | {f"y {i}": y.detach() for i, y in enumerate(ys)}
    for i, (grad, leaf) in enumerate(zip(grad_convs, leaves, strict=True)):
        for name, value, true in zip(("weight", "bias"), grad, leaf, strict=True):
            assert (value is None) == (true is None)
            if true is not None:
                assert value.dtype == types[i] and value.is_contiguous()
                found[f"{name} {i}"], expected[f"{name} {i}"] = value, true.grad
    assert_near({k: x.cpu() for k, x in found.items()}, expected, LIMITS[dtype])


@pytest.mark.parametrize("l", sizes([1, 2, 7, 65], [63, 64, 196, 197, 1000]))
def test_conv_of_both_directions(l):
    check_conv(2 if l < 63 else 1, l, 5, 4)


@pytest.mark.parametrize("e, k", sizes([(70, 4), (3, 1), (3, 7)], [(384, 4)]))
def test_conv_widths(e, k):
    check_conv(1, 5, e, k)


@pytest.mark.parametrize("reverses", [(False,), (True,), (True, False), (False, False), (True, True)])
def test_conv_directions(reverses):
    check_conv(1, 6, 3, 3, reverses, silu=False, bias=len(reverses) == 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_conv_dtypes(dtype):
    check_conv(1, 9, 5, 4, dtype=dtype)


@pytest.mark.parametrize("change", [widen, transposed])
def test_conv_strides(change):
    check_conv(2, 5, 5, 4, change=change)


def check_norm(b, l, d, dtype=torch.float32, residual=True, weight_dtype=torch.float32, change=None, given="both"):
    h, weight = random(b, l, d, dtype=dtype), random(d, dtype=weight_dtype, seed=3)
    state = torch.float64 if dtype == torch.float64 else torch.float32
    before = random(b, l, d, dtype=state, seed=5) if residual else None
    if change is not None:
        h, before = change(h), change(before)
    y, total, rstd = norm_forward(on_device(h), on_device(before), on_device(weight), 1e-5)
    assert (y.dtype, total.dtype, rstd.dtype, rstd.shape) == (dtype, state, state, (b, l))
    grad_y = random(b, l, d, dtype=dtype, seed=1) if given != "residual" else None
    grad_total = random(b, l, d, dtype=state, seed=2) if given != "y" else None
    grad, grad_weight = norm_backward(on_device(grad_y), on_device(grad_total), total, on_device(weight), rstd)
    wide, w = h.double().requires_grad_(), weight.double().requires_grad_()
    true_y, true_total = add_rms_norm_loop(wide, None if before is None else before.double(), w, 1e-5)
    loss = 0 if grad_y is None else (true_y * grad_y.double()).sum()
    (loss + (0 if grad_total is None else (true_total * grad_total.double()).sum())).backward()
    found = {"y": y, "residual": total, "h": grad, "weight": grad_weight}
    none = torch.zeros(d) if w.grad is None else w.grad
    expected = {"y": true_y.detach(), "residual": true_total.detach(), "h": wide.grad, "weight": none}
    assert_near({k: x.cpu() for k, x in found.items()}, expected, LIMITS[dtype])
    assert grad_weight.dtype == weight.dtype and grad.dtype == state


@pytest.mark.parametrize("b, l, d", sizes([(1, 1, 5), (2, 7, 33), (1, 9, 200)], [(8, 197, 192), (3, 65, 5000)]))
@pytest.mark.parametrize("residual", [False, True])
def test_norm(b, l, d, residual):
    check_norm(b, l, d, residual=residual)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_norm_dtypes(dtype):
    check_norm(2, 3, 20, dtype, weight_dtype=dtype)


@pytest.mark.parametrize("change", [widen, transposed])
def test_norm_strides(change):
    check_norm(2, 3, 5, change=change)


@pytest.mark.parametrize("change", [widen, transposed])
def test_norm_strides_of_what_is_kept(change):
    grad, residual = random(2, 3, 5), random(2, 3, 5, seed=1)
    weight, rstd = random(5, seed=2), random(2, 3, seed=3).abs()
    expected = norm_backward(*map(on_device, (grad, None, residual, weight, rstd)))
    found = norm_backward(*map(on_device, (grad, None, change(residual), weight, rstd)))
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


@pytest.mark.parametrize("given", ["y", "residual"])
def test_norm_with_one_gradient(given):
    check_norm(2, 3, 5, given=given)
