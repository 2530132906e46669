"""The selective scan as one node of a graph that other programs run: PyTorch's higher-order scan, ONNX's Scan.

`torch._higher_order_ops.scan` takes one step of the recurrence and the tokens. In an exported graph it stays one node
with the step inside, however many tokens there are, and `torch.onnx.export` turns it into an ONNX Scan. Nothing of
vimlearn is in such a graph, unlike the operators of the other backends, which only a process with vimlearn knows.

This backend is for files (`vimlearn.export`) and for nothing else: run in Python it is compiled anew for each shape and
is slower than the loop. `auto` never takes it.
"""

__all__ = ["bidirectional_scan_export", "recurrence_scan", "selective_scan_export"]

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan

from .bidirectional import sum_of_scans
from .scan import finish, no_autocast, prepare


def selective_scan_export(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, reverse=False):
    """Run the selective scan as one higher-order node. Arguments as `selective_scan`; returns (out, last state)."""
    with no_autocast(u):
        x, step, B32, C32 = prepare(u, delta, B, C, delta_bias, delta_softplus)
        y, last_state = recurrence_scan(x, step, A, B32, C32, reverse)
        return finish(y, x, D, z, u.dtype), last_state


def bidirectional_scan_export(forward, backward, z=None, delta_softplus=False, scale=1.0):
    """Run one direction after the other, a node each. Arguments as `vimlearn.bidirectional_scan`."""
    return sum_of_scans(recurrence_scan, forward, backward, z, delta_softplus, scale)


def recurrence_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """Return y (b, l, e) and the last state (b, e, n), as `vimlearn.scan.recurrence_loop` does.

    The state is (b, n, e) here. With the channels innermost every product in a step runs over long rows: measured in
    onnxruntime, that is 2.4 times faster than (b, e, n). What a step would have to reshape is given its shape before.
    """
    # (n, e)
    A = A.T.contiguous()

    def step(s, token):
        decay, x, B, C = token
        s = torch.exp(decay * A) * s + x * B
        # (b, n, e), and (b, 1, n) @ (b, n, e) -> (b, 1, e)
        return s, C @ s

    # (b, l, 1, e), (b, l, 1, e), (b, l, n, 1), (b, l, 1, n)
    tokens = delta.unsqueeze(-2), (delta * u).unsqueeze(-2), B.unsqueeze(-1), C.unsqueeze(-2)
    # Tokens first: PyTorch 2.11 returns results along another axis in another order.
    tokens = [x.movedim(1, 0) for x in tokens]
    last_state, y = scan(step, u.new_zeros(u.shape[0], *A.shape), tokens, reverse=reverse)
    return y.squeeze(-2).movedim(0, 1), last_state.transpose(1, 2)
