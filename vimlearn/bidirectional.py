"""Both directions of a Vim block in one operation: two scans over the same tokens, their sum, one gate.

    out = scale (scan(forward) + reversed scan(backward)) silu(z)        (Vim paper, Algorithm 1)

The published code runs the second direction on flipped copies, gates each direction for itself, and divides by 2. The
gate is the same for both, so it is applied once, to the sum; scale is 1/2 there. In one kernel the output of the first
direction never goes to memory, z is read once, and the step is projected from its rank r where it is used.
"""

__all__ = ["Scan", "bidirectional_scan"]

from torch import Tensor

from .backends import Operation, register_compiled, register_export
from .checks import check_input, check_scan, check_tensor, check_weight
from .errors import VimlearnError
from .kernels.layout import Scan
from .scan import finish, no_autocast, prepare, recurrence_loop


def bidirectional_scan(forward: Scan, backward: Scan, z: Tensor | None = None, *, delta_softplus: bool = False,
                       scale: float = 1.0, backend: str = "auto") -> Tensor:
    """Scan the tokens from the first to the last with `forward` and from the last to the first with `backward`.

    Arguments
        forward, backward: the tensors of each direction, `Scan(u, delta, A, B, C, D, delta_bias, delta_weight)`, shapes
            and dtypes as in `vimlearn.selective_scan`. With delta_weight (e, r), in the dtype of u, delta is (b, l, r)
            and stands for `delta @ delta_weight.T`. Which of the two is reversed is fixed by the place.
        z: gate of the sum, (b, l, e), or None.
        delta_softplus: whether the step is softplus(delta + delta_bias).
        scale: what the sum is multiplied by; the released networks take 1/2.
        backend: "loop", "parallel", "numba" (CPU), "triton" (GPU) or "auto", as in `vimlearn.selective_scan`.

    Returns (b, l, e) in the dtype of u. Every tensor carries gradients.
    Raises VimlearnError where shapes, dtypes or devices do not fit, or on an unknown backend.
    Source: Vim paper, Algorithm 1 and section 3.3; the published code adds D and the factor.
    """
    forward, backward = Scan(*forward)._replace(reverse=False), Scan(*backward)._replace(reverse=True)
    for name, scan in (("forward", forward), ("backward", backward)):
        _check(name, scan, z, forward)
    run = BIDIRECTIONAL.choose(backend, forward.u.device, forward.u.dtype)
    return run(forward, backward, z, delta_softplus, scale)


def bidirectional_scan_loop(forward, backward, z=None, delta_softplus=False, scale=1.0):
    """Run one direction after the other, token by token: the definition. Arguments as `bidirectional_scan`."""
    return sum_of_scans(recurrence_loop, forward, backward, z, delta_softplus, scale)


def sum_of_scans(recurrence, forward: Scan, backward: Scan, z: Tensor | None, delta_softplus: bool,
                 scale: float) -> Tensor:
    """Return the gated sum, where `recurrence(u, step, A, B, C, reverse)` returns y (b, l, e) and the last state."""
    dtype = forward.u.dtype
    # Outside the block below: under autocast the projection is a product like any other.
    scans = [scan.projected() for scan in (forward, backward)]
    with no_autocast(forward.u):
        total = 0
        for scan in scans:
            u, step, B, C = prepare(scan.u, scan.delta, scan.B, scan.C, scan.delta_bias, delta_softplus)
            y, _ = recurrence(u, step, scan.A, B, C, scan.reverse)
            total = total + finish(y, u, scan.D, None, y.dtype)
        return finish(total * scale, total, None, z, dtype)


def _check(name: str, scan: Scan, z: Tensor | None, first: Scan) -> None:
    """Raise VimlearnError, with the name of the direction, unless its tensors fit together and those of `first`."""
    try:
        check_input("u", scan.u)
        delta = scan.delta if scan.delta_weight is None else _check_projection(scan)
        check_scan(scan.u, delta, scan.A, scan.B, scan.C, scan.D, z, scan.delta_bias)
        check_tensor("u", scan.u, tuple(zip("ble", first.u.shape, strict=True)), first.u, first.u.dtype)
        check_tensor("A", scan.A, tuple(zip("en", first.A.shape, strict=True)), first.A, first.A.dtype)
        rank, expected = ([None if s.delta_weight is None else s.delta_weight.shape[1]] for s in (scan, first))
        if rank != expected:
            raise VimlearnError(f"delta_weight has rank {rank[0]}; expected that of the forward direction, "
                                f"{expected[0]}")
    except VimlearnError as error:
        raise VimlearnError(f"{name} direction: {error}") from None


def _check_projection(scan: Scan) -> Tensor:
    """Check delta (b, l, r) and delta_weight (e, r), and return a tensor of the shape that their product has."""
    u, weight = scan.u, scan.delta_weight
    check_weight("delta_weight", weight, u, ("e", "r"))
    (b, l, e), r = u.shape, weight.shape[1]
    check_tensor("delta_weight", weight, (("e", e), ("r", r)), u, u.dtype)
    check_tensor("delta", scan.delta, (("b", b), ("l", l), ("r", r)), u, u.dtype)
    return u


def _load_parallel():
    from .scan_parallel import bidirectional_scan_parallel
    return bidirectional_scan_parallel


def _load_numba():
    from .fused_numba import bidirectional_scan_numba
    return bidirectional_scan_numba


def _load_triton():
    from .fused_triton import bidirectional_scan_triton
    return bidirectional_scan_triton


def _load_export():
    from .scan_export import bidirectional_scan_export
    return bidirectional_scan_export


BIDIRECTIONAL = Operation("bidirectional_scan")
register_compiled(BIDIRECTIONAL, _load_numba, _load_triton)
BIDIRECTIONAL.register("parallel", _load_parallel)
BIDIRECTIONAL.register("loop", lambda: bidirectional_scan_loop)
register_export(BIDIRECTIONAL, _load_export)
