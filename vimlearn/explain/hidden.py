"""The matrix that a selective scan hides: how much of token j goes into the output of token t.

Unrolled, the recurrence is a sum over the tokens before. In channel c, for j <= t in scan order,

    y[t] = sum over j of M[t, j] u[j] + D u[t],     M[t, j] = d[j] sum over n of C[t, n] exp(A[n] (S[t] - S[j])) B[j, n]

where d is the step and S its running sum. So every channel has a lower triangular matrix (upper in the backward
direction), and Vim has e of them a layer and direction, where attention has one for each head.
Source: Ali, Zimerman and Wolf, "The Hidden Attention of Mamba Models" (2024), equations 9 to 11.

Nothing of size (l, l, e, n) is built. One row is itself a scan: it starts with C at the query, runs against the
direction, and reads out with B. So it takes the time of the forward pass and memory linear in the tokens, on every
backend. The mean over the channels is built by halves: what goes from the first half into the second is a matrix
product over (e, n), because the decay falls apart at the border into two factors, both at most 1. No gradients flow
through rows and means.
"""

__all__ = ["hidden_matrix", "hidden_row", "mean_hidden_matrix", "steps"]

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import VimlearnError
from ..kernels.layout import Scan
from ..scan import SCAN, no_autocast, prepare

# Numbers that each factor of the mean may hold at a time.
LARGEST = 2**23


def steps(scan: Scan) -> Tensor:
    """Return the step d of every token and channel, (b, l, e), float32 or float64: softplus(delta + bias)."""
    return _prepared(scan)[0]


@torch.no_grad()
def hidden_row(scan: Scan, query: int, backend: str = "auto") -> Tensor:
    """Return the row of one output token: M[query, j] for all tokens j and channels, (b, l, e), without the skip D.

    `query` counts tokens from 0 as they lie in the sequence, in either direction. backend as in
    `vimlearn.selective_scan`. Raises VimlearnError where there is no such token.
    """
    l = scan.u.shape[1]
    if not 0 <= query < l:
        raise VimlearnError(f"there is no token {query}; expected 0 to {l - 1}")
    # What lies behind the query in scan order goes nowhere into it.
    first, last = (query, l) if scan.reverse else (0, query + 1)
    d, B, C = _prepared(_of_tokens(scan, first, last))
    row = _against_the_direction(d, B, C[:, query - first], scan.A, scan.reverse, backend)
    return F.pad(row * d, (0, 0, first, l - last))


def _against_the_direction(d: Tensor, B: Tensor, C: Tensor, A: Tensor, reverse: bool, backend: str) -> Tensor:
    """Return sum over n of C[n] exp(A[n] (S[t] - S[j])) B[j, n] for all j, (b, l, e), where t stands at the end."""
    at = 0 if reverse else -1
    # Between the tokens j and j + 1 lies the step of j + 1. At t, where the states start, it is 1 and so is the input.
    decay, start, inputs = d.roll(1 if reverse else -1, 1), torch.zeros_like(d), torch.zeros_like(B)
    decay[:, at] = start[:, at] = 1
    inputs[:, at] = C
    run = SCAN.choose(backend, d.device, d.dtype)
    with no_autocast(d):
        return run(start, decay, A.to(d.dtype), inputs, B, None, None, None, False, not reverse)[0]


def hidden_matrix(scan: Scan, channels: list[int]) -> Tensor:
    """Return the matrices of some channels, (b, channels, l, l): rows are outputs, columns inputs, without the skip D.

    Raises VimlearnError where there is no such channel.
    """
    e, l = scan.u.shape[2], scan.u.shape[1]
    wrong = [channel for channel in channels if not 0 <= channel < e]
    if wrong:
        raise VimlearnError(f"there is no channel {wrong[0]}; expected 0 to {e - 1}")
    few = _of_channels(scan, channels)
    # (b, l, channels) for each of l queries
    rows = [hidden_row(few, query) for query in range(l)]
    return torch.stack(rows, dim=1).permute(0, 3, 1, 2)


@torch.no_grad()
def mean_hidden_matrix(scan: Scan, of_query: Tensor | None = None, of_key: Tensor | None = None) -> Tensor:
    """Return the mean over the channels of M[t, j] of_query[t] of_key[j], (b, l, l), without the skip D.

    The factors are (b, l, e), or None for 1. With the gradient of y and with u they give gradient times matrix.
    """
    turn = (lambda x: x.flip(1)) if scan.reverse else (lambda x: x)
    d, B, C = map(turn, _prepared(scan))
    b, l, e = d.shape
    weight = d if of_key is None else d * turn(of_key).to(d.dtype)
    gain = torch.ones_like(d) if of_query is None else turn(of_query).to(d.dtype)
    # The query itself, without any decay.
    mean = torch.diag_embed((gain * weight).sum(-1) * (B * C).sum(-1))
    for some in torch.arange(e, device=d.device).split(max(1, LARGEST // (b * l * B.shape[2]))):
        # (b, l, e, 1) (e, n) -> (b, l, e n)
        decay = torch.exp(d[..., some, None] * scan.A[some].to(d.dtype)).flatten(2)
        after = (gain[..., some, None] * C[:, :, None]).flatten(2).mul_(decay)
        before = (weight[..., some, None] * B[:, :, None]).flatten(2)
        _add_halves(mean, after, before, decay)
    mean /= e
    return mean.flip(1, 2) if scan.reverse else mean


def _add_halves(mean: Tensor, after: Tensor, before: Tensor, decay: Tensor) -> Tensor:
    """Add to `mean` (b, l, l) what goes from every token into the later ones; return the decay over all, (b, 1, e n).

    after, before, decay: (b, l, e n). Of each token: what it reads, with its own decay; what it writes; its decay. On
    return, `after` has the decay from the first token on, and `before` that up to the last.
    """
    l = decay.shape[1]
    if l == 1:
        return decay
    half = l // 2
    parts = [(mean[:, part, part], after[:, part], before[:, part], decay[:, part])
             for part in (slice(None, half), slice(half, None))]
    first, second = (_add_halves(*part) for part in parts)
    # (b, t, e n) @ (b, e n, j)
    mean[:, half:, :half].baddbmm_(after[:, half:], before[:, :half].transpose(1, 2))
    after[:, half:] *= first
    before[:, :half] *= second
    # Without what no sum can show: numbers at the end of the range are slow.
    return F.threshold(first * second, torch.finfo(decay.dtype).eps ** 2, 0)


def _prepared(scan: Scan) -> tuple[Tensor, Tensor, Tensor]:
    """Return step, B and C in the dtype of the state."""
    scan = scan.projected()
    return prepare(scan.u, scan.delta, scan.B, scan.C, scan.delta_bias, True)[1:]


def _of_tokens(scan: Scan, first: int, last: int) -> Scan:
    return scan._replace(**{name: getattr(scan, name)[:, first:last] for name in ("u", "delta", "B", "C")})


def _of_channels(scan: Scan, channels: list[int]) -> Scan:
    scan, pick = scan.projected(), torch.tensor(channels, device=scan.u.device)
    return scan._replace(u=scan.u[..., pick], delta=scan.delta[..., pick], A=scan.A[pick],
                         D=None if scan.D is None else scan.D[pick],
                         delta_bias=None if scan.delta_bias is None else scan.delta_bias[pick])
