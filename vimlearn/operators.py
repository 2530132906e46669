"""PyTorch operators around compiled kernels: one node for `torch.compile` and `torch.export`, gradients of every input.

A kernel module (see `kernels/layout.py`) knows nothing of autograd. Here each of its functions becomes an operator
registered with `torch.library.custom_op`: what it returns for tensors without data, what it keeps for the backward
pass, and the backward pass itself, which is an operator too. Every compiler gets the same treatment: `scan_operators`
and its like are called once by each of `fused_numba.py` and `fused_triton.py`.

An operator cannot return None, so a gradient that does not exist is a tensor without elements until autograd sees it.

Dispatching an operator with twenty tensors takes longer than the scan of a short sequence. So where nothing could
notice the difference, in eager mode, the function of the kernel module is called directly; with gradients it is called
by a `torch.autograd.Function`, made of what the operator is made of. The backward pass asks the same question again for
itself.
"""

__all__ = ["conv_operators", "norm_operators", "refuse_forward_mode", "scan_operators", "unobserved"]

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from .errors import VimlearnError
from .kernels.layout import Conv, Scan
from .scan import no_autocast

# The fields of `Scan` that are tensors, in the order in which operators take them.
FIELDS = Scan._fields[:-1]
# What may stand where a kernel expects a tensor: no subclass, which may want to see operators.
PLAIN_TYPES = {Tensor, torch.nn.Parameter, type(None)}


def scan_operators(name: str, kernels, projects: bool):
    """Register the scan of `kernels` for one and for two directions, and return the functions for both operations.

    kernels: a module with `scan_forward`, `scan_backward`, `starts_shape`; projects: whether it takes a `delta_weight`.
    Returns (function as `selective_scan_loop`, function as `bidirectional_scan_loop`).
    """
    one, one_eager = _one_direction(name, kernels)
    two, two_eager = _two_directions(name, kernels)

    def selective_scan(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, reverse=False):
        """Run the scan as one operator. Arguments as `vimlearn.selective_scan`; returns (out, last state)."""
        tensors = (u, delta, A, B, C, D, delta_bias, None, z)
        keep = _needs_gradients(tensors)
        if _only_autograd_observes(tensors):
            if keep:
                return one_eager(*tensors, delta_softplus, reverse, True)[:2]
            scans = [Scan(u, delta, A, B, C, D, delta_bias, None, reverse)]
            with no_autocast(u):
                out, lasts, _ = kernels.scan_forward(scans, z, delta_softplus, 1.0, False)
            return out, lasts[0]
        refuse_forward_mode(name, tensors)
        return one(*tensors, delta_softplus, reverse, keep)[:2]

    def bidirectional_scan(forward, backward, z=None, delta_softplus=False, scale=1.0):
        """Run both scans and the gate as one operator. Arguments as `vimlearn.bidirectional_scan`."""
        if not projects:
            forward, backward = forward.projected(), backward.projected()
        tensors = (*forward[:-1], *backward[:-1], z)
        keep = _needs_gradients(tensors)
        if _only_autograd_observes(tensors):
            if keep:
                return two_eager(*tensors, delta_softplus, scale, True)[0]
            with no_autocast(forward.u):
                return kernels.scan_forward([forward, backward], z, delta_softplus, scale, False)[0]
        refuse_forward_mode(name, tensors)
        return two(*tensors, delta_softplus, scale, keep)[0]

    return selective_scan, bidirectional_scan


def _eager(name: str, forward, setup_context, backward):
    """Return an operator as a function of autograd alone, of the three parts that an operator is registered with.

    Its results show the name, as in grad_fn=<ScanNumbaBackward>.
    """
    def both(ctx, *inputs):
        output = forward(*inputs)
        # Not as a method of its own: PyTorch would look up the signature of `forward` in every call.
        setup_context(ctx, inputs, output)
        return output
    return type(name.title().replace("_", ""), (torch.autograd.Function,), {
        "forward": staticmethod(both), "backward": staticmethod(backward)}).apply


def _unless_observed(name: str, kernel, operator):
    """Return a function for backward passes: the kernel where nothing observes, else the operator around it.

    The forward pass cannot decide it: a backward pass may be compiled, traced or batched on its own. Whoever will
    differentiate again observes too, because the operator says that it has no second derivatives.
    """
    def refuse(ctx, *grads):
        raise VimlearnError(f"backend {name!r} has no second derivatives; use backend='loop'")
    operator.register_autograd(refuse)

    def run(*args):
        tensors = list(_tensors_in(args))
        if not torch.is_grad_enabled() and _only_autograd_observes(tensors):
            return kernel(*args)
        refuse_forward_mode(name, tensors)
        return operator(*args)
    return run


def _tensors_in(args):
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, (list, tuple)):
            yield from _tensors_in(arg)


def _one_direction(name: str, kernels):
    def forward(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None,
                delta_weight: Tensor | None, z: Tensor | None, softplus: bool, reverse: bool,
                keep: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return out, the last state, and the states that the backward pass needs (empty without `keep`)."""
        scans = [Scan(u, delta, A, B, C, D, delta_bias, delta_weight, reverse)]
        with no_autocast(u):
            out, lasts, starts = kernels.scan_forward(scans, z, softplus, 1.0, keep)
        return out, lasts[0], starts[0]

    scan = torch.library.custom_op(f"vimlearn::scan_{name}", forward, mutates_args=())

    @scan.register_fake
    def _(u, delta, A, B, C, D, delta_bias, delta_weight, z, softplus, reverse, keep):
        return _new(u), A.new_empty(u.shape[0], u.shape[2], A.shape[1]), _new_starts(kernels, u, A, keep)

    def gradients(grad_out: Tensor, grad_last: Tensor | None, starts: Tensor, u: Tensor, delta: Tensor, A: Tensor,
                  B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None, delta_weight: Tensor | None,
                  z: Tensor | None, softplus: bool, reverse: bool) -> list[Tensor]:
        """Return the gradients of the tensors from u to z."""
        scans = [Scan(u, delta, A, B, C, D, delta_bias, delta_weight, reverse)]
        with no_autocast(u):
            grads, grad_z = kernels.scan_backward(grad_out, [grad_last], scans, [starts], z, softplus, 1.0)
        return _present([*grads[0][:-1], grad_z], u)

    scan_backward = torch.library.custom_op(f"vimlearn::scan_{name}_backward", gradients, mutates_args=())

    @scan_backward.register_fake
    def _(grad_out, grad_last, starts, u, delta, A, B, C, D, delta_bias, delta_weight, z, softplus, reverse):
        return [_new(x) if x is not None else u.new_empty(0)
                for x in (u, delta, A, B, C, D, delta_bias, delta_weight, z)]

    def setup_context(ctx, inputs, output):
        *tensors, ctx.softplus, ctx.reverse, _ = inputs
        ctx.mark_non_differentiable(output[2])
        # Or zeros as large as the kept states would be made in every backward pass.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, output[2])

    run_backward = _unless_observed(name, gradients, scan_backward)

    def backward(ctx, grad_out, grad_last, _):
        *tensors, starts = ctx.saved_tensors
        grad_out = torch.zeros_like(tensors[0]) if grad_out is None else grad_out
        grads = run_backward(grad_out, grad_last, starts, *tensors, ctx.softplus, ctx.reverse)
        return *_absent_as_none(grads, tensors), None, None, None

    scan.register_autograd(backward, setup_context=setup_context)
    return scan, _eager(f"scan_{name}", forward, setup_context, backward)


def _two_directions(name: str, kernels):
    def forward(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None,
                delta_weight: Tensor | None, u_b: Tensor, delta_b: Tensor, A_b: Tensor, B_b: Tensor, C_b: Tensor,
                D_b: Tensor | None, delta_bias_b: Tensor | None, delta_weight_b: Tensor | None, z: Tensor | None,
                softplus: bool, scale: float, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return out, and the states of each direction that the backward pass needs (empty without `keep`)."""
        scans = [Scan(u, delta, A, B, C, D, delta_bias, delta_weight, False),
                 Scan(u_b, delta_b, A_b, B_b, C_b, D_b, delta_bias_b, delta_weight_b, True)]
        with no_autocast(u):
            out, _, starts = kernels.scan_forward(scans, z, softplus, scale, keep)
        return out, *starts

    scan = torch.library.custom_op(f"vimlearn::bidirectional_scan_{name}", forward, mutates_args=())

    @scan.register_fake
    def _(*args):
        u, A, keep = args[0], args[2], args[-1]
        return _new(u), _new_starts(kernels, u, A, keep), _new_starts(kernels, u, A, keep)

    def gradients(grad_out: Tensor, starts: Tensor, starts_b: Tensor, u: Tensor, delta: Tensor, A: Tensor,
                  B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None, delta_weight: Tensor | None,
                  u_b: Tensor, delta_b: Tensor, A_b: Tensor, B_b: Tensor, C_b: Tensor, D_b: Tensor | None,
                  delta_bias_b: Tensor | None, delta_weight_b: Tensor | None, z: Tensor | None, softplus: bool,
                  scale: float) -> list[Tensor]:
        """Return the gradients of the tensors from u to z."""
        scans = [Scan(u, delta, A, B, C, D, delta_bias, delta_weight, False),
                 Scan(u_b, delta_b, A_b, B_b, C_b, D_b, delta_bias_b, delta_weight_b, True)]
        with no_autocast(u):
            grads, grad_z = kernels.scan_backward(grad_out, [None, None], scans, [starts, starts_b], z, softplus, scale)
        return _present([*grads[0][:-1], *grads[1][:-1], grad_z], u)

    scan_backward = torch.library.custom_op(f"vimlearn::bidirectional_scan_{name}_backward", gradients,
                                            mutates_args=())

    @scan_backward.register_fake
    def _(grad_out, starts, starts_b, *args):
        return [_new(x) if x is not None else grad_out.new_empty(0) for x in args[:-2]]

    def setup_context(ctx, inputs, output):
        *tensors, ctx.softplus, ctx.scale, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *output[1:])

    run_backward = _unless_observed(name, gradients, scan_backward)

    def backward(ctx, grad_out, *_):
        *tensors, starts, starts_b = ctx.saved_tensors
        grad_out = torch.zeros_like(tensors[0]) if grad_out is None else grad_out
        grads = run_backward(grad_out, starts, starts_b, *tensors, ctx.softplus, ctx.scale)
        return *_absent_as_none(grads, tensors), None, None, None

    scan.register_autograd(backward, setup_context=setup_context)
    return scan, _eager(f"bidirectional_scan_{name}", forward, setup_context, backward)


def conv_operators(name: str, kernels):
    """Register the causal convolution of `kernels` (`conv_forward`, `conv_backward`), in one or several directions.

    Returns a function (x, convs, silu) -> list of outputs, one for each `Conv`.
    """
    def forward(x: Tensor, weights: list[Tensor], biases: list[Tensor], reverse: list[int],
                silu: bool) -> list[Tensor]:
        """Return one output a weight; there are as many biases as weights, or none.

        reverse holds 0 and 1, because torch.jit traces no list of bools.
        """
        with no_autocast(x):
            return kernels.conv_forward(x, _convs(weights, biases, reverse), silu)

    conv = torch.library.custom_op(f"vimlearn::conv_{name}", forward, mutates_args=())

    @conv.register_fake
    def _(x, weights, biases, reverse, silu):
        return [_new(x) for _ in weights]

    def gradients(grads: list[Tensor], x: Tensor, weights: list[Tensor], biases: list[Tensor], reverse: list[int],
                  silu: bool) -> list[Tensor]:
        """Return the gradients of x, of the weights and of the biases, one after the other."""
        with no_autocast(x):
            grad_x, of_weights = kernels.conv_backward(grads, x, _convs(weights, biases, reverse), silu)
        # Small copies: a kernel may cut several tensors from one piece of memory, and an operator must not return such.
        return [grad_x, *(w.clone() for w, _ in of_weights), *(b.clone() for _, b in of_weights if b is not None)]

    conv_backward = torch.library.custom_op(f"vimlearn::conv_{name}_backward", gradients, mutates_args=())

    @conv_backward.register_fake
    def _(grads, x, weights, biases, reverse, silu):
        return [_new(t) for t in (x, *weights, *biases)]

    def setup_context(ctx, inputs, output):
        x, weights, biases, ctx.reverse, ctx.silu = inputs
        ctx.count = len(weights)
        ctx.save_for_backward(x, *weights, *biases)

    run_backward = _unless_observed(name, gradients, conv_backward)

    def backward(ctx, grads):
        x, *rest = ctx.saved_tensors
        weights, biases = rest[:ctx.count], rest[ctx.count:]
        grads = [torch.zeros_like(x) if g is None else g for g in grads]
        grad_x, *rest = run_backward(grads, x, weights, biases, ctx.reverse, ctx.silu)
        return grad_x, rest[:ctx.count], rest[ctx.count:], None, None

    conv.register_autograd(backward, setup_context=setup_context)

    # A function of autograd takes and returns no lists: (x, reverse, silu, *weights, *biases) -> outputs.
    def nested(x, reverse, silu, *rest):
        return x, rest[:len(reverse)], rest[len(reverse):], reverse, silu

    def flat_backward(ctx, *grads):
        grad_x, weights, biases, *_ = backward(ctx, grads)
        return grad_x, None, None, *weights, *biases

    eager = _eager(f"conv_{name}", lambda *flat: tuple(forward(*nested(*flat))),
                   lambda ctx, flat, output: setup_context(ctx, nested(*flat), output), flat_backward)

    def run(x: Tensor, convs: list[Conv], silu: bool) -> list[Tensor]:
        weights, biases, reverse = zip(*convs, strict=True)
        biases = [bias for bias in biases if bias is not None]
        tensors = (x, *weights, *biases)
        if _only_autograd_observes(tensors):
            if _needs_gradients(tensors):
                return list(eager(x, reverse, silu, *weights, *biases))
            return forward(x, weights, biases, reverse, silu)
        refuse_forward_mode(name, tensors)
        return conv(x, list(weights), biases, list(map(int, reverse)), silu)

    return run


def norm_operators(name: str, kernels):
    """Register residual add + RMSNorm of `kernels` (`norm_forward`, `norm_backward`).

    Returns a function as `add_rms_norm_loop`.
    """
    def forward(h: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the normalised sum, the sum, and one over its root mean square (b, l)."""
        return kernels.norm_forward(h, residual, weight, eps)

    norm = torch.library.custom_op(f"vimlearn::norm_{name}", forward, mutates_args=())

    @norm.register_fake
    def _(h, residual, weight, eps):
        wide = torch.float64 if h.dtype == torch.float64 else torch.float32
        return _new(h), h.new_empty(h.shape, dtype=wide), h.new_empty(h.shape[:2], dtype=wide)

    def gradients(grad_y: Tensor | None, grad_sum: Tensor | None, total: Tensor, weight: Tensor,
                  rstd: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of the sum, (b, l, d), and of the weight."""
        return kernels.norm_backward(grad_y, grad_sum, total, weight, rstd)

    norm_backward = torch.library.custom_op(f"vimlearn::norm_{name}_backward", gradients, mutates_args=())

    @norm_backward.register_fake
    def _(grad_y, grad_sum, total, weight, rstd):
        return _new(total), _new(weight)

    def setup_context(ctx, inputs, output):
        h, residual, weight, _ = inputs
        ctx.h_dtype, ctx.residual_dtype = h.dtype, None if residual is None else residual.dtype
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(output[1], weight, output[2])

    run_backward = _unless_observed(name, gradients, norm_backward)

    def backward(ctx, grad_y, grad_sum, _):
        total, weight, rstd = ctx.saved_tensors
        grad, grad_weight = run_backward(grad_y, grad_sum, total, weight, rstd)
        grad_residual = None if ctx.residual_dtype is None else grad.to(ctx.residual_dtype)
        return grad.to(ctx.h_dtype), grad_residual, grad_weight, None

    norm.register_autograd(backward, setup_context=setup_context)
    eager = _eager(f"norm_{name}", forward, setup_context, backward)

    def run(h, residual, weight, eps=1e-5):
        if _only_autograd_observes((h, residual, weight)):
            return (eager if _needs_gradients((h, residual, weight)) else forward)(h, residual, weight, eps)[:2]
        refuse_forward_mode(name, (h, residual, weight))
        return norm(h, residual, weight, eps)[:2]

    return run


def refuse_forward_mode(backend: str, tensors) -> None:
    """Raise VimlearnError where a tensor has a tangent: an operator without a rule for it would drop it, silently."""
    if torch.compiler.is_compiling():
        return
    if any(t is not None and torch.autograd.forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise VimlearnError(f"backend {backend!r} has no forward-mode derivatives; use backend='loop'")


def unobserved(tensors) -> bool:
    """Return whether nothing would notice if a kernel ran outside an operator."""
    return not _needs_gradients(tensors) and _only_autograd_observes(tensors)


def _only_autograd_observes(tensors) -> bool:
    """Return whether nothing but autograd would notice if a kernel ran outside an operator.

    Who would: compilation, tracing, transforms of functions, modes that see every operator (fake tensors, counters of
    operations), subclasses of tensors, and tangents. And no kernel can read tensors without memory, nor those whose
    numbers are not those in memory: negated when they are read, or zeros that were never written.
    """
    if torch.compiler.is_compiling():
        return False
    there = [x for x in tensors if x is not None]
    return (PLAIN_TYPES.issuperset(map(type, tensors)) and tensors[0].device.type in ("cpu", "cuda")
            and not torch.jit.is_tracing() and not torch._C._are_functorch_transforms_active()
            and not is_in_torch_dispatch_mode() and torch.autograd.forward_ad._current_level < 0
            and not torch.overrides._get_current_function_mode_stack() and all(map(torch._C._has_storage, there))
            and not any(map(Tensor.is_neg, there)) and not any(map(Tensor._is_zerotensor, there)))


def _needs_gradients(tensors) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _convs(weights, biases, reverse) -> list[Conv]:
    return [Conv(*parts) for parts in zip(weights, biases or [None] * len(weights), reverse, strict=True)]


def _new(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _new_starts(kernels, u: Tensor, A: Tensor, keep: bool) -> Tensor:
    return A.new_empty(kernels.starts_shape(u.shape, A.shape[1]) if keep else (0,))


def _present(grads, u: Tensor) -> list[Tensor]:
    return [u.new_empty(0) if g is None else g for g in grads]


def _absent_as_none(grads, tensors) -> list[Tensor | None]:
    return [None if x is None else g for g, x in zip(grads, tensors, strict=True)]
