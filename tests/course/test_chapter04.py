"""Wrong answers to the exercises of chapter 04, and the words with which each is turned down."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch

from vimlearn.course.exercise import grade
from vimlearn.course.simulator import run_watched, tl, triton
from vimlearn.errors import VimlearnError

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "04_fused_kernel.ipynb"


def test_bytes_on_paper_names_its_mistakes(rejected):
    assert rejected("bytes_on_paper", (400, 9280), "float32 has 4 bytes")
    assert rejected("bytes_on_paper", (1280, 9280), "leaves out one tensor", "z is read")
    assert rejected("bytes_on_paper", (1600, 7680), "inputs and y are moved as well")
    assert rejected("bytes_on_paper", (1600, 5440), "written and read")
    assert rejected("bytes_on_paper", 1600, "2 values")


def gate(mask=lambda channel, place, l, e: channel < e, mask_store=None, first=lambda E: tl.program_id(1) * E,
         value=lambda y, z: y * z * tl.sigmoid(z)):
    """Return a gate kernel with one part exchanged."""
    def kernel(y, z, out, l, e, E):
        channel = first(E) + tl.arange(0, E)
        place = tl.program_id(0) * e + channel
        real = mask(channel, place, l, e)
        result = value(tl.load(y + place, mask=real, other=0), tl.load(z + place, mask=real, other=0))
        tl.store(out + place, result, mask=(mask_store or mask)(channel, place, l, e))

    return kernel


def test_gate_mask_takes_a_right_kernel_with_or_without_jit():
    assert grade("gate_mask", gate()).status == "right"
    assert grade("gate_mask", triton.jit(gate())).status == "right"


def test_gate_mask_sees_a_mask_that_is_wrong_where_the_values_are_right(rejected):
    flat = gate(mask=lambda channel, place, l, e: place < l * e)
    y, z, out = torch.rand(3, 6), torch.rand(3, 6), torch.zeros(3, 6)
    triton.jit(flat)[(3, 2)](y, z, out, 3, 6, 4)
    torch.testing.assert_close(out, y * z * torch.sigmoid(z))
    assert rejected("gate_mask", flat, "(0, 1) reads y[1, 0]", "row of another token", "channel with e")


def test_gate_mask_names_reads_and_writes_out_of_bounds(rejected):
    def no_mask(y, z, out, l, e, E):
        place = tl.program_id(0) * e + tl.program_id(1) * E + tl.arange(0, E)
        gate = tl.load(z + place)
        tl.store(out + place, tl.load(y + place) * gate * tl.sigmoid(gate))

    assert rejected("gate_mask", no_mask, "program (2, 1) reads address 18 of y", "ends at 17", "out of bounds")
    everywhere = gate(mask_store=lambda channel, place, l, e: channel < 8)
    assert rejected("gate_mask", everywhere, "program (2, 1) writes address 18 of out", "out of bounds")
    assert rejected("gate_mask", gate(mask=lambda channel, place, l, e: channel <= e), "out of bounds")


def test_gate_mask_names_its_other_mistakes(rejected):
    assert rejected("gate_mask", gate(mask=lambda channel, place, l, e: channel < e - 1), "no program writes out[0, 5]")
    assert rejected("gate_mask", gate(first=lambda E: 0), "another program", "block * E")
    assert rejected("gate_mask", gate(value=lambda y, z: y * tl.sigmoid(z)), "lacks a factor z")
    assert rejected("gate_mask", gate(value=lambda y, z: y * z), "lacks the sigmoid")
    assert rejected("gate_mask", gate(value=lambda y, z: y * z * tl.sigmoid(y)), "exchanged")

    def in_place(y, z, out, l, e, E):
        tl.store(y + tl.program_id(0) * e, 0.0)

    def with_torch(y, z, out, l, e, E):
        tl.store(out + tl.arange(0, E), torch.sigmoid(tl.arange(0, E)))

    assert rejected("gate_mask", in_place, "writes into its input y", "belongs in out")
    assert rejected("gate_mask", with_torch, "no torch", "inside a kernel")
    assert rejected("gate_mask", 3.0, "should be a kernel")


def test_gate_mask_tells_a_wrong_address_from_a_wrong_mask(rejected):
    def placed(token, block, base=lambda t, l, e, E: t * e):
        def kernel(y, z, out, l, e, E):
            channel = block() * E + tl.arange(0, E)
            place, real = base(token(), l, e, E) + channel, channel < e
            gate = tl.load(z + place, mask=real, other=0)
            tl.store(out + place, tl.load(y + place, mask=real, other=0) * gate * tl.sigmoid(gate), mask=real)
        return kernel

    def id_0():
        return tl.program_id(0)

    def id_1():
        return tl.program_id(1)

    assert grade("gate_mask", placed(id_0, id_1)).status == "right"
    assert rejected("gate_mask", placed(id_1, id_0), "tl.program_id(0) is the token", "tl.program_id(1) the block")
    assert rejected("gate_mask", placed(id_0, id_1, lambda t, l, e, E: t * E), "address of its channel", "* e + ch")

    def all_tokens(y, z, out, l, e, E):
        for t in range(l):
            channel = tl.program_id(1) * E + tl.arange(0, E)
            gate = tl.load(z + t * e + channel, mask=channel < e, other=0)
            value = tl.load(y + t * e + channel, mask=channel < e, other=0) * gate * tl.sigmoid(gate)
            tl.store(out + t * e + channel, value, mask=channel < e)

    assert rejected("gate_mask", all_tokens, "no loop here", "one token")


def test_a_pointer_is_no_tensor(rejected):
    def indexed(y, z, out, l, e, E):
        out[tl.program_id(0), 0] = y[tl.program_id(0), 0]

    def multiplied(y, z, out, l, e, E):
        tl.store(out, y * z * tl.sigmoid(tl.load(z)))

    assert rejected("gate_mask", indexed, "y is a pointer and has no indices", "tl.load(y + address)")
    assert rejected("gate_mask", multiplied, "y is a pointer", "no number", "tl.load(y + address)")


def test_gate_mask_tells_float32(rejected):
    short = gate(value=lambda y, z: (y.to(tl.float32) * z.to(tl.float32) * tl.sigmoid(z.to(tl.float32))))
    assert rejected("gate_mask", short, "out is right to about six digits", "float32")


def as_triton_writes(s, u, d, A, B, C):
    s *= tl.math.exp(tl.expand_dims(d, 1) * A)
    u *= d
    s = tl.fma(u[:, None], B[None, :], s)
    return s, tl.trans(s * C[None, :]).sum(0)


def test_forward_step_takes_whatever_triton_takes():
    assert grade("forward_step", as_triton_writes).status == "right"
    assert grade("forward_step", triton.jit(as_triton_writes)).status == "right"


@pytest.mark.parametrize(("wrong", "words"), [
    (lambda s, u, d, A, B, C: (tl.exp(d.unsqueeze(1) * A) * s, tl.sum(s, 1)), ("no .unsqueeze", "what tl has")),
    (lambda s, u, d, A, B, C: (tl.exp(d[:, None] * A) * s, s @ C), ("unsupported operand", "@")),
    (lambda s, u, d, A, B, C: (tl.exp(d * A) * s, tl.sum(s, 1)), ("shapes (4,) and (4, 2)", "makes a column")),
    (lambda s, u, d, A, B, C: (s, d[0]), ("no single entries",)),
    (lambda s, u, d, A, B, C: (s if d > 0 else A, d), ("`if` and `while` need one number", "tl.where")),
    (lambda s, u, d, A, B, C: (tl.tanh(s), d), ("no tl.tanh", "sigmoid")),
    (lambda s, u, d, A, B, C: ((1 + d[:, None] * A) * s + (d * u)[:, None] * B[None, :], d), ("an Euler step",)),
    (lambda s, u, d, A, B, C: (tl.exp(d[:, None] * A) * (s + (d * u)[:, None] * B[None, :]), d), ("decays as well",)),
    (lambda s, u, d, A, B, C: (tl.exp(d[:, None] * A) * s + (d * u)[:, None] * C[None, :], d), ("exchanged",)),
    (lambda s, u, d, A, B, C: (tl.exp(d[:, None] * A) * s + (tl.exp(d[:, None] * A) - 1) / A * u[:, None] * B[None, :],
                               d), ("exact hold",)),
])
def test_forward_step_refuses_what_triton_would_not_compile_or_mean(rejected, wrong, words):
    assert rejected("forward_step", wrong, *words)


def test_forward_step_names_its_mistakes(rejected):
    def step(decay=lambda d, A: tl.exp(d[:, None] * A), x=lambda u, d: d * u, y=lambda old, s, B, C: s * C[None, :]):
        def forward_step(s, u, d, A, B, C):
            new = decay(d, A) * s + x(u, d)[:, None] * B[None, :]
            return new, tl.sum(y(s, new, B, C), 1)

        return forward_step

    assert grade("forward_step", step()).status == "right"
    assert rejected("forward_step", step(decay=lambda d, A: tl.exp(A)), "decay lacks the step")
    assert rejected("forward_step", step(decay=lambda d, A: d[:, None] * A), "without the exponential")
    assert rejected("forward_step", step(x=lambda u, d: u), "d u B, not u B")
    assert rejected("forward_step", step(y=lambda old, s, B, C: old * C[None, :]), "old state")
    assert rejected("forward_step", step(y=lambda old, s, B, C: s), "y lacks C")
    assert rejected("forward_step", step(y=lambda old, s, B, C: s * B[None, :]), "uses B where C")
    assert rejected("forward_step", lambda s, u, d, A, B, C: s, "2 values (s, y)")


def test_kept_and_recomputed_names_its_mistakes(rejected):
    assert rejected("kept_and_recomputed", (1536, 96, 18), "bytes")
    assert rejected("kept_and_recomputed", (384, 128, 18), "4 chunks")
    assert rejected("kept_and_recomputed", (384, 96, 66), "starts at token 0")
    assert rejected("kept_and_recomputed", (384, 96, 30), "one step less")
    assert rejected("kept_and_recomputed", (384, 96, 12), "once")


def back(carry=lambda a, g, c: a * g, mask=lambda channel, e: channel < e, token=lambda l, i: l - 1 - i,
         start=lambda c, E: tl.zeros((E,), c.dtype.element_ty), stored=lambda a, g: g):
    """Return a kernel of exercise 4.5 with one part exchanged."""
    def kernel(a, c, g, l, e, E):
        channel = tl.program_id(0) * E + tl.arange(0, E)
        h = start(c, E)
        for i in range(l):
            place = token(l, i) * e + channel
            a_t, c_t = (tl.load(v + place, mask=mask(channel, e), other=0) for v in (a, c))
            g_t = c_t + h
            tl.store(g + place, stored(a_t, g_t), mask=channel < e)
            h = carry(a_t, g_t, c_t)

    return kernel


def test_gradient_kernel_sees_a_read_behind_the_end(rejected):
    def next_decay(a, c, g, l, e, E):
        channel = tl.program_id(0) * E + tl.arange(0, E)
        after = tl.zeros((E,), c.dtype.element_ty)
        for i in range(l):
            place = (l - 1 - i) * e + channel
            a_next = tl.load(a + place + e, mask=channel < e, other=0)
            after = tl.load(c + place, mask=channel < e, other=0) + a_next * after
            tl.store(g + place, after, mask=channel < e)

    # With numbers behind the tensor instead of NaN, the values are right.
    buffer, c, g = torch.rand(36).double(), torch.rand(5, 6).double(), torch.zeros(5, 6).double()
    triton.jit(next_decay)[(2,)](buffer[:30].view(5, 6), c, g, 5, 6, 4)
    torch.testing.assert_close(g[3], c[3] + buffer[24:30] * c[4])
    assert rejected("gradient_kernel", next_decay, "reads address 30 of a", "token l, which does not exist", "h = a g")


@pytest.mark.parametrize(("start", "words"), [
    (lambda c, E: 0.0, ("h is a number of float32 before the loop", "a block of float64 and shape (4,)")),
    (lambda c, E: tl.zeros((E,), tl.float32), ("h is a block of float32", "of float64", "keep type and shape")),
    (lambda c, E: tl.zeros((1,), c.dtype.element_ty), ("shape (1,) before", "shape (4,) after")),
])
def test_gradient_kernel_refuses_a_carry_that_changes_its_type(rejected, start, words):
    assert rejected("gradient_kernel", back(start=start), *words)


def test_gradient_kernel_tells_no_mask_from_a_token_too_many(rejected):
    unmasked = back(mask=lambda channel, e: channel < 8)
    assert rejected("gradient_kernel", unmasked, "program (1,) reads address 30 of a", "out of bounds")
    assert "token l" not in grade("gradient_kernel", unmasked).message
    assert rejected("gradient_kernel", back(token=lambda l, i: l - i), "uses token 5", "the last token is l - 1")

    def backwards(a, c, g, l, e, E):
        for t in reversed(range(l)):
            tl.store(g + t, 0.0)

    assert rejected("gradient_kernel", backwards, "no reversed()", "count with range")


def test_gradient_kernel_names_its_mistakes(rejected):
    assert grade("gradient_kernel", back()).status == "right"
    assert grade("gradient_kernel", back(start=lambda c, E: tl.full((E,), 0.0, c.dtype.element_ty))).status == "right"
    assert rejected("gradient_kernel", back(token=lambda l, i: i), "walked from the first token, with t = i")
    assert rejected("gradient_kernel", back(stored=lambda a, g: a * g), "store g itself")
    assert rejected("gradient_kernel", back(carry=lambda a, g, c: 0 * g), "carry from the later tokens is forgotten")
    assert rejected("gradient_kernel", back(carry=lambda a, g, c: g), "not multiplied by the decay")
    assert rejected("gradient_kernel", back(carry=lambda a, g, c: a * c), "only the direct gradient")
    assert rejected("gradient_kernel", back(mask=lambda channel, e: channel < e + 1), "reads", "out of bounds")

    def neighbours(a, c, g, l, e, E):
        channel = tl.program_id(0) * E + tl.arange(0, E)
        h = tl.zeros((E,), c.dtype.element_ty)
        for i in range(l):
            place = (l - 1 - i) * e + channel
            inside = place < l * e
            g_t = tl.load(c + place, mask=inside, other=0) + h
            tl.store(g + place, g_t, mask=channel < e)
            h = tl.load(a + place, mask=inside, other=0) * g_t

    assert rejected("gradient_kernel", neighbours, "program (1,) reads", "of another program")

    def own_decay(a, c, g, l, e, E):
        channel = tl.program_id(0) * E + tl.arange(0, E)
        g_t = tl.zeros((E,), c.dtype.element_ty)
        for i in range(l):
            place = (l - 1 - i) * e + channel
            a_t = tl.load(a + place, mask=channel < e, other=0)
            g_t = tl.load(c + place, mask=channel < e, other=0) + a_t * g_t
            tl.store(g + place, g_t, mask=channel < e)

    assert rejected("gradient_kernel", own_decay, "token's own a[t]")

    def from_left(a, c, g, l, e, E):
        channel = tl.program_id(0) * E + tl.arange(0, E)
        g_t = tl.zeros((E,), c.dtype.element_ty)
        for t in range(l):
            a_t = tl.load(a + t * e + channel, mask=channel < e, other=0)
            g_t = tl.load(c + t * e + channel, mask=channel < e, other=0) + a_t * g_t
            tl.store(g + t * e + channel, g_t, mask=channel < e)

    assert rejected("gradient_kernel", from_left, "walked from the first token")
    assert rejected("gradient_kernel", lambda a, c, g, l, e, E: tl.store(g + tl.arange(0, 3), 0.0), "power of two")


@pytest.mark.parametrize(("wrong", "words"), [
    (lambda k, l, m, r: list(range(k * m, min(k * m + m, l))), ("scan from the left", "from the right")),
    (lambda k, l, m, r: list(range(k * m, min(k * m + m, l)))[:: -1 if r else 1], ("chunks are in the wrong order",)),
    (lambda k, l, m, r: list(range((-(-l // m) - 1 - k if r else k) * m, l))[:m], ("ascending order",)),
    (lambda k, l, m, r: list(range(l))[:: -1 if r else 1][k * m : k * m + m], ("cut from the right",)),
    (lambda k, l, m, r: list(range(k * m, k * m + m)), ("token 10", "out of bounds")),
    (lambda k, l, m, r: list(range((l // m - 1 - k if r else k) * m, min((l // m - k if r else k + 1) * m, l)))
     [:: -1 if r else 1], ("l // m does not count the short chunk",)),
    (lambda k, l, m, r: range(1, m + 1), ("is [1, 2, 3, 4], expected [0, 1, 2, 3]",)),
    (lambda k, l, m, r: k, ("should be a list of tokens", "an int")),
])
def test_chunk_tokens_names_its_mistakes(rejected, wrong, words):
    assert rejected("chunk_tokens", wrong, *words)


def test_chunk_tokens_takes_any_sequence():
    def tokens(k, l, m, reverse):
        edge = (-(-l // m) - 1 - k if reverse else k) * m
        return (t for t in (reversed if reverse else list)(range(edge, min(edge + m, l))))

    assert grade("chunk_tokens", tokens).status == "right"
    assert grade("chunk_tokens", lambda *args: torch.tensor(list(tokens(*args)))).status == "right"


def share(other=0, where=lambda block, l, t: block * l + t, mask=True, value=lambda g, x: g * x[:, None],
          store=None, axis=0):
    """Return a kernel of exercise 4.7 with one part exchanged."""
    def kernel(g, x, shares, l, e, n, E):
        block, state = tl.program_id(0), tl.arange(0, n)
        channel = block * E + tl.arange(0, E)
        exists = channel < (e if mask else 2 * E)
        for t in range(l):
            tile = (t * e + channel[:, None]) * n + state[None, :]
            g_t = tl.load(g + tile, mask=exists[:, None], other=other)
            x_t = tl.load(x + t * e + channel, mask=exists, other=other)
            tl.store(shares + where(block, l, t) * n + state, tl.sum(value(g_t, x_t), axis),
                     mask=store(state, e) if store else None)

    return kernel


def test_share_kernel_names_its_mistakes(rejected):
    assert grade("share_kernel", share()).status == "right"
    assert rejected("share_kernel", share(other=None), "NaN", "other=0")
    assert rejected("share_kernel", share(where=lambda block, l, t: t), "both write shares[0, 0, 0]",
                    "place of its own")
    assert rejected("share_kernel", share(mask=False), "out of bounds")
    assert rejected("share_kernel", share(value=lambda g, x: g), "lack the factor x")
    assert rejected("share_kernel", share(where=lambda block, l, t: (1 - block) * l + t), "exchanged")
    assert rejected("share_kernel", share(where=lambda block, l, t: block * l), "no program writes shares[0, 1, 0]")

    assert rejected("share_kernel", share(where=lambda block, l, t: 2 * t + block), "shares lie as (l, blocks, n)")
    assert rejected("share_kernel", share(store=lambda state, e: state < e), "no program writes shares[0, 0, 6]")
    assert rejected("share_kernel", share(store=lambda state, e: tl.arange(0, 4) < e), "a mask of shape (4,)")
    assert rejected("share_kernel", share(axis=1), "a value of shape (4,) for addresses of shape (8,)")

    def atomic(g, x, shares, l, e, n, E):
        tl.atomic_add(shares, 0.0)

    def clamped(g, x, shares, l, e, n, E):
        block, state = tl.program_id(0), tl.arange(0, n)
        channel = tl.minimum(block * E + tl.arange(0, E), e - 1)
        for t in range(l):
            g_t = tl.load(g + (t * e + channel[:, None]) * n + state[None, :])
            x_t = tl.load(x + t * e + channel)
            tl.store(shares + (block * l + t) * n + state, tl.sum(g_t * x_t[:, None], 0, keep_dims=False))

    assert rejected("share_kernel", atomic, "no tl.atomic_add", "a place of its own")
    assert rejected("share_kernel", clamped, "repeats the last channel", "must add 0")


def test_the_stand_in_stops_at_the_end_of_the_memory():
    @triton.jit
    def copy(x, y, E):
        tl.store(y + tl.arange(0, E), tl.load(x + tl.arange(0, E)))

    with pytest.raises(VimlearnError, match=r"program \(0,\) uses address 3 of x"):
        copy[(1,)](torch.zeros(3), torch.zeros(4), 4)


def notebook_kernels() -> dict:
    """Return the kernels of the notebook, made with the stand-in."""
    names = {"tl": tl, "triton": triton}
    for cell in nbformat.read(NOTEBOOK, 4).cells:
        if cell.source.startswith("@triton.jit") and "tags" not in cell.metadata:
            exec(cell.source, names)
    return names


@pytest.mark.parametrize("reverse", [False, True])
def test_the_notebook_s_kernels_stay_inside_their_tensors(reverse):
    """A lane too many can leave all values right; l is no multiple of m, e none of E."""
    kernels, (b, l, e, n, m, E) = notebook_kernels(), (2, 5, 6, 2, 3, 4)
    x = {"u": torch.rand(b, l, e), "delta": torch.rand(b, l, e), "A": -torch.rand(e, n), "B": torch.rand(b, l, n),
         "C": torch.rand(b, l, n)}
    empty, sizes = x["u"].new_empty, {"l": l, "e": e, "n": n, "E": E}
    forward = run_watched(kernels["forward_kernel"], (b, 2), **x, y=empty(b, l, e), starts=empty(b, 2, e, n), **sizes,
                          m=m, REVERSE=reverse)
    grads = {"grad_u": empty(b, l, e), "grad_delta": empty(b, l, e), "grad_A": empty(b, e, n),
             "grad_B": empty(2, b, l, n), "grad_C": empty(2, b, l, n)}
    backward = run_watched(kernels["backward_kernel"], (b, 2), grad_y=torch.rand(b, l, e), **x,
                           starts=forward["starts"].tensor, **grads, **sizes, m=m, REVERSE=reverse)
    pairs = {f"{name}_{k}": v for k in (1, 2) for name, v in x.items()}
    both = run_watched(kernels["both_kernel"], (b, 2), **pairs, z=torch.rand(b, l, e), y=empty(b, l, e), **sizes)
    for memories, results in ((forward, ["y", "starts"]), (backward, list(grads)), (both, ["y"])):
        for name, memory in memories.items():
            assert not memory.outside(memory.reads) and not memory.outside(memory.writes), name
            owners = [a for addresses in memory.writes.values() for a in addresses]
            assert sorted(owners) == (list(range(memory.size)) if name in results else []), name


RUN = """
import linecache, os, sys
os.environ["VIMLEARN_PROGRESS"] = "off"
if sys.argv[2] == "without":
    sys.modules["triton"] = None
import nbformat
names = {"__name__": "__main__"}
for i, cell in enumerate(c for c in nbformat.read(sys.argv[1], 4).cells if c.cell_type == "code"):
    if cell.source.startswith("@numba.njit"):
        break
    if "show(fig" in cell.source:
        continue
    lines = cell.source.splitlines(True)
    linecache.cache[f"cell{i}"] = (len(cell.source), None, lines, f"cell{i}")
    exec(compile(cell.source, f"cell{i}", "exec"), names)
    names["package"] = ["loop"]
"""


def test_the_kernels_run_where_there_is_no_triton():
    done = subprocess.run([sys.executable, "-c", RUN, str(NOTEBOOK), "without"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "There is no Triton for this system" in done.stdout
    assert "all eleven gradients agree" in done.stdout


COMPILE = """
import linecache, sys
import nbformat, triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

names = {"__name__": "__main__", "triton": triton, "tl": tl}
for i, cell in enumerate(nbformat.read(sys.argv[1], 4).cells):
    if cell.source.startswith("@triton.jit") and "tags" not in cell.metadata:
        linecache.cache[f"cell{i}"] = (len(cell.source), None, cell.source.splitlines(True), f"cell{i}")
        exec(compile(cell.source, f"cell{i}", "exec"), names)
constants = {"E": 4, "n": 2, "m": 3, "e": 4, "REVERSE": True}
for name, kernel in names.items():
    if name.endswith("_kernel"):
        kinds = {p.name: "constexpr" if p.is_constexpr else "i32" if p.name in ("l", "e", "limit") else
                 "*fp32" if name == "running_sum_kernel" else "*fp64" for p in kernel.params}
        given = {(p.num,): constants[p.name] for p in kernel.params if p.is_constexpr}
        triton.compile(ASTSource(kernel, kinds, given), target=GPUTarget("cuda", 90, 32))
        print(name)
"""


def test_the_notebook_s_kernels_compile_for_a_gpu(monkeypatch):
    """What runs under the interpreter need not compile. This needs no GPU, but a process without the interpreter."""
    pytest.importorskip("triton", reason="there is no Triton for this system")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    done = subprocess.run([sys.executable, "-c", COMPILE, str(NOTEBOOK)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    kernels = ["running_sum", "one_block", "forward", "backward", "both"]
    assert done.stdout.split() == [f"{name}_kernel" for name in kernels]
