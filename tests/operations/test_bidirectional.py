"""Both directions in one operation: the definition against two scans, every backend against the definition."""

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_near, scan_inputs, with_gradients

from vimlearn import VimlearnError, selective_scan
from vimlearn.bidirectional import BIDIRECTIONAL, Scan, bidirectional_scan

# What goes into files is compiled for each shape, and has tests of its own (tests/test_export.py).
FAST = [name for name in BIDIRECTIONAL.available(torch.device("cpu")) if name not in ("loop", "export")]
FIELDS = Scan._fields[:-1]


def inputs(rank=None, dtype=torch.float64, without=(), **sizes):
    """Return the tensors of both directions and of the gate by name; those of the backward direction end in _b."""
    tensors = {}
    for suffix, seed in (("", 0), ("_b", 1)):
        one = scan_inputs(dtype=dtype, seed=seed, **sizes)
        if rank:
            g = torch.Generator().manual_seed(seed + 7)
            one["delta_weight"] = torch.randn(one["u"].shape[2], rank, generator=g).to(dtype)
            one["delta"] = torch.randn(*one["u"].shape[:2], rank, generator=g).to(dtype)
        tensors |= {name + suffix: x for name, x in one.items() if name != "z" and name not in without}
    return tensors if "z" in without else tensors | {"z": one["z"]}


def run(backend, scale=0.5):
    def function(z=None, **tensors):
        forward, backward = (Scan(*(tensors.get(name + suffix) for name in FIELDS)) for suffix in ("", "_b"))
        return bidirectional_scan(forward, backward, z, delta_softplus=True, scale=scale, backend=backend)
    return function


def two_scans(z=None, **tensors):
    """The published way: two scans, each with its gate, the second over flipped copies; then their mean."""
    total = 0
    for suffix in ("", "_b"):
        one = {name: tensors.get(name + suffix) for name in FIELDS} | {"z": z}
        weight = one.pop("delta_weight")
        if weight is not None:
            one["delta"] = one["delta"] @ weight.T
        if suffix:
            one = {k: v.flip(1) if v is not None and v.dim() == 3 else v for k, v in one.items()}
        y = selective_scan(**one, delta_softplus=True, backend="loop")
        total = total + (y.flip(1) if suffix else y)
    return total / 2


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("backend", ["loop", *FAST])
def test_equals_two_gated_scans_over_flipped_copies(backend, rank):
    tensors = inputs(rank, l=33, e=67, n=5)
    assert_near(with_gradients(run(backend), tensors), with_gradients(two_scans, tensors), 1e-11)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 63, 64, 65, 197, 500])
@pytest.mark.parametrize("backend", FAST)
def test_lengths(backend, length, poisoned_memory):
    tensors = inputs(3, l=length)
    assert_near(with_gradients(run(backend), tensors), with_gradients(run("loop"), tensors), 1e-11)


@pytest.mark.parametrize("without", [("z",), ("D", "D_b"), ("delta_bias",), ("z", "D", "delta_bias")])
@pytest.mark.parametrize("backend", FAST)
def test_optional_tensors(backend, without):
    tensors = inputs(2, l=20, without=without)
    assert_near(with_gradients(run(backend, 1.0), tensors), with_gradients(run("loop", 1.0), tensors), 1e-11)


@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("e, n", [(5, 3), (64, 16), (130, 7), (200, 20)])
@pytest.mark.parametrize("backend", FAST)
def test_lower_precision(backend, e, n, dtype, limit, poisoned_memory):
    """Against the float64 loop on the same rounded inputs, with widths that are and are not multiples of the block."""
    tensors = inputs(2, dtype, l=40, e=e, n=n)
    wide = with_gradients(run("loop"), {k: v.double() for k, v in tensors.items()})
    found = with_gradients(run(backend), tensors)
    assert_near(found, wide, limit)
    assert found["output 0"].dtype == dtype


@pytest.mark.parametrize("backend", FAST)
def test_slices_of_wider_matrices(backend):
    """delta, B and C come out of one matrix, x and the gate out of another, as in the mixer."""
    b, l, e, n, r = 2, 21, 70, 4, 3
    g = torch.Generator().manual_seed(0)
    maps, maps_b = (torch.randn(b, l, r + 2 * n, generator=g, dtype=torch.float64) for _ in range(2))
    gates = torch.randn(b, l, 2 * e, generator=g, dtype=torch.float64)
    tensors = inputs(r, b=b, l=l, e=e, n=n)

    def sliced(function):
        def with_slices(maps, maps_b, gates, **rest):
            for suffix, whole in (("", maps), ("_b", maps_b)):
                parts = dict(zip(("delta", "B", "C"), whole.split([r, n, n], -1), strict=True))
                rest |= {name + suffix: part for name, part in parts.items()}
            return function(**rest, z=gates[..., e:])
        return with_slices

    rest = {k: v for k, v in tensors.items() if k[:-2 if k.endswith("_b") else None] not in ("delta", "B", "C", "z")}
    rest |= {"maps": maps, "maps_b": maps_b, "gates": gates}
    assert_near(with_gradients(sliced(run(backend)), rest), with_gradients(sliced(run("loop")), rest), 1e-11)


@pytest.mark.parametrize("backend", FAST)
def test_gradcheck(backend):
    tensors = inputs(2, b=1, l=4, e=2, n=2)
    names = list(tensors)
    leaves = [v.requires_grad_() for v in tensors.values()]
    assert torch.autograd.gradcheck(lambda *x: run(backend)(**dict(zip(names, x, strict=True))), leaves)


@pytest.mark.parametrize("l, e", [(1, 1), (18, 66)])
def test_opcheck_of_the_numba_operators(l, e):
    tensors = inputs(2, torch.float32, b=2, l=l, e=e, n=4)
    both = [tensors[name + suffix].requires_grad_() for suffix in ("", "_b") for name in FIELDS]
    both += [tensors["z"].requires_grad_(), True]
    run("numba")(**tensors)
    ops = torch.ops.vimlearn
    torch.library.opcheck(ops.bidirectional_scan_numba, (*both, 0.5, True))
    torch.library.opcheck(ops.bidirectional_scan_numba, (*(None if x is both[5] else x for x in both), 0.5, True))
    one = [*both[:8], both[16], True]
    torch.library.opcheck(ops.scan_numba, (*one, True, True))
    with torch.no_grad():
        out, starts, starts_b = ops.bidirectional_scan_numba(*both, 0.5, True)
        torch.library.opcheck(ops.bidirectional_scan_numba_backward,
                              (out, starts, starts_b, *(x.detach() if torch.is_tensor(x) else x for x in both), 0.5))


def test_one_thread_and_two_give_the_same_bits():
    tensors = inputs(3, torch.float32, b=2, l=50, e=200, n=6)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(with_gradients(run("numba"), tensors))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(other[name], value) for name, value in results[0].items())


def test_deterministic_mode_is_accepted_and_repeats():
    tensors = inputs(3, torch.float32, l=50, e=70)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (with_gradients(run("numba"), tensors) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(second[name], value) for name, value in first.items())


@pytest.mark.parametrize("backend", ["loop", *FAST])
def test_autocast_leaves_the_scan_alone(backend):
    """Parameters of the state stay float32 under autocast; gradients arrive in the dtypes of their tensors."""
    tensors = inputs(2, torch.bfloat16, l=20)
    plain = with_gradients(run(backend), tensors)
    found = with_gradients(torch.autocast("cpu", dtype=torch.bfloat16)(run(backend)), tensors)
    assert found["gradient of A"].dtype == torch.float32 and found["gradient of u"].dtype == torch.bfloat16
    assert all(torch.equal(found[name], value) for name, value in plain.items())


def ten_thousand(dtype):
    """Inputs of 10,000 scans of 24 tokens in the range that training visits, with steps up to 100 and down to -100."""
    g = torch.Generator().manual_seed(0)

    def normal(*sizes, spread=1.0):
        return torch.randn(*sizes, generator=g) * spread

    b, l, e, n = 50, 24, 200, 4
    delta = normal(b, l, e, spread=4)
    delta[:, ::7] = torch.rand(b, 4, e, generator=g) * 200 - 100
    tensors = {"u": normal(b, l, e, spread=2), "delta": delta, "B": normal(b, l, n), "C": normal(b, l, n),
               "z": normal(b, l, e, spread=4)}
    wide = {"A": -torch.rand(e, n, generator=g) * 16 - 1e-3, "D": normal(e), "delta_bias": normal(e)}
    return {k: v.to(dtype) for k, v in tensors.items()} | wide


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_ten_thousand_scans_are_finite_where_float64_is_in_range(dtype):
    tensors = ten_thousand(dtype)

    def scan(backend):
        def function(**t):
            return selective_scan(**t, delta_softplus=True, backend=backend)
        return function

    weight = torch.rand(50, 24, 200, generator=torch.Generator().manual_seed(2))

    def with_mean(function, inputs):
        leaves = {k: v.detach().clone().requires_grad_() for k, v in inputs.items()}
        out = function(**leaves)
        (out.to(weight.dtype) * weight).mean().backward()
        return {"out": out.detach()} | {k: v.grad for k, v in leaves.items()}

    expected = with_mean(scan("loop"), {k: v.double() for k, v in tensors.items()})
    found = with_mean(scan("numba"), tensors)
    for name, value in expected.items():
        in_range = value.isfinite() & (value.abs() < torch.finfo(dtype).max)
        assert in_range.float().mean() > 0.99, name
        assert found[name][in_range].isfinite().all(), name


def test_bad_input_names_the_direction():
    tensors = inputs(2, torch.float32, l=9)
    forward = Scan(*(tensors[name] for name in FIELDS))
    backward = Scan(*(tensors[name + "_b"] for name in FIELDS))
    cases = [
        ((forward._replace(B=forward.B[:, 1:]), backward), r"forward direction: B has shape \(2, 8, 3\)"),
        ((forward, backward._replace(u=backward.u[:, 1:])), r"backward direction: delta has shape"),
        ((forward, backward._replace(delta_weight=torch.randn(5, 4))), r"backward direction: delta has shape"),
        ((forward, backward._replace(delta=torch.randn(2, 9, 5), delta_weight=None)), "delta_weight has rank None"),
        ((forward._replace(delta_weight=torch.randn(5, 2, dtype=torch.float64)), backward), "delta_weight has dtype"),
        ((forward, backward._replace(A=backward.A.double())), "backward direction: A has dtype torch.float64"),
    ]
    for (one, other), message in cases:
        with pytest.raises(VimlearnError, match=message):
            bidirectional_scan(one, other)
    with pytest.raises(VimlearnError, match="expected one of auto"):
        bidirectional_scan(forward, backward, backend="triton")


def test_the_projection_is_delta_times_the_weight():
    tensors = inputs(2, l=9)
    scan = Scan(*(tensors[name] for name in FIELDS))
    assert torch.equal(scan.projected().delta, F.linear(scan.delta, scan.delta_weight))
    assert scan.projected().delta_weight is None
