"""The selective scan as an associative scan: logarithmic depth in a block, blocks in sequence, its own backward pass.

One step of the recurrence s -> a s + x is the pair (a, x). Doing (a1, x1) and then (a2, x2) is again such a pair,

    (a1, x1) then (a2, x2) = (a2 a1, a2 x1 + x2),

and this "then" is associative, so the steps may be combined in any grouping. `associative_scan_` combines neighbours,
solves the half as long problem, and fills in the rest: about 2 l combinations in at most 2 log2(l) passes (Brent and
Kung 1982; Blelloch 1990; Mamba, section 3.3.2). The places that a pass writes and reads never meet, so it works in
place, on views. A block of tokens is solved at a time, so that memory holds the (e, n) states of one block and
not of the whole sequence; only the state at the start of each block is kept for the backward pass, which recomputes
the rest. The gradient of a scan is a scan in the other direction.
"""

__all__ = ["associative_scan_", "bidirectional_scan_parallel", "selective_scan_parallel"]

import torch
from torch import Tensor

from .bidirectional import sum_of_scans
from .operators import refuse_forward_mode
from .scan import finish, no_autocast, prepare

# Tokens solved at once. Measured on a CPU: more leaves the caches, less pays for calls.
BLOCK_TOKENS = 64


def associative_scan_(a: Tensor, x: Tensor, reverse: bool = False) -> Tensor:
    """Replace x by all states of `s[t] = a[t] s[t-1] + x[t]`, in place. `a` is overwritten.

    Arguments: a, x (b, l, ...); reverse: whether `s[t] = a[t] s[t+1] + x[t]` is meant. Returns x.
    """
    length = x.shape[1]
    if length == 1:
        return x
    odd = length % 2
    # For l = 7: second 1 3 5, first 0 2 4; then rest 2 4 6, known 1 3 5. In reverse all is counted from the end.
    if reverse:
        second, first = slice(odd, None, 2), slice(odd + 1, None, 2)
        rest, known = slice(1 - odd, length - 1, 2), slice(2 - odd, None, 2)
    else:
        second, first = slice(1, None, 2), slice(0, length - 1, 2)
        rest, known = slice(2, None, 2), slice(1, length - 1, 2)
    x[:, second].addcmul_(a[:, second], x[:, first])
    a[:, second] *= a[:, first]
    associative_scan_(a[:, second], x[:, second], reverse)
    x[:, rest].addcmul_(a[:, rest], x[:, known])
    return x


def selective_scan_parallel(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, reverse=False):
    """Run the selective scan with `associative_scan_`. Arguments as `selective_scan`; returns (out, last state).

    It has first derivatives in reverse mode. For forward-mode or second derivatives take the loop.
    """
    refuse_forward_mode("parallel", (u, delta, A, B, C))
    x, step, B32, C32 = prepare(u, delta, B, C, delta_bias, delta_softplus)
    y, last_state, _ = scan_parallel(x, step, A, B32, C32, reverse)
    return finish(y, x, D, z, u.dtype), last_state


def bidirectional_scan_parallel(forward, backward, z=None, delta_softplus=False, scale=1.0):
    """Run one direction after the other. Arguments as `vimlearn.bidirectional_scan`."""
    refuse_forward_mode("parallel", (*forward[:-1], *backward[:-1]))
    return sum_of_scans(lambda *tensors: scan_parallel(*tensors)[:2], forward, backward, z, delta_softplus, scale)


@torch.library.custom_op("vimlearn::scan_parallel", mutates_args=())
def scan_parallel(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
                  reverse: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return y (b, l, e), the last state (b, e, n) and the states before the blocks (blocks and spares, b, e, n).

    Arguments: u, delta (b, l, e), A (e, n), B, C (b, l, n), all of one dtype. No bias, softplus, skip or gate.
    """
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    s = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])
    blocks = _blocks(u.shape[1], reverse)
    starts = s.new_zeros(_start_count(u.shape[1]), *s.shape)
    # Autocast reaches into operators written in Python, and would turn the products into bfloat16.
    with no_autocast(u):
        for k, block in enumerate(blocks):
            starts[k] = s
            states, _ = _states(u[:, block], delta[:, block], A, B[:, block], s, reverse)
            s = states[:, 0 if reverse else -1].clone()
            y[:, block] = _sum_over_states(states.mul_(C[:, block].unsqueeze(-2)))
    return y, s, starts


@scan_parallel.register_fake
def _(u, delta, A, B, C, reverse):
    state = u.new_empty(u.shape[0], u.shape[2], A.shape[1])
    starts = state.new_empty(_start_count(u.shape[1]), *state.shape)
    return torch.empty_like(u, memory_format=torch.contiguous_format), state, starts


@torch.library.custom_op("vimlearn::scan_parallel_backward", mutates_args=())
def scan_parallel_backward(grad_y: Tensor, grad_last: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
                           starts: Tensor, reverse: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of u, delta, A, B, C given those of y (b, l, e) and of the last state (b, e, n).

    With g[t] the gradient of s[t], g[t] = a[t+1] g[t+1] + C[t] grad_y[t]: the same scan in the other direction.
    """
    grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (u, delta, B, C)]
    grad_A = torch.zeros_like(A)
    # What flows into the last state of a block from all that comes after it, (b, e, n).
    carry = grad_last
    with no_autocast(u):
        for k, block in reversed(list(enumerate(_blocks(u.shape[1], reverse)))):
            part = [x[:, block] for x in (u, delta, B, C)]
            *block_grads, block_grad_A, carry = _block_backward(grad_y[:, block], carry, A, starts[k], reverse, *part)
            for grad, value in zip(grads, block_grads, strict=True):
                grad[:, block] = value
            grad_A += block_grad_A
    grad_u, grad_delta, grad_B, grad_C = grads
    return grad_u, grad_delta, grad_A, grad_B, grad_C


@scan_parallel_backward.register_fake
def _(grad_y, grad_last, u, delta, A, B, C, starts, reverse):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (u, delta, A, B, C))


def _block_backward(grad_y, carry, A, start, reverse, u, delta, B, C):
    """Return the gradients of u, delta, B, C in one block, its share of A's, and what flows to the block before."""
    states, decay = _states(u, delta, A, B, start, reverse)
    # g: (b, block, e, n)
    g = grad_y.unsqueeze(-1) * C.unsqueeze(-2)
    last, previous = (0, -1) if reverse else (-1, 0)
    g[:, last] += carry
    # a[t+1] stands beside g[t]; the last one has no successor, and its factor is never used.
    associative_scan_(decay.roll(1 if reverse else -1, dims=1), g, reverse=not reverse)
    grad_C = torch.einsum("ble,blen->bln", grad_y, states)
    # Gradient of d[t] u[t] B[t]
    grad_input = _sum_over_states(g * B.unsqueeze(-2))
    grad_B = torch.einsum("ble,blen->bln", delta * u, g)
    # Gradient of d[t] A, through a[t] s[t-1]
    start = start.unsqueeze(1)
    before = torch.cat([states[:, 1:], start] if reverse else [start, states[:, :-1]], dim=1)
    carry = decay[:, previous] * g[:, previous]
    grad_exponent = decay.mul_(before).mul_(g)
    grad_A = (grad_exponent * delta.unsqueeze(-1)).sum((0, 1))
    grad_delta = _sum_over_states(grad_exponent.mul_(A)) + grad_input * u
    return grad_input * delta, grad_delta, grad_B, grad_C, grad_A, carry


def _states(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, start: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """Return all states of a block and the decay exp(delta A), both (b, block, e, n), given the state before it."""
    decay = (delta.unsqueeze(-1) * A).exp_()
    states = (delta * u).unsqueeze(-1) * B.unsqueeze(-2)
    first = -1 if reverse else 0
    states[:, first].addcmul_(decay[:, first], start)
    return associative_scan_(decay.clone(), states, reverse), decay


def _sum_over_states(x: Tensor) -> Tensor:
    """Sum (b, l, e, n) over n. A product with ones is several times faster on a CPU than a sum over so short a size."""
    return (x.flatten(0, 2) @ x.new_ones(x.shape[3])).view(x.shape[:3])


def _start_count(length: int) -> int:
    """How many block starts are kept: the blocks and a spare or two, so that no length gives the special size 1."""
    return length // BLOCK_TOKENS + 2


def _blocks(length: int, reverse: bool) -> list[slice]:
    """Return the blocks of tokens in scan order."""
    blocks = [slice(i, min(i + BLOCK_TOKENS, length)) for i in range(0, length, BLOCK_TOKENS)]
    return blocks[::-1] if reverse else blocks


def _setup_context(ctx, inputs, output):
    u, delta, A, B, C, ctx.reverse = inputs
    _, _, starts = output
    ctx.mark_non_differentiable(starts)
    ctx.save_for_backward(u, delta, A, B, C, starts)


def _backward(ctx, grad_y, grad_last, _):
    u, delta, A, B, C, starts = ctx.saved_tensors
    if grad_last is None:
        grad_last = torch.zeros_like(starts[0])
    if grad_y is None:
        grad_y = torch.zeros_like(u)
    return *scan_parallel_backward(grad_y, grad_last, u, delta, A, B, C, starts, ctx.reverse), None


scan_parallel.register_autograd(_backward, setup_context=_setup_context)
