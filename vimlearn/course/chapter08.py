"""Checks of chapter 08: entries of the hidden matrix, both directions, the picture, rollout, deletion."""

import torch
from torch import Tensor

from vimlearn.course.exercise import Wrong, call, exercise, match


def _rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@exercise("8.1", "Three entries on paper")
def three_entries(answer):
    """M[t, j] = C[t] exp(A (sum of the steps behind j up to t)) B[j] d[j], for three tokens."""
    keys = ("M[2, 0]", "M[2, 2]", "M[0, 2]")
    if not isinstance(answer, dict) or set(answer) != set(keys):
        raise Wrong(f"keep the dict of the cell above, with the keys {', '.join(map(repr, keys))}")
    missing = [key for key in keys if answer[key] is None]
    if missing:
        raise Wrong(f"{missing[0]!r} is still None; give a number")
    match(answer["M[2, 0]"], 3.0, name="M[2, 0]", mistakes={
        "M[2, 0]: nothing decays here; what token 0 writes fades over the steps 1 and 3": 48.0,
        "M[2, 0]: token 0 does not decay at its own step; the steps behind it are 1 and 3": 0.75,
        "M[2, 0]: the step d[0] = 2 is missing; it scales what is written": 1.5,
        "M[2, 0]: the state also decays at the step of the query, so the steps are 1 and 3": 24.0,
        "M[2, 0]: the state also decays at the step in between, so the steps are 1 and 3": 6.0,
        "M[2, 0]: C is taken at the query, C[2] = 6": 1.0,
        "M[2, 0]: B is taken at the token that is written, B[0] = 4": 3.75,
    })
    match(answer["M[2, 2]"], 90.0, name="M[2, 2]", mistakes={
        "M[2, 2]: the step d[2] = 3 is missing": 30.0,
        "M[2, 2]: what a token writes has not decayed yet when its own output reads it": 11.25,
    })
    match(answer["M[0, 2]"], 0.0, name="M[0, 2]", mistakes={
        "M[0, 2]: there are no steps from token 2 back to token 0; a forward scan does not run that way": 30.0,
        "M[0, 2]: steps are not taken back; a forward scan does not run that way": 480.0,
        "M[0, 2]: in a forward scan token 2 comes after output 0 and cannot reach it": 1.875,
        "M[0, 2]: the matrix is not symmetric; a forward scan reaches later outputs only": 3.0,
    })
    return "C of the query, B and step of the key, and the decay of the steps between."


def _matrices(d: Tensor, A: Tensor, B: Tensor, C: Tensor, own: float = 0.0) -> Tensor:
    """Return (e, l, l); `own` times the key's own step goes into the decay as well."""
    total = d.cumsum(0)
    # (t, j, e)
    elapsed = (total[:, None] - total[None] + own * d[None]).clamp(min=0)
    # (t, j, e, n)
    decay = torch.exp(elapsed[..., None] * A)
    found = torch.einsum("tjen,tn,jn,je->etj", decay, C, B, d)
    return found.tril()


@exercise("8.2", "The matrix of every channel")
def all_matrices(answer):
    """All channels at once, then steps so long that a ratio of products would give NaN."""
    d, A, B, C = _rand(6, 3) + 0.1, -_rand(3, 4, seed=1) - 0.2, _randn(6, 4, seed=2), _randn(6, 4, seed=3)
    right = _matrices(d, A, B, C)
    total = d.cumsum(0)
    free = torch.einsum("tjen,tn,jn,je->etj", torch.exp((total[:, None] - total[None])[..., None] * A), C, B, d)
    kept = torch.einsum("tjen,tn,jn,je->etj", torch.exp((total[:, None] - total[None]).clamp(min=0)[..., None] * A), C,
                        B, d)
    match(call(answer, d, A, B, C), right, name="the tensor of matrices", mistakes={
        "the exponent is kept from growing, but the entries above the diagonal are still there; cut them off": kept,
        "entries above the diagonal are not 0: later tokens reach no earlier output": free,
        "rows and columns are exchanged: rows are outputs t, columns are inputs j": right.transpose(1, 2),
        "the step d[j] is missing; it scales what token j writes": right / d.T[:, None],
        "the step of the query stands where that of the key belongs: d[j], not d[t]":
            right / d.T[:, None] * d.T[:, :, None],
        "the key's own step is in its decay; only the steps behind j count": _matrices(d, A, B, C, own=1.0),
        "B and C are exchanged: C belongs to the query t, B to the key j": _matrices(d, A, C, B),
        "the channels are last: expected (e, l, l)": right.permute(1, 2, 0),
        "this is the mean over the channels; each has a matrix of its own": right.mean(0),
    })
    long = torch.full((40, 3), 60.0, dtype=torch.float64)
    got = call(answer, long, A, _randn(40, 4), _randn(40, 4))
    if isinstance(got, Tensor) and not got.isfinite().all():
        raise Wrong("with long steps the result is not finite: add up the steps between j and t, and take one exp of "
                    "the sum; keep entries above the diagonal from growing before you cut them off")
    match(got, _matrices(long, A, _randn(40, 4), _randn(40, 4)), name="the tensor of matrices for long steps")
    return "one exponential of a difference of running sums, finite for any step."


@exercise("8.3", "The other direction")
def backward_matrix(answer):
    """Reverse the tokens going in, and both axes of the matrix coming out."""
    d, A, B, C = _rand(5, 2) + 0.1, -_rand(2, 3, seed=1) - 0.2, _randn(5, 3, seed=2), _randn(5, 3, seed=3)
    turned = _matrices(d.flip(0), A, B.flip(0), C.flip(0))
    forward = _matrices(d, A, B, C)
    match(call(answer, _matrices, d, A, B, C), turned.flip(1, 2), name="the matrix", mistakes={
        "nothing is reversed: this is the forward matrix": forward,
        "the transpose is not the backward scan: there C of the query still reads B of the key":
            forward.transpose(1, 2),
        "the result is still in the order of the scan; flip its rows and columns back": turned,
        "only the rows are flipped back; the columns are tokens, too": turned.flip(1),
        "only the columns are flipped back; the rows are tokens, too": turned.flip(2),
        "the inputs are in forward order; flip d, B and C along the tokens first": forward.flip(1, 2),
        "B is not flipped": lambda: _matrices(d.flip(0), A, B, C.flip(0)).flip(1, 2),
        "C is not flipped": lambda: _matrices(d.flip(0), A, B.flip(0), C).flip(1, 2),
        "the result is flipped and transposed; flip both axes, and leave them in their order": (
            turned.flip(1, 2).transpose(1, 2)
        ),
        "the steps are not flipped": lambda: _matrices(d, A, B.flip(0), C.flip(0)).flip(1, 2),
    })
    return "upper triangular: reverse the tokens, build the forward matrix, reverse both axes."


@exercise("8.4", "Back to the picture")
def to_picture(answer):
    """Take the number in the middle out, lay the others out row by row."""
    for b, rows, columns in ((2, 3, 4), (1, 3, 3)):
        count = rows * columns
        values = _randn(b, count + 1, seed=count)
        middle = count // 2

        def without(index, values=values):
            return torch.cat([values[:, :index], values[:, index + 1:]], dim=1)

        right = without(middle).view(b, rows, columns)
        match(call(answer, values, rows, columns), right, name="the picture", mistakes={
            "the first number was taken for the class token's; in Vim it is number rows * columns // 2":
                without(0).view(b, rows, columns),
            "the last number was taken for the class token's; in Vim it is number rows * columns // 2":
                without(count).view(b, rows, columns),
            f"with {count} patches number {middle + 1} was dropped; the class token is number {middle}":
                without(middle + 1).view(b, rows, columns),
            f"with {count} patches number {middle - 1} was dropped; the class token is number {middle}":
                without(middle - 1).view(b, rows, columns),
            "the grid is filled column by column; patches are numbered row by row":
                without(middle).view(b, columns, rows).transpose(1, 2),
        })
    return "the class token comes out of the middle, and every later patch moves up by one."


def _normalised(matrix: Tensor, clamp: bool = True, axis: int = -1, early: bool = False) -> Tensor:
    if early:
        return (matrix / matrix.sum(axis, keepdim=True)).clamp(min=0)
    if not clamp:
        return matrix / matrix.sum(axis, keepdim=True)
    positive = matrix.clamp(min=0)
    return positive / positive.sum(axis, keepdim=True).clamp(min=1e-12)


def _rolled(matrices: list[Tensor], query: int, stay: float = 1.0, last_first: bool = True, **how) -> Tensor:
    row = torch.eye(len(matrices[0]), dtype=matrices[0].dtype)[query]
    for matrix in reversed(matrices) if last_first else matrices:
        row = stay * row + row @ _normalised(matrix, **how)
    return row


@exercise("8.5", "Rollout")
def roll_out(answer):
    """The query's row of the product of (1 + cut and scaled matrix), the last layer in front."""
    for count in (1, 3):
        matrices, query = [_rand(5, 5, seed=i) - 0.3 for i in range(count)], 3
        product = torch.eye(5, dtype=torch.float64)
        for matrix in matrices:
            product = (torch.eye(5, dtype=torch.float64) + _normalised(matrix)) @ product
        plain = _rolled(matrices, query)
        match(call(answer, matrices, query), plain, name="the row", mistakes={
            "the part that goes on unchanged is missing: 1 + matrix in every layer": _rolled(matrices, query, stay=0),
            "negative entries are still in; cut them off before the rows are scaled":
                _rolled(matrices, query, clamp=False),
            "the columns are scaled to sum 1; the rows are outputs and take shares": _rolled(matrices, query, axis=0),
            "the rows are scaled before negative entries are cut off; cut first": _rolled(matrices, query, early=True),
            "1 + matrix is scaled as a whole; scale the matrix and add 1 then": _whole(matrices, query),
            "the layers come in the wrong order: from the query back, the last layer is met first":
                _rolled(matrices, query, last_first=False),
            "this is a column of the product, what the query gives; the row is what it gets": product[:, query],
            "this is the whole product; return the row of the query": product,
            "the rows are not scaled to sum 1": _unscaled(matrices, query),
        })
    matrices, query = [_rand(5, 5, seed=i) - 0.3 for i in range(3)], 3
    # The query takes in nothing in the middle layer: no positive entry in its row.
    matrices[1][query] = -_rand(5, seed=3)
    got = call(answer, matrices, query)
    if isinstance(got, Tensor) and got.isnan().any():
        raise Wrong("a row without a positive entry is divided by its sum 0, which gives NaN; clamp the sum from below")
    match(got, _rolled(matrices, query), name="the row, where one token takes in nothing")
    return "the query's row, carried from the last layer to the first."


def _whole(matrices: list[Tensor], query: int) -> Tensor:
    row = torch.eye(len(matrices[0]), dtype=matrices[0].dtype)[query]
    for matrix in reversed(matrices):
        row = row @ _normalised(torch.eye(len(matrix), dtype=matrix.dtype) + matrix.clamp(min=0))
    return row


def _unscaled(matrices: list[Tensor], query: int) -> Tensor:
    row = torch.eye(len(matrices[0]), dtype=matrices[0].dtype)[query]
    for matrix in reversed(matrices):
        row = row + row @ matrix.clamp(min=0)
    return row


def _deleted(score, image: Tensor, order: Tensor, p: int, columns: int, together: bool = True) -> Tensor:
    scores, now = [], image.clone()
    for k in range(len(order) + 1):
        if k:
            now = now.clone() if together else image.clone()
            row, column = divmod(int(order[k - 1]), columns)
            now[:, p * row:p * row + p, p * column:p * column + p] = 0
        scores.append(score(now))
    return torch.stack(scores)


@exercise("8.6", "The deletion curve")
def deletion(answer):
    """Scores after 0, 1, ..., all patches were set to 0, the most relevant first."""
    weight = _rand(2, 4, 6, seed=1) + 0.1

    def score(image):
        return (weight * image).sum().square()

    p, image, relevance = 2, _rand(2, 4, 6) + 0.5, _randn(2, 3, seed=4)
    order = relevance.flatten().argsort(descending=True)
    by_column = relevance.T.flatten().argsort(descending=True)
    # Numbered column by column, patch i lies in row i % rows.
    turned = torch.tensor([int(i) % 2 * 3 + int(i) // 2 for i in relevance.flatten().argsort(descending=True)])
    right = _deleted(score, image, order, p, 3)
    match(call(answer, score, image, relevance, p), right, name="the curve", mistakes={
        "the least relevant patch goes first; sort in descending order": _deleted(score, image, order.flip(0), p, 3),
        "only one patch is away at a time; patches that are gone stay gone":
            _deleted(score, image, order, p, 3, together=False),
        "the curve starts after the first patch; it starts with the whole image": right[1:],
        "the curve ends one patch early; it ends with all of them gone": right[:-1],
        "patches are numbered row by row: row = i // columns": _deleted(score, image, turned, p, 3),
        "row and column are exchanged: row = i // columns, column = i % columns": _deleted(
            score, image, torch.tensor([i // 2 * 3 + i % 2 if i < 4 else i for i in order.tolist()]), p, 3),
        "relevance is read column by column; flatten it row by row": _deleted(score, image, by_column, p, 3),
        "the magnitude decides the order here; negative relevance speaks against, so it goes last":
            _deleted(score, image, relevance.abs().flatten().argsort(descending=True), p, 3),
    })
    return "from the whole image to nothing, the most relevant patch first."
