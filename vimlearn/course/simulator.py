"""A small stand-in for Triton: it runs a kernel's programs one after the other and notes every address they touch.

Notebook 04 uses it twice. Its checks run a learner's kernel here, on tensors between two zones of NaN, and see which
program read or wrote what: a wrong mask shows even where the values happen to be right. And where Triton itself is
missing (macOS, Windows), the notebook's cells run here too::

    from vimlearn.course.simulator import tl, triton

It knows the part of the language that the chapter uses, and refuses what Triton would not compile: PyTorch's methods on
blocks, indices into a pointer, a variable that changes its type in a loop. Program numbers are Python ints. A lane that
is masked out and has no `other` reads NaN: Triton promises nothing about it.
"""

__all__ = ["Block", "Memory", "Pointer", "in_language", "run_watched", "tl", "triton"]

import itertools
import operator
import types
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

from vimlearn.course.kernel_blocks import Block, Memory, Pointer, as_tensor, joined
from vimlearn.course.kernel_loops import Loops
from vimlearn.errors import VimlearnError, nearest

_OPTIONS = ("num_warps", "num_stages")


class _Language:
    """What a kernel calls `tl`, for the program that runs at the moment."""

    float16, bfloat16, float32, float64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
    int32, int64 = torch.int32, torch.int64
    range = static_range = range
    math = SimpleNamespace()

    def __init__(self):
        self._program, self._grid = (0,), (1,)

    def __getattr__(self, name: str):
        if name.startswith("atomic"):
            raise VimlearnError(f"the simulator has no tl.{name}: the order of programs would show in the result; give "
                                "each program a place of its own to store to")
        known = [word for word in dir(type(self)) if not word.startswith("_")]
        functions = [word for word in known if not word.startswith(("float", "int", "bfloat"))]
        raise VimlearnError(f"the simulator, in which kernels run here, has no tl.{name}{nearest(name, known)}; it has "
                            f"{', '.join(functions)}")

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
    def arange(start: int, end: int) -> Block:
        """Return the lane numbers from start to end - 1; as in Triton, a power of two of them."""
        if end - start < 1 or (end - start) & (end - start - 1):
            raise VimlearnError(f"arange({start}, {end}) has {end - start} lanes; Triton wants a power of two, "
                                "so take more and mask the rest")
        return Block(torch.arange(start, end))

    def load(self, pointer: Pointer, mask: object = None, other: object = None) -> Block:
        """Return the numbers at the addresses."""
        if mask is None and other is not None:
            raise VimlearnError("tl.load has `other` without a mask; without a mask every lane is read")
        addresses, mask = self._lanes(pointer, mask)
        return Block(pointer.memory.load(self._program, addresses, mask, other))

    def store(self, pointer: Pointer, value: object, mask: object = None) -> None:
        """Write the value to the addresses."""
        addresses, mask = self._lanes(pointer, mask)
        values = as_tensor(value).to(pointer.memory.cells.dtype)
        if len(values.shape) > len(addresses.shape) or any(
                got not in (1, want) for got, want in zip(values.shape[::-1], addresses.shape[::-1], strict=False)):
            raise VimlearnError(f"tl.store has a value of shape {tuple(values.shape)} for addresses of shape "
                                f"{tuple(addresses.shape)}")
        pointer.memory.store(self._program, addresses, torch.broadcast_to(values, addresses.shape), mask)

    @staticmethod
    def _lanes(pointer: object, mask: object) -> tuple[Tensor, Tensor]:
        if not isinstance(pointer, Pointer):
            raise VimlearnError("tl.load and tl.store take a pointer first: the name of a tensor plus offsets")
        mask = as_tensor(True if mask is None else mask)
        try:
            return tuple(torch.broadcast_tensors(pointer.addresses, mask))
        except RuntimeError as error:
            raise VimlearnError(f"a mask of shape {tuple(mask.shape)} for addresses of shape "
                                f"{tuple(pointer.addresses.shape)}; [:, None] makes a column of a mask") from error

    @staticmethod
    def full(shape: tuple, value: float, dtype: torch.dtype) -> Block:
        """Return a block that holds one value everywhere."""
        return Block(torch.full(shape, value, dtype=dtype))

    @staticmethod
    def zeros(shape: tuple, dtype: torch.dtype) -> Block:
        """Return a block of zeros."""
        return Block(torch.zeros(shape, dtype=dtype))

    @staticmethod
    def zeros_like(x: Block) -> Block:
        """Return zeros of the shape and type of a block."""
        return Block(torch.zeros_like(x.data))

    @staticmethod
    def sum(x: Block, axis: int | None = None, keep_dims: bool = False) -> Block:
        """Return the sum over an axis, or over all."""
        return Block(as_tensor(x).sum(axis, keep_dims))

    @staticmethod
    def max(x: Block, axis: int | None = None, keep_dims: bool = False) -> Block:
        """Return the largest number along an axis, or of all."""
        return Block(as_tensor(x).amax(() if axis is None else axis, keep_dims))

    @staticmethod
    def where(condition: object, x: object, y: object) -> Block:
        """Return x where the condition is true and y elsewhere."""
        condition = as_tensor(condition)
        return joined(lambda a, b: torch.where(condition, a, b), x, y)

    @staticmethod
    def fma(x: object, y: object, z: object) -> Block:
        """Return x y + z."""
        return joined(operator.add, joined(operator.mul, x, y), z)

    @staticmethod
    def expand_dims(x: Block, axis: int) -> Block:
        """Return the block with an axis of size 1 more."""
        return Block(x.data.unsqueeze(axis))

    @staticmethod
    def trans(x: Block) -> Block:
        """Return a block (m, n) as (n, m)."""
        return Block(x.data.T)

    @staticmethod
    def reshape(x: Block, *shape: int | tuple) -> Block:
        """Return the same numbers in another shape."""
        return Block(x.data.reshape(*shape))

    @staticmethod
    def cast(x: Block, dtype: torch.dtype) -> Block:
        """Return the block in another type."""
        return x.to(dtype)

    @staticmethod
    def maximum(x: object, y: object) -> object:
        """Return the larger one, entry by entry."""
        return joined(torch.maximum, *map(as_tensor, (x, y))) if Block in (type(x), type(y)) else max(x, y)

    @staticmethod
    def minimum(x: object, y: object) -> object:
        """Return the smaller one, entry by entry."""
        return joined(torch.minimum, *map(as_tensor, (x, y))) if Block in (type(x), type(y)) else min(x, y)

    @staticmethod
    def cdiv(x: int, y: int) -> int:
        """Return x / y, rounded up."""
        return -(-x // y)

    @staticmethod
    def debug_barrier() -> None:
        """Do nothing: one program runs at a time."""


def _elementwise(function: Callable) -> Callable:
    return lambda x: Block(function(as_tensor(x)))


for _function in (torch.abs, torch.exp, torch.exp2, torch.log, torch.sigmoid, torch.sqrt):
    setattr(_Language, _function.__name__, staticmethod(_elementwise(_function)))
    setattr(_Language.math, _function.__name__, _elementwise(_function))


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
            with Loops(fn) as loops:
                fn(*args, **kwargs)
            loops.refuse_changes()
    finally:
        tl._program, tl._grid = (0,), (1,)


tl = _Language()
Block.functions |= {name: getattr(tl, name) for name in (
    "abs", "cast", "exp", "exp2", "expand_dims", "log", "max", "reshape", "sigmoid", "sqrt", "sum", "trans")}
triton = SimpleNamespace(jit=_Kernel, cdiv=_Language.cdiv,
                         next_power_of_2=lambda n: 1 << (n - 1).bit_length())
