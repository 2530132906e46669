"""A small stand-in for Triton: it runs a kernel's programs one after the other and notes every address they touch.

Notebook 04 uses it twice. Its checks run a learner's kernel here, on tensors between two zones of NaN, and see which
program read or wrote what: a wrong mask shows even where the values happen to be right. And where Triton itself is
missing (macOS, Windows), the notebook's cells run here too::

    from vimlearn.course.simulator import tl, triton

It knows the part of the language that the chapter uses. Tiles are CPU tensors, program numbers are Python ints. A lane
that is masked out and has no `other` reads NaN: Triton promises nothing about it.
"""

__all__ = ["Memory", "Pointer", "in_language", "run_watched", "tl", "triton"]

import itertools
import types
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

from vimlearn.errors import VimlearnError, nearest

_OPTIONS = ("num_warps", "num_stages")


class Memory:
    """A tensor as programs see it: a row of numbers, addressed from 0 to size - 1, and who touched which.

    `reads` and `writes` map a program, such as (0, 1), to the set of addresses that it touched. With guard > 0 the
    numbers are a copy between two zones of so many NaN, and addresses outside are noted; without, they are
    the tensor itself, and an address outside of its storage raises VimlearnError.
    """

    def __init__(self, name: str, tensor: Tensor, guard: int = 0):
        self.name, self.size, self.shape, self.watched = name, tensor.numel(), tensor.shape, guard > 0
        self.reads, self.writes = defaultdict(set), defaultdict(set)
        if self.watched:
            zone = tensor.new_full((guard,), float("nan"))
            self.cells, self.origin = torch.cat([zone, tensor.detach().flatten(), zone]), guard
        else:
            whole = tensor.untyped_storage().nbytes() // tensor.element_size()
            self.cells, self.origin = tensor.detach().as_strided((whole,), (1,), 0), tensor.storage_offset()

    @property
    def tensor(self) -> Tensor:
        """What the tensor holds now."""
        return self.cells[self.origin : self.origin + self.size].reshape(self.shape)

    @property
    def programs(self) -> list[tuple[int, ...]]:
        """All programs that touched it, in the order of their numbers."""
        return sorted({*self.reads, *self.writes})

    def outside(self, log: dict) -> list[tuple[tuple[int, ...], int]]:
        """Return (program, address) for each address in `log`, the reads or the writes, that is not the tensor's."""
        return [(program, a) for program in sorted(log) for a in sorted(log[program]) if not 0 <= a < self.size]

    def place(self, address: int) -> list[int]:
        """Return the index of an address in the tensor, such as [0, 2]."""
        return [int(i) for i in torch.unravel_index(torch.tensor(address), self.shape)]

    def load(self, program: tuple, addresses: Tensor, mask: Tensor, other: object) -> Tensor:
        """Return the numbers at the addresses where the mask is true, and `other`, or NaN, elsewhere."""
        real = self._touch(self.reads, program, addresses, mask)
        rest = self.cells.new_full((), float("nan")) if other is None else torch.as_tensor(other).to(self.cells.dtype)
        values = rest.expand(addresses.shape).clone()
        values[real] = self.cells[addresses[real] + self.origin]
        return values

    def store(self, program: tuple, addresses: Tensor, values: Tensor, mask: Tensor) -> None:
        """Write the values to the addresses where the mask is true."""
        real = self._touch(self.writes, program, addresses, mask)
        self.cells[addresses[real] + self.origin] = values[real].to(self.cells.dtype)

    def _touch(self, log: dict, program: tuple, addresses: Tensor, mask: Tensor) -> Tensor:
        log[program] |= set(addresses[mask].tolist())
        real = mask & (addresses + self.origin >= 0) & (addresses + self.origin < len(self.cells))
        if not self.watched and bool((mask & ~real).any()):
            raise VimlearnError(f"program {program} uses address {int(addresses[mask & ~real][0])} of {self.name}, "
                                f"which ends at {len(self.cells) - self.origin - 1}; mask the lanes that do not exist")
        return real


class Pointer:
    """A block of addresses in one memory. Adding a number or a block of numbers moves it."""

    def __init__(self, memory: Memory, addresses: Tensor | None = None):
        self.memory = memory
        self.addresses = torch.tensor(0) if addresses is None else addresses
        self.dtype = SimpleNamespace(element_ty=memory.cells.dtype)

    def __add__(self, offsets: Tensor | int) -> "Pointer":
        return Pointer(self.memory, self.addresses + offsets)

    __radd__ = __add__

    def __getitem__(self, index: object) -> "Pointer":
        return Pointer(self.memory, self.addresses[index])


class _Language:
    """What a kernel calls `tl`, for the program that runs at the moment."""

    float16, bfloat16, float32, float64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
    int32, int64 = torch.int32, torch.int64
    range = static_range = range
    exp, exp2, log, sqrt, sigmoid = (
        staticmethod(lambda x, f=f: f(torch.as_tensor(x))) for f in
        (torch.exp, torch.exp2, torch.log, torch.sqrt, torch.sigmoid)
    )

    def __init__(self):
        self._program, self._grid = (0,), (1,)

    def __getattr__(self, name: str):
        known = [word for word in dir(type(self)) if not word.startswith("_")]
        raise VimlearnError(f"the stand-in for Triton has no tl.{name}{nearest(name, known)}; this chapter needs "
                            "program_id, arange, load, store, zeros, where, sum and exp")

    @staticmethod
    def constexpr(value: object) -> object:
        """Return the value; as an annotation it says that a number is known before the kernel is compiled."""
        return value

    def program_id(self, axis: int) -> int:
        """Return which of the programs along a grid axis this is."""
        return (*self._program, 0, 0, 0)[axis]

    def num_programs(self, axis: int) -> int:
        """Return how many programs there are along a grid axis."""
        return (*self._grid, 1, 1, 1)[axis]

    @staticmethod
    def arange(start: int, end: int) -> Tensor:
        """Return the lane numbers from start to end - 1; as in Triton, a power of two of them."""
        if end - start < 1 or (end - start) & (end - start - 1):
            raise VimlearnError(f"arange({start}, {end}) has {end - start} lanes; Triton wants a power of two, "
                                "so take more and mask the rest")
        return torch.arange(start, end)

    def load(self, pointer: Pointer, mask: object = None, other: object = None) -> Tensor:
        """Return the numbers at the addresses."""
        if mask is None and other is not None:
            raise VimlearnError("tl.load has `other` without a mask; without a mask every lane is read")
        addresses, mask = self._lanes(pointer, mask)
        return pointer.memory.load(self._program, addresses, mask, other)

    def store(self, pointer: Pointer, value: object, mask: object = None) -> None:
        """Write the value to the addresses."""
        addresses, mask = self._lanes(pointer, mask)
        values = torch.as_tensor(value, dtype=pointer.memory.cells.dtype)
        pointer.memory.store(self._program, addresses, torch.broadcast_to(values, addresses.shape), mask)

    @staticmethod
    def _lanes(pointer: object, mask: object) -> tuple[Tensor, Tensor]:
        if not isinstance(pointer, Pointer):
            raise VimlearnError("tl.load and tl.store take a pointer first: the name of a tensor plus offsets")
        mask = torch.as_tensor(True if mask is None else mask)
        return torch.broadcast_tensors(pointer.addresses, mask)

    @staticmethod
    def zeros(shape: tuple, dtype: torch.dtype) -> Tensor:
        """Return a tile of zeros."""
        return torch.zeros(shape, dtype=dtype)

    @staticmethod
    def sum(x: Tensor, axis: int | None = None) -> Tensor:
        """Return the sum over an axis, or over all."""
        return x.sum() if axis is None else x.sum(axis)

    @staticmethod
    def where(condition: object, x: object, y: object) -> Tensor:
        """Return x where the condition is true and y elsewhere."""
        return torch.where(torch.as_tensor(condition), x, y)

    @staticmethod
    def maximum(x: object, y: object) -> object:
        """Return the larger one, entry by entry."""
        return torch.maximum(*map(torch.as_tensor, (x, y))) if Tensor in (type(x), type(y)) else max(x, y)

    @staticmethod
    def minimum(x: object, y: object) -> object:
        """Return the smaller one, entry by entry."""
        return torch.minimum(*map(torch.as_tensor, (x, y))) if Tensor in (type(x), type(y)) else min(x, y)

    @staticmethod
    def cdiv(x: int, y: int) -> int:
        """Return x / y, rounded up."""
        return -(-x // y)

    @staticmethod
    def debug_barrier() -> None:
        """Do nothing: one program runs at a time."""


class _Kernel:
    """A kernel as `triton.jit` returns it: kernel[grid](arguments) runs all its programs."""

    def __init__(self, fn: Callable):
        self.fn = fn

    def __call__(self, *args: object) -> object:
        return self.fn(*args)

    def __getitem__(self, grid: int | tuple) -> Callable:
        return lambda *args, **kwargs: self._launch(grid, args, kwargs)

    def _launch(self, grid: int | tuple, args: tuple, kwargs: dict) -> None:
        names = self.fn.__code__.co_varnames
        kwargs = {name: value for name, value in kwargs.items() if name not in _OPTIONS}
        args = [_as_argument(name, x) for name, x in zip(names, args, strict=False)]
        _run_all(self.fn, grid, args, {name: _as_argument(name, x) for name, x in kwargs.items()})


def run_watched(kernel: Callable, grid: int | tuple, *, guard: int = 64, **arguments: object) -> dict[str, Memory]:
    """Run a kernel over a grid on guarded copies of its tensors; return their memories by name.

    Args:
        kernel: a function in the kernel language, with or without `@triton.jit`, whether Triton is there or not.
        grid: how many programs along each axis.
        guard: how many NaN stand before and behind each tensor.
        arguments: tensors and numbers, in the order of the kernel's parameters; they are passed by position.
    """
    memories = {name: Memory(name, x, guard) for name, x in arguments.items() if isinstance(x, Tensor)}
    args = [Pointer(memories[name]) if name in memories else x for name, x in arguments.items()]
    _run_all(in_language(kernel), grid, args, {})
    return memories


def _as_argument(name: str, value: object) -> object:
    return Pointer(Memory(name, value)) if isinstance(value, Tensor) else value


def in_language(fn: Callable) -> Callable:
    """Return the function with this module's `tl` and `triton`, and so for the kernel functions that it calls."""
    fn = getattr(fn, "fn", fn)
    names = {**fn.__globals__, "tl": tl, "triton": triton}
    for name in {*fn.__code__.co_names} - {"tl", "triton"}:
        inner = getattr(names.get(name), "fn", None)
        if isinstance(inner, types.FunctionType) and inner is not fn:
            names[name] = in_language(inner)
    return types.FunctionType(fn.__code__, names, fn.__name__, fn.__defaults__, fn.__closure__)


def _run_all(fn: Callable, grid: int | tuple, args: list, kwargs: dict) -> None:
    tl._grid = tuple(grid) if isinstance(grid, tuple | list) else (grid,)
    try:
        for program in itertools.product(*map(range, tl._grid)):
            tl._program = program
            fn(*args, **kwargs)
    finally:
        tl._program, tl._grid = (0,), (1,)


tl = _Language()
triton = SimpleNamespace(jit=_Kernel, cdiv=_Language.cdiv,
                         next_power_of_2=lambda n: 1 << (n - 1).bit_length())
