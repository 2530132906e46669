"""The selective scan: a linear state-space model whose step, input and output maps depend on the token.

With d[t] = softplus(delta[t] + delta_bias) and the state s (e, n) at 0 before the first token,

    s[t] = exp(d[t] A) * s[t-1] + d[t] u[t] B[t]
    y[t] = sum over n of s[t] C[t]  +  D u[t]
    out[t] = y[t] silu(z[t])                          (Vim paper, Algorithm 1; Mamba, Algorithm 2)

| letter | meaning                     | tensor                 | shape     |
|--------|-----------------------------|------------------------|-----------|
| b      | batch                       | `u`, `delta`, `z`      | (b, l, e) |
| l      | tokens                      | `B`, `C`               | (b, l, n) |
| e      | inner width                 | `A`                    | (e, n)    |
| n      | states a channel            | `D`, `delta_bias`      | (e,)      |

As in the published code and against Eq. 1 of the paper, B is discretised by the plain product d B. The D skip is in the
code and not in Algorithm 1. This file holds the definition (`loop`) and the choice of backend.
"""

__all__ = ["finish", "no_autocast", "prepare", "recurrence_loop", "selective_scan", "selective_scan_loop"]

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends import Operation, register_compiled, register_export
from .checks import check_scan, state_dtype


def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
                   z: Tensor | None = None, *, delta_bias: Tensor | None = None, delta_softplus: bool = False,
                   reverse: bool = False, return_last_state: bool = False,
                   backend: str = "auto") -> Tensor | tuple[Tensor, Tensor]:
    """Run the selective scan over the tokens of `u`.

    Arguments
        u: input, (b, l, e), float32, float64, bfloat16 or float16. `delta`, `B`, `C` and `z` share its dtype.
        delta: step before bias and softplus, in units of time, (b, l, e).
        A: state matrix (diagonal), (e, n), float32; float64 beside a float64 u. Negative: with a positive A states grow
            without limit, and backends may overflow at different tokens.
        B, C: input and output maps, (b, l, n).
        D: skip from u to the output, (e,), dtype of A, or None.
        z: gate, (b, l, e), or None.
        delta_bias: added to delta before the softplus, (e,), dtype of A, or None.
        delta_softplus: whether the step is softplus(delta + delta_bias); linear above 20 as in PyTorch.
        reverse: whether the state runs from the last token to the first. Equals flipping all inputs and the output.
        return_last_state: whether to return the state after the last token in scan order as well.
        backend: "loop" (the definition), "parallel" (PyTorch, any device), "numba" (CPU), "triton" (GPU), or "auto"
            (the fastest for device and dtype; the environment variable VIMLEARN_BACKEND can name another).

    Returns out (b, l, e) in the dtype of u; with `return_last_state` also the last state (b, e, n) in the dtype of A.
    All tensors, the last state included, carry gradients on every backend; "loop" also has second and forward-mode
    derivatives. State and sums are kept in the dtype of A.
    Raises VimlearnError where shapes, dtypes or devices do not fit, on an empty sequence, or on an unknown backend.
    Source: Vim paper, Algorithm 1; the published code adds D.
    """
    check_scan(u, delta, A, B, C, D, z, delta_bias)
    run = SCAN.choose(backend, u.device, u.dtype)
    out, last_state = run(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse)
    return (out, last_state) if return_last_state else out


def selective_scan_loop(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, reverse=False):
    """Run the scan one token after the other in plain PyTorch: the definition that every other backend is held to.

    Arguments and results as `selective_scan`; always returns (out, last state).
    """
    with no_autocast(u):
        x, step, B32, C32 = prepare(u, delta, B, C, delta_bias, delta_softplus)
        y, last_state = recurrence_loop(x, step, A, B32, C32, reverse)
        return finish(y, x, D, z, u.dtype), last_state


def recurrence_loop(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """Return y (b, l, e), without skip and gate, and the last state (b, e, n). Here delta is the finished step."""
    # (b, e, n)
    s = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])
    tokens = range(u.shape[1])
    # `unbind` and not indexing: the gradient of an index is a zero tensor of the full length, once a token.
    decay, inputs = delta.unsqueeze(-1).unbind(1), (delta * u).unsqueeze(-1).unbind(1)
    B, C, y = B.unsqueeze(-2).unbind(1), C.unsqueeze(-1).unbind(1), [None] * u.shape[1]
    for t in reversed(tokens) if reverse else tokens:
        s = torch.exp(decay[t] * A) * s + inputs[t] * B[t]
        # (b, e, n) @ (b, n, 1) -> (b, e)
        y[t] = (s @ C[t]).squeeze(-1)
    # (b, l, e)
    return torch.stack(y, dim=1), s


def no_autocast(x: Tensor) -> contextlib.AbstractContextManager:
    """Return a context in which autocast leaves the operations on the device of x alone."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return contextlib.nullcontext()
    return torch.autocast(kind, enabled=False)


def prepare(u: Tensor, delta: Tensor, B: Tensor, C: Tensor, delta_bias: Tensor | None, delta_softplus: bool):
    """Return (u, step, B, C) in the dtype of the state: float64 stays, all else becomes float32.

    The step is `softplus(delta + delta_bias)`, or without the softplus. Shapes are unchanged.
    """
    dtype = state_dtype(u.dtype)
    step = delta.to(dtype) if delta_bias is None else delta.to(dtype) + delta_bias
    return u.to(dtype), F.softplus(step) if delta_softplus else step, B.to(dtype), C.to(dtype)


def finish(y: Tensor, u: Tensor, D: Tensor | None, z: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return `(y + D u) silu(z)` in `dtype`, leaving out what is None. y, u, z are (b, l, e), D is (e,)."""
    if D is not None:
        y = y + D * u
    if z is not None:
        y = y * F.silu(z.to(y.dtype))
    return y.to(dtype)


def _load_parallel():
    from .scan_parallel import selective_scan_parallel
    return selective_scan_parallel


def _load_numba():
    from .fused_numba import selective_scan_numba
    return selective_scan_numba


def _load_triton():
    from .fused_triton import selective_scan_triton
    return selective_scan_triton


def _load_export():
    from .scan_export import selective_scan_export
    return selective_scan_export


SCAN = Operation("selective_scan")
register_compiled(SCAN, _load_numba, _load_triton)
SCAN.register("parallel", _load_parallel)
SCAN.register("loop", lambda: selective_scan_loop)
register_export(SCAN, _load_export)
