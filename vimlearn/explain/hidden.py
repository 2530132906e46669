"""The matrix that a selective scan hides: how much of token j goes into the output of token t.

Unrolled, the recurrence is a sum over the tokens before. In channel c, for j <= t in scan order,

    y[t] = sum over j of M[t, j] u[j] + D u[t],     M[t, j] = d[j] sum over n of C[t, n] exp(A[n] (S[t] - S[j])) B[j, n]

where d is the step and S its running sum. So every channel has a lower triangular matrix (upper in the backward
direction), and Vim has e of them a layer and direction, where attention has one for each head.
Source: Ali, Zimerman and Wolf, "The Hidden Attention of Mamba Models" (2024), equations 9 to 11.

Nothing of size (l, l, e, n) is built. One row needs (l, e). The mean over the channels is a matrix product over (e, n)
for each block of queries, because the exponential falls apart into two factors around the first token of the block,
both at most 1.
"""

__all__ = ["hidden_matrix", "hidden_row", "mean_hidden_matrix", "steps"]

import torch
from torch import Tensor

from ..errors import VimlearnError
from ..kernels.layout import Scan
from ..scan import prepare

# Queries that the mean takes at a time, and numbers of a factor that it may hold at a time.
BLOCK = 32
LARGEST = 2**25


def steps(scan: Scan) -> Tensor:
    """Return the step d of every token and channel, (b, l, e), float32 or float64: softplus(delta + bias)."""
    scan = scan.projected()
    return prepare(scan.u, scan.delta, scan.B, scan.C, scan.delta_bias, True)[1]


def hidden_row(scan: Scan, query: int) -> Tensor:
    """Return the row of one output token: M[query, j] for all tokens j and channels, (b, l, e), without the skip D.

    `query` counts tokens from 0 as they lie in the sequence, in either direction. Raises VimlearnError where there is
    no such token.
    """
    d, B, C, l = *_ordered(scan), scan.u.shape[1]
    if not 0 <= query < l:
        raise VimlearnError(f"there is no token {query}; expected 0 to {l - 1}")
    t = l - 1 - query if scan.reverse else query
    # What lies behind the query in scan order goes nowhere into it.
    d, B = d[:, :t + 1], B[:, :t + 1]
    elapsed = _since(d)
    row = torch.zeros_like(d)
    for k in range(scan.A.shape[1]):
        # (b, t + 1, e), times (b, t + 1, 1)
        row += torch.exp(elapsed * scan.A[:, k]) * (B[:, :, k] * C[:, t, k, None])[..., None]
    whole = d.new_zeros(scan.u.shape)
    whole[:, :t + 1] = row * d
    return whole.flip(1) if scan.reverse else whole


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


def mean_hidden_matrix(scan: Scan, of_query: Tensor | None = None, of_key: Tensor | None = None) -> Tensor:
    """Return the mean over the channels of M[t, j] of_query[t] of_key[j], (b, l, l), without the skip D.

    The factors are (b, l, e), or None for 1. With the gradient of y and with u they give gradient times matrix.
    """
    d, B, C = _ordered(scan)
    turn = (lambda x: x.flip(1)) if scan.reverse else (lambda x: x)
    b, l, e = d.shape
    n, total = scan.A.shape[1], d.double().cumsum(1)
    weight = d if of_key is None else d * turn(of_key).to(d.dtype)
    gain = None if of_query is None else turn(of_query).to(d.dtype)
    mean = d.new_zeros(b, l, l)
    for some in torch.arange(e, device=d.device).split(max(1, LARGEST // (b * l * n))):
        A = scan.A[some].to(d.dtype)
        for first in range(0, l, BLOCK):
            last = min(first + BLOCK, l)
            start = total[:, first:first + 1, some]
            mean[:, first:last, :first] += _earlier(total, start, weight, gain, A, B, C, some, first, last)
            mean[:, first:last, first:last] += _within(total, weight, gain, A, B, C, some, first, last)
    mean /= e
    return mean.flip(1, 2) if scan.reverse else mean


def _earlier(total, start, weight, gain, A, B, C, some, first, last) -> Tensor:
    """Return the sums over `some` channels for the queries first to last and the keys before them."""
    dtype = weight.dtype
    # (b, t, e, 1) (e, n) -> (b, t, e, n); the exponents are at most 0 on either side of `start`.
    after = torch.exp((total[:, first:last, some] - start).to(dtype)[..., None] * A) * C[:, first:last, None]
    if gain is not None:
        after = after * gain[:, first:last, some, None]
    before = torch.exp((start - total[:, :first, some]).to(dtype)[..., None] * A) * B[:, :first, None]
    before = before * weight[:, :first, some, None]
    # (b, t, e n) @ (b, e n, j)
    return after.flatten(2) @ before.flatten(2).transpose(1, 2)


def _within(total, weight, gain, A, B, C, some, first, last) -> Tensor:
    """Return the same for the keys of the block itself, up to the query."""
    total, weight = total[:, first:last, some], weight[:, first:last, some]
    # (b, t, j, e)
    elapsed = (total[:, :, None] - total[:, None]).to(weight.dtype).clamp(min=0)
    sums = torch.zeros_like(elapsed)
    for k in range(A.shape[1]):
        sums += torch.exp(elapsed * A[:, k]) * (C[:, first:last, None, k] * B[:, None, first:last, k])[..., None]
    sums = sums * weight[:, None]
    if gain is not None:
        sums = sums * gain[:, first:last, None, some]
    return sums.sum(-1).tril()


def _ordered(scan: Scan) -> tuple[Tensor, Tensor, Tensor]:
    """Return step, B and C in the order of the scan, in the dtype of the state."""
    scan = scan.projected()
    _, d, B, C = prepare(scan.u, scan.delta, scan.B, scan.C, scan.delta_bias, True)
    return tuple(x.flip(1) for x in (d, B, C)) if scan.reverse else (d, B, C)


def _since(d: Tensor) -> Tensor:
    """Return the sum of the steps behind each token up to the last, (b, l, e), without what rounding adds up to."""
    behind = d.double().flip(1).cumsum(1).flip(1)
    return (behind - d.double()).to(d.dtype)


def _of_channels(scan: Scan, channels: list[int]) -> Scan:
    scan, pick = scan.projected(), torch.tensor(channels, device=scan.u.device)
    return scan._replace(u=scan.u[..., pick], delta=scan.delta[..., pick], A=scan.A[pick],
                         D=None if scan.D is None else scan.D[pick],
                         delta_bias=None if scan.delta_bias is None else scan.delta_bias[pick])
