"""The selective scan on the CPU, compiled by Numba: what `kernels.layout` describes, for tensors on the CPU."""

__all__ = ["scan_backward", "scan_forward", "starts_shape"]

import functools

import numpy as np
import torch
from torch import Tensor

from .layout import Scan
from .numba_rows import LANES, by_rows
from .numba_runtime import compile_kernel, pack, run, scratch, scratch_slots
from .numba_scan_backward import backward_scratch, scan_backward_task
from .numba_scan_forward import forward_scratch, scan_forward_task
from .numba_scan_parts import CHUNK, SCAN_ARGS

# dtype of a tensor -> type of its numbers in memory, type of states and sums
TYPES = {torch.float32: (np.float32, np.float32), torch.float64: (np.float64, np.float64),
         torch.bfloat16: (np.uint16, np.float32), torch.float16: (np.int16, np.float32)}
# How the fields of the two directions begin in a record.
DIRECTIONS = ("first.", "second.")


def starts_shape(shape: tuple[int, int, int], n: int) -> tuple[int, int, int, int]:
    """Return the shape of the states at the chunk starts, for u of the given shape: (chunks and spares, b, n, e)."""
    b, l, e = shape
    return l // CHUNK + 2, b, n, e


def scan_forward(scans: list[Scan], z: Tensor | None, softplus: bool, scale: float,
                 keep: bool) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return scale * (sum of the scans) * silu(z), (b, l, e), the last states (b, e, n) and the kept states.

    One scan, or two over the same tokens; of two, there are no last states. With `keep`, the states at the chunk starts
    are kept for `scan_backward`, a tensor of `starts_shape` a scan; without it these tensors are empty.
    """
    (b, l, e), n = scans[0].u.shape, scans[0].A.shape[1]
    out = torch.empty_like(scans[0].u, memory_format=torch.contiguous_format)
    lasts = [scans[0].A.new_empty(b, e, n)] if len(scans) == 1 else []
    starts = [scan.A.new_empty(starts_shape((b, l, e), n) if keep else 0) for scan in scans]
    call = _Call(scans, z, softplus, scale)
    call.put("out", out)
    for last in lasts:
        call.put("first.last", last)
    for direction, kept in zip(DIRECTIONS if keep else (), starts, strict=False):
        # The spares, which no task writes.
        kept[-(-l // CHUNK):] = 0
        call.put(direction + "starts", kept)
    call.run(scan_forward_task, forward_scratch)
    return out, lasts, starts


def scan_backward(grad_out: Tensor, grad_lasts: list[Tensor | None], scans: list[Scan], starts: list[Tensor],
                  z: Tensor | None, softplus: bool, scale: float) -> tuple[list[Scan], Tensor | None]:
    """Return the gradients of each scan's tensors, as a `Scan` of gradients, and that of z.

    grad_out (b, l, e) and grad_lasts (b, e, n; None is 0) belong to the results of `scan_forward`, starts is what it
    kept. Gradients have the dtype of their tensors, and are None where there is no tensor.
    """
    call = _Call(scans, z, softplus, scale)
    call.put("grad_out", grad_out, strided=True)
    grad_z = None if z is None else torch.empty_like(z, memory_format=torch.contiguous_format)
    call.put("grad_z", grad_z)
    shares = []
    for direction, scan, kept, grad_last in zip(DIRECTIONS, scans, starts, grad_lasts, strict=False):
        call.put(direction + "starts", kept)
        call.put(direction + "grad_last", grad_last)
        shares.append(_shares(scan))
        for name, tensor in shares[-1].items():
            call.put(direction + name, tensor)
    call.run(scan_backward_task, backward_scratch)
    return [_sum_shares(scan, share) for scan, share in zip(scans, shares, strict=True)], grad_z


def _shares(scan: Scan) -> dict[str, Tensor]:
    """Return memory for what the tasks write: the gradients of u and delta, and shares of the others.

    B and C get a share from each block of channels, A, D and the bias from each sequence.
    """
    (b, l, e), n = scan.u.shape, scan.A.shape[1]
    whole = {name: scan.u.new_empty(b, l, e) for name in ("grad_u", "grad_delta")}
    by_block = {name: scan.A.new_empty(_blocks(e), b, l, n) for name in ("grad_B", "grad_C")}
    by_sequence = {name: scan.A.new_empty(b, e) for name in ("grad_D", "grad_bias")}
    return whole | by_block | by_sequence | {"grad_A": scan.A.new_empty(b, e, n)}


def _sum_shares(scan: Scan, share: dict[str, Tensor]) -> Scan:
    delta, weight = share["grad_delta"], scan.delta_weight
    if weight is not None:
        # (b, l, e) with (b, l, r) -> (e, r); (b, l, e) @ (e, r) -> (b, l, r)
        weight, delta = delta.flatten(0, 1).T @ scan.delta.flatten(0, 1), delta @ weight
    return Scan(
        u=share["grad_u"], delta=delta, A=share["grad_A"].sum(0), B=share["grad_B"].sum(0).to(scan.B.dtype),
        C=share["grad_C"].sum(0).to(scan.C.dtype), D=None if scan.D is None else share["grad_D"].sum(0),
        delta_bias=None if scan.delta_bias is None else share["grad_bias"].sum(0), delta_weight=weight)


def _blocks(e: int) -> int:
    return -(-e // LANES)


@functools.cache
def kernel(task, dtype: torch.dtype):
    return compile_kernel(task, SCAN_ARGS, *TYPES[dtype])


class _Call:
    """The numbers of one call's record, and the tensors that have to live until it is done."""

    def __init__(self, scans: list[Scan], z: Tensor | None, softplus: bool, scale: float):
        weight, self.dtype, self.alive = scans[0].delta_weight, scans[0].u.dtype, []
        (self.b, self.l, self.e), self.n = scans[0].u.shape, scans[0].A.shape[1]
        self.r = 0 if weight is None else weight.shape[1]
        self.values = {"b": self.b, "l": self.l, "e": self.e, "n": self.n, "r": self.r, "directions": len(scans),
                       "softplus": softplus, "scale": scale}
        self.put("z", z, strided=True)
        for direction, scan in zip(DIRECTIONS, scans, strict=False):
            self.values[direction + "reverse"] = scan.reverse
            for name in ("u", "delta", "B", "C"):
                self.put(direction + name, getattr(scan, name), strided=True)
            for name in ("A", "D", "delta_bias", "delta_weight"):
                self.put(direction + name, getattr(scan, name))

    def put(self, name: str, tensor: Tensor | None, strided: bool = False) -> None:
        """Note the address of a tensor, and with `strided` its strides; its last size must lie side by side."""
        if tensor is None:
            return
        tensor = by_rows(tensor) if strided else tensor.contiguous()
        self.alive.append(tensor)
        self.values[name] = tensor.data_ptr()
        if strided:
            self.values[name + "_b"], self.values[name + "_l"], _ = tensor.stride()

    def run(self, task, scratch_size) -> None:
        """Compile if need be, and run the task for all sequences and blocks of channels."""
        tasks = self.b * _blocks(self.e)
        threads = scratch_slots(tasks)
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        _memory, place = scratch(threads, scratch_size(self.l, self.n, self.r), wide)
        self.values |= {"tasks": tasks, **place}
        run(kernel(task, self.dtype), pack(SCAN_ARGS, self.values), threads)
