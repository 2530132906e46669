"""Linear state-space models: from the differential equation to a recurrence and to a convolution.

    s'(t) = A s(t) + B x(t),    y(t) = C s(t) + D x(t)                    (Vim paper, section 3.1)

| symbol here  | paper            | shape                                                   |
|--------------|------------------|---------------------------------------------------------|
| `A`          | A                | (..., n) diagonal, or (n, n) with `dense=True`           |
| `B`, `C`     | B, C             | (..., n)                                                |
| `delta`      | Delta, the step  | number, or a tensor that broadcasts over `A[..., 0]`     |
| `A_bar`      | A-bar            | as `A`                                                  |
| `B_bar`      | B-bar            | as `B`                                                  |
| `x`, `y`     | x, y             | (..., l)                                                |

Nothing here depends on the input: that is what `vimlearn.scan` adds. Everything is plain PyTorch and differentiable.
"""

__all__ = ["DISCRETIZATIONS", "causal_convolution", "convolution_kernel", "discretize", "recurrence"]

import torch
from torch import Tensor

from .errors import VimlearnError, nearest

DISCRETIZATIONS = ("euler", "bilinear", "zoh", "vim")


def discretize(A: Tensor, B: Tensor, delta: float | Tensor, method: str = "zoh", *, dense: bool = False):
    """Turn the continuous pair (A, B) into the discrete pair (A_bar, B_bar) of `s[t] = A_bar s[t-1] + B_bar x[t]`.

    Arguments
        A: (..., n), the diagonal of the state matrix; with `dense=True` the whole matrix, (n, n).
        B: (..., n).
        delta: the step in units of time, at least 0: a number, or for diagonal A a tensor that broadcasts over
            A[..., 0].
        method: `"euler"`     A_bar = I + delta A,  B_bar = delta B
                `"bilinear"`  A_bar = (I - delta/2 A)^-1 (I + delta/2 A),  B_bar = (I - delta/2 A)^-1 delta B
                `"zoh"`       A_bar = exp(delta A),  B_bar = A^-1 (A_bar - I) B  (Vim paper, Eq. 1; exact for an input
                              that is constant over each step; A may be singular)
                `"vim"`       A_bar = exp(delta A),  B_bar = delta B  (what Mamba and Vim compute; differs from Eq. 1)

    Returns `(A_bar, B_bar)` in the shapes of A and B, after broadcasting with delta.
    Raises VimlearnError on an unknown method, or where the shapes do not fit.
    """
    if method not in DISCRETIZATIONS:
        raise VimlearnError(f"unknown discretisation {method!r}{nearest(str(method), DISCRETIZATIONS)}; "
                            f"expected one of {', '.join(DISCRETIZATIONS)}")
    if dense:
        return _discretize_dense(A, B, delta, method)
    if A.dim() == 0 or B.dim() == 0 or A.shape[-1] != B.shape[-1]:
        raise VimlearnError(f"A has shape {tuple(A.shape)} and B {tuple(B.shape)}; expected the same last size n "
                            "(pass dense=True if A is an (n, n) matrix)")
    if isinstance(delta, Tensor):
        # (..., 1), beside the n states
        delta = delta.unsqueeze(-1)
    return _discretize_diagonal(A, B, delta, method)


def _discretize_diagonal(A: Tensor, B: Tensor, delta: float | Tensor, method: str):
    z = delta * A
    if method == "euler":
        return 1 + z, delta * B
    if method == "bilinear":
        return (1 + z / 2) / (1 - z / 2), delta * B / (1 - z / 2)
    if method == "vim":
        return z.exp(), delta * B
    return z.exp(), delta * B * _expm1_over(z)


def _expm1_over(z: Tensor) -> Tensor:
    """Return (exp(z) - 1) / z, by its series near 0: there the quotient is 0 / 0, and its gradient cancels."""
    near = z.abs() < 0.05
    small = torch.where(near, z, 0)
    series = torch.ones_like(z)
    for k in range(8, 1, -1):
        # 1 + z/2 (1 + z/3 (1 + ... z/8))
        series = 1 + small / k * series
    # The inner `where` keeps 0 / 0 out of the gradient.
    away = torch.where(near, 1, z)
    return torch.where(near, series, torch.expm1(away) / away)


def _discretize_dense(A: Tensor, B: Tensor, delta: float | Tensor, method: str):
    n = A.shape[-1] if A.dim() else 0
    if A.shape != (n, n) or B.shape != (n,):
        raise VimlearnError(f"A has shape {tuple(A.shape)} and B {tuple(B.shape)}; expected (n, n) and (n,)")
    identity = torch.eye(n, dtype=A.dtype, device=A.device)
    z = delta * A
    if method == "euler":
        return identity + z, delta * B
    if method == "bilinear":
        solved = torch.linalg.solve(identity - z / 2, torch.cat([identity + z / 2, (delta * B)[:, None]], dim=1))
        return solved[:, :n], solved[:, n]
    if method == "vim":
        return torch.matrix_exp(z), delta * B
    # exp of [[A, B], [0, 0]] holds A_bar and B_bar side by side, also where A has no inverse.
    block = torch.cat([torch.cat([z, (delta * B)[:, None]], dim=1), z.new_zeros(1, n + 1)])
    both = torch.matrix_exp(block)
    return both[:n, :n], both[:n, n]


def recurrence(A_bar: Tensor, B_bar: Tensor, C: Tensor, x: Tensor, D: float | Tensor | None = None) -> Tensor:
    """Run `s[t] = A_bar s[t-1] + B_bar x[t]`, `y[t] = C s[t] + D x[t]` from s = 0, one step after the other.

    Arguments: A_bar (n,) diagonal or (n, n) dense; B_bar, C (n,); x (..., l); D a number or None.
    Returns y, (..., l). Vim paper, section 3.1. Raises VimlearnError where the shapes do not fit.
    """
    _check_system(A_bar, B_bar, C)
    s = x.new_zeros(*x.shape[:-1], B_bar.shape[0])
    y = []
    for x_t in x.unbind(-1):
        # (..., n)
        s = (s @ A_bar.T if A_bar.dim() == 2 else s * A_bar) + x_t[..., None] * B_bar
        # (...)
        y.append(s @ C)
    y = torch.stack(y, dim=-1) if y else torch.zeros_like(x)
    return y if D is None else y + D * x


def convolution_kernel(A_bar: Tensor, B_bar: Tensor, C: Tensor, length: int) -> Tensor:
    """Return the response to a single 1, `K[j] = C A_bar^j B_bar` for j = 0 ... length-1, shape (length,).

    Arguments: A_bar (n,) diagonal or (n, n) dense; B_bar, C (n,). Vim paper, section 3.1. It exists only because
    nothing depends on t: the selective scan has no such kernel.
    """
    _check_system(A_bar, B_bar, C)
    if A_bar.dim() == 1:
        # (l, n)
        powers = A_bar[None] ** torch.arange(length, device=A_bar.device)[:, None]
        return powers @ (B_bar * C)
    kernel, s = [], B_bar
    for _ in range(length):
        kernel.append(s @ C)
        s = A_bar @ s
    return torch.stack(kernel) if kernel else B_bar.new_zeros(0)


def causal_convolution(x: Tensor, kernel: Tensor) -> Tensor:
    """Return `y[t] = sum_j kernel[j] x[t-j]`, computed with the fast Fourier transform in O(l log l).

    Arguments: x (..., l); kernel (l,). Returns (..., l). Vim paper, section 3.1.
    """
    length = x.shape[-1]
    if kernel.shape != (length,):
        raise VimlearnError(f"the kernel has shape {tuple(kernel.shape)}; expected ({length},), one value a step of x")
    # Padding to twice the length keeps the circular convolution from wrapping around.
    product = torch.fft.rfft(x, n=2 * length) * torch.fft.rfft(kernel, n=2 * length)
    return torch.fft.irfft(product, n=2 * length)[..., :length]


def _check_system(A_bar: Tensor, B_bar: Tensor, C: Tensor) -> None:
    n = B_bar.shape[-1] if B_bar.dim() else 0
    if A_bar.shape not in {(n,), (n, n)} or B_bar.shape != (n,) or C.shape != (n,) or n == 0:
        shapes = ", ".join(str(tuple(x.shape)) for x in (A_bar, B_bar, C))
        raise VimlearnError(f"A_bar, B_bar, C have shapes {shapes}; expected (n,) or (n, n), then (n,) and (n,)")
