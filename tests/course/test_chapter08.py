"""Chapter 08: plausible wrong answers are named; the sliders redraw."""

import pytest
import torch

import vimlearn
from vimlearn.course.exercise import grade
from vimlearn.course.explorer import explorer

THREE = {"M[2, 0]": 3.0, "M[2, 2]": 90.0, "M[0, 2]": 0.0}


@pytest.mark.parametrize(("key", "value", "words"), [
    ("M[2, 0]", 0.75, ["own step"]),
    ("M[2, 0]", 1.5, ["d[0] = 2"]),
    ("M[2, 0]", 24.0, ["step of the query"]),
    ("M[2, 0]", 6.0, ["step in between"]),
    ("M[2, 0]", 1.0, ["C[2] = 6"]),
    ("M[2, 0]", 3.75, ["B[0] = 4"]),
    ("M[2, 2]", 30.0, ["d[2] = 3"]),
    ("M[2, 2]", 11.25, ["not decayed"]),
    ("M[0, 2]", 1.875, ["cannot reach"]),
    ("M[0, 2]", 3.0, ["not symmetric"]),
    ("M[0, 2]", None, ["still None"]),
])
def test_three_entries(rejected, key, value, words):
    assert rejected("three_entries", THREE | {key: value}, *words)


def test_three_entries_keeps_the_dict(rejected):
    assert rejected("three_entries", (3, 90, 0), "keep the dict")


def entries(d, A, B, C, *, own=0, step="key", upper=False, swap=False):
    """The hidden matrices entry by entry, with one knob for each mistake."""
    l, e = d.shape
    if swap:
        B, C = C, B
    found = d.new_zeros(e, l, l)
    for t in range(l):
        for j in range(l if upper else t + 1):
            between = d[j + 1 - own:t + 1].sum(0) if j <= t else -d[t + 1:j + 1].sum(0)
            taken = {"key": d[j], "query": d[t], "none": torch.ones_like(d[j])}[step]
            found[:, t, j] = (torch.exp(between[:, None] * A) * C[t] * B[j]).sum(1) * taken
    return found


def test_all_matrices_takes_loops():
    assert grade("all_matrices", entries).status == "right"


@pytest.mark.parametrize(("wrong", "word"), [
    (lambda *x: entries(*x, upper=True), "above the diagonal"),
    (lambda *x: entries(*x).transpose(1, 2), "exchanged"),
    (lambda *x: entries(*x, step="none"), "d[j] is missing"),
    (lambda *x: entries(*x, step="query"), "not d[t]"),
    (lambda *x: entries(*x, own=1), "own step"),
    (lambda *x: entries(*x, swap=True), "B and C are exchanged"),
    (lambda *x: entries(*x).permute(1, 2, 0), "channels are last"),
    (lambda *x: entries(*x).mean(0), "mean over the channels"),
])
def test_all_matrices(rejected, wrong, word):
    assert rejected("all_matrices", wrong, word)


def test_all_matrices_stays_finite_for_long_steps(rejected):
    def ratio(d, A, B, C):
        P = torch.exp(d.cumsum(0)[..., None] * A)
        return torch.einsum("ten,jen,tn,jn,je->etj", P, 1 / P, C, B, d).tril()

    def cut_too_late(d, A, B, C):
        S = d.cumsum(0)
        decay = torch.exp((S[:, None] - S[None])[..., None] * A)
        return torch.einsum("tjen,tn,jn,je->etj", decay, C, B, d) * torch.ones(len(d), len(d)).tril()

    assert rejected("all_matrices", ratio, "not finite", "one exp")
    assert rejected("all_matrices", cut_too_late, "not finite", "above the diagonal")


@pytest.mark.parametrize(("wrong", "word"), [
    (lambda hidden, d, A, B, C: hidden(d, A, B, C), "nothing is reversed"),
    (lambda hidden, d, A, B, C: hidden(d, A, B, C).mT, "transpose"),
    (lambda hidden, d, A, B, C: hidden(d.flip(0), A, B.flip(0), C.flip(0)), "order of the scan"),
    (lambda hidden, d, A, B, C: hidden(d.flip(0), A, B.flip(0), C.flip(0)).flip(1), "only the rows"),
    (lambda hidden, d, A, B, C: hidden(d.flip(0), A, B.flip(0), C.flip(0)).flip(2), "only the columns"),
    (lambda hidden, d, A, B, C: hidden(d, A, B, C).flip(1, 2), "inputs are in forward order"),
    (lambda hidden, d, A, B, C: hidden(d, A, B.flip(0), C.flip(0)).flip(1, 2), "steps are not flipped"),
])
def test_backward_matrix(rejected, wrong, word):
    assert rejected("backward_matrix", wrong, word)


def dropping(place, by_column=False):
    def wrong(values, rows, columns):
        kept = [i for i in range(rows * columns + 1) if i != place(rows * columns)]
        flat = values[:, kept]
        return flat.view(-1, columns, rows).mT if by_column else flat.view(-1, rows, columns)

    return wrong


@pytest.mark.parametrize(("wrong", "word"), [
    (dropping(lambda M: 0), "first number"),
    (dropping(lambda M: M), "last number"),
    (dropping(lambda M: M // 2 + 1), "number 7 was dropped"),
    (dropping(lambda M: M // 2 - 1), "number 5 was dropped"),
    (dropping(lambda M: (M + 1) // 2), "number 5 was dropped"),
    (dropping(lambda M: M // 2, by_column=True), "column by column"),
])
def test_to_picture(rejected, wrong, word):
    assert rejected("to_picture", wrong, word)


def rolled(matrices, query, *, one=True, clamp=True, scale=-1, floor=1e-12, empty=0.0, turned=False,
           part="row"):
    """Rollout by whole matrices."""
    product = torch.eye(len(matrices[0]), dtype=torch.float64)
    for matrix in matrices:
        shares = matrix.clamp(min=0) if clamp else matrix
        shares = shares if scale is None else shares / shares.sum(scale, keepdim=True).clamp(min=floor)
        shares = shares + empty * (shares == 0).all(1, keepdim=True)
        layer = shares + torch.eye(len(matrix), dtype=torch.float64) * one
        product = product @ layer if turned else layer @ product
    return {"row": product[query], "column": product[:, query], "all": product}[part]


def test_roll_out_takes_whole_matrices():
    assert grade("roll_out", rolled).status == "right"


@pytest.mark.parametrize(("knobs", "word"), [
    ({"one": False}, "goes on unchanged"),
    ({"clamp": False}, "negative entries"),
    ({"scale": 0}, "columns are scaled"),
    ({"scale": None}, "not scaled"),
    ({"floor": 0}, "clamp the sum"),
    ({"empty": 0.2}, "where one token takes in nothing"),
    ({"turned": True}, "wrong order"),
    ({"part": "column"}, "this is a column"),
    ({"part": "all"}, "whole product"),
])
def test_roll_out(rejected, knobs, word):
    assert rejected("roll_out", lambda matrices, query: rolled(matrices, query, **knobs), word)


def deleting(order=lambda r: r.flatten().argsort(descending=True), *, keep=True, by_column=False, cut=slice(None)):
    def curve(score, image, relevance, p):
        rows, columns = relevance.shape
        now, found = image.clone(), [score(image)]
        for i in order(relevance).tolist():
            now = now if keep else image.clone()
            row, column = (i % rows, i // rows) if by_column else (i // columns, i % columns)
            now[:, row * p:(row + 1) * p, column * p:(column + 1) * p] = 0
            found.append(score(now))
        return torch.stack(found)[cut]

    return curve


@pytest.mark.parametrize(("wrong", "word"), [
    (deleting(lambda r: r.flatten().argsort()), "descending"),
    (deleting(lambda r: r.abs().flatten().argsort(descending=True)), "magnitude"),
    (deleting(lambda r: r.T.flatten().argsort(descending=True)), "flatten it row by row"),
    (deleting(keep=False), "stay gone"),
    (deleting(by_column=True), "i // columns"),
    (deleting(cut=slice(1, None)), "whole image"),
    (deleting(cut=slice(None, -1)), "one patch early"),
])
def test_deletion(rejected, wrong, word):
    assert rejected("deletion", wrong, word)


def test_deletion_leaves_the_image_whole(rejected):
    def in_place(score, image, relevance, p):
        image[:, :p, :p] = 0
        return torch.stack([score(image)])

    assert rejected("deletion", in_place, "in place")


def test_the_sliders_redraw():
    torch.manual_seed(0)
    model = vimlearn.VisionMamba(img_size=12, patch_size=4, num_classes=3, embed_dim=12, depth=2, d_state=4).eval()
    *controls, said, drawn = explorer(model, torch.randn(3, 12, 12), torch.rand(3, 12, 12)).children
    layer, whole, row, column, direction = controls
    seen = [(said.value, drawn.value)]
    for control, value in ((layer, 0), (whole, False), (row, 2), (column, 0), (direction, "forward")):
        control.value = value
        seen.append((said.value, drawn.value))
    assert len({bytes(picture) for _, picture in seen}) == len(seen)
    assert all(bytes(picture).startswith(b"\x89PNG") for _, picture in seen)
    assert "layer 1" in seen[0][0] and "class token" in seen[0][0] and "layer 0" in seen[1][0]
