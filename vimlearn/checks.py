"""Checks of arguments: each names the tensor, what it is, what was expected."""

__all__ = ["check_input", "check_scan", "check_tensor", "check_weight", "state_dtype"]

import torch
from torch import Tensor

from .errors import VimlearnError

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which states and sums are kept: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_tensor(name: str, tensor: Tensor, sizes: tuple[tuple[str, int], ...], like: Tensor,
                 dtype: torch.dtype) -> None:
    """Raise VimlearnError unless `tensor` has the given sizes, `dtype`, and the device of `like`.

    `sizes` pairs each letter with its size, as in (("b", 2), ("l", 197), ("e", 384)).
    """
    if not isinstance(tensor, Tensor):
        raise VimlearnError(f"{name} is a {type(tensor).__name__}; expected a torch.Tensor")
    # First the case that is right: a scan checks twenty tensors, and a short one should not wait for that.
    expected = tuple([size for _, size in sizes])
    if tensor.shape == expected and tensor.dtype == dtype and tensor.device == like.device:
        return
    letters = ", ".join(letter for letter, _ in sizes)
    if tensor.shape != expected:
        raise VimlearnError(f"{name} has shape {tuple(tensor.shape)}; expected ({letters}) = {expected} "
                            "to fit the other tensors")
    if tensor.dtype != dtype:
        raise VimlearnError(f"{name} has dtype {tensor.dtype}; expected {dtype} beside an input of dtype {like.dtype}; "
                            f"convert it with .to({dtype})")
    if tensor.device != like.device:
        raise VimlearnError(f"{name} is on {tensor.device} and the input on {like.device}; move both to one device")


def check_input(name: str, x: Tensor) -> None:
    """Raise VimlearnError unless `x` is a floating-point tensor (b, l, channels) with at least one token."""
    if not isinstance(x, Tensor):
        raise VimlearnError(f"{name} is a {type(x).__name__}; expected a torch.Tensor of shape (b, l, channels)")
    if x.dim() != 3:
        raise VimlearnError(f"{name} has shape {tuple(x.shape)}; expected three sizes (b, l, channels), channels last")
    if x.dtype not in FLOATS:
        raise VimlearnError(f"{name} has dtype {x.dtype}; expected float32, float64, bfloat16 or float16")
    if 0 in x.shape:
        raise VimlearnError(f"{name} has shape {tuple(x.shape)}, which is empty; expected at least one sequence, "
                            "one token and one channel")


def check_weight(name: str, weight: Tensor, x: Tensor, letters: tuple[str, ...]) -> None:
    """Raise VimlearnError unless `weight` has one size a letter, the first the channels of x, on the device of x."""
    if not isinstance(weight, Tensor):
        raise VimlearnError(f"{name} is a {type(weight).__name__}; expected a torch.Tensor")
    if weight.dim() != len(letters) or weight.shape[0] != x.shape[-1] or 0 in weight.shape:
        raise VimlearnError(f"{name} has shape {tuple(weight.shape)}; expected ({', '.join(letters)}) with "
                            f"{letters[0]} = {x.shape[-1]}, the channels of the input")
    if weight.dtype not in (x.dtype, state_dtype(x.dtype)):
        raise VimlearnError(f"{name} has dtype {weight.dtype}; expected {x.dtype} or {state_dtype(x.dtype)} "
                            f"beside an input of dtype {x.dtype}")
    if weight.device != x.device:
        raise VimlearnError(f"{name} is on {weight.device} and the input on {x.device}; move both to one device")


def check_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
               delta_bias: Tensor | None) -> None:
    """Raise VimlearnError unless the arguments of `selective_scan` fit together."""
    check_input("u", u)
    b, l, e = (("b", u.shape[0]), ("l", u.shape[1]), ("e", u.shape[2]))
    if not isinstance(A, Tensor) or A.dim() != 2 or A.shape[1] == 0:
        found = f"shape {tuple(A.shape)}" if isinstance(A, Tensor) else f"type {type(A).__name__}"
        raise VimlearnError(f"A has {found}; expected (e, n) = ({u.shape[2]}, number of states)")
    if A.shape[0] != u.shape[2]:
        raise VimlearnError(f"u has {u.shape[2]} channels but A has {A.shape[0]} rows; "
                            "expected one row of A a channel of u")
    n, wide = ("n", A.shape[1]), state_dtype(u.dtype)
    check_tensor("A", A, (e, n), u, wide)
    for name, tensor, last in (("delta", delta, e), ("B", B, n), ("C", C, n), ("z", z, e)):
        if tensor is not None or name != "z":
            check_tensor(name, tensor, (b, l, last), u, u.dtype)
    for name, tensor in (("D", D), ("delta_bias", delta_bias)):
        if tensor is not None:
            check_tensor(name, tensor, (e,), u, wide)
