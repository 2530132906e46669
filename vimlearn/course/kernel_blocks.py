"""What a kernel of chapter 04 holds in the simulator: tensors as rows of numbers, pointers into them, and blocks."""

__all__ = ["Block", "Memory", "Pointer", "as_tensor", "joined"]

import functools
import operator
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import ClassVar

import torch
from torch import Tensor

from vimlearn.errors import VimlearnError


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

    def __add__(self, offsets: "Block | int") -> "Pointer":
        return Pointer(self.memory, joined(operator.add, self.addresses, offsets).data)

    __radd__ = __add__

    def __getitem__(self, index: object) -> "Pointer":
        if not _adds_axes(index):
            raise VimlearnError(f"{self.memory.name} is a pointer and has no indices; tl.load({self.memory.name} + "
                                "address) reads what stands there, and tl.store writes")
        return Pointer(self.memory, self.addresses[index])

    def _no_number(self, *others: object):
        raise VimlearnError(f"{self.memory.name} is a pointer, an address and no number; "
                            f"tl.load({self.memory.name} + address) reads what stands there")

    __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __neg__ = _no_number


def _adds_axes(index: object) -> bool:
    """Whether an index is made of None and : alone, which is all that Triton takes."""
    index = index if isinstance(index, tuple) else (index,)
    return all(i is None or (isinstance(i, slice) and i == slice(None)) for i in index)


class Block:
    """A block of numbers in a kernel: operators, [:, None], the functions of `tl`, and nothing else of a tensor.

    Operators make new blocks, so `s += x` leaves the block that `s` was as it is. `data` is the tensor behind it.
    """

    # What `tl` has of functions that are methods of a block as well, by name; the simulator fills it.
    functions: ClassVar[dict[str, Callable]] = {}

    def __init__(self, data: Tensor):
        self.data, self.dtype, self.shape = data, data.dtype, tuple(data.shape)

    def __getitem__(self, index: object) -> "Block":
        if not _adds_axes(index):
            raise VimlearnError("a block has no single entries; its index is made of None and : alone, as in [:, None]")
        return Block(self.data[index])

    def __getattr__(self, name: str):
        if name in self.functions:
            return functools.partial(self.functions[name], self)
        raise VimlearnError(f"a block in a kernel has no .{name}; there are operators, [:, None] and what tl has")

    def to(self, dtype: torch.dtype) -> "Block":
        """Return the block in another type."""
        return Block(self.data.to(dtype))

    def __bool__(self) -> bool:
        if self.shape:
            raise VimlearnError(f"`if` and `while` need one number, and this is a block of shape {self.shape}; "
                                "tl.where chooses entry by entry")
        return bool(self.data)

    def __index__(self) -> int:
        return self.data.__index__()

    def __neg__(self) -> "Block":
        return Block(-self.data)

    def __invert__(self) -> "Block":
        return Block(~self.data)

    def __abs__(self) -> "Block":
        return Block(self.data.abs())


def as_tensor(x: object) -> Tensor:
    """Return the tensor behind a block, or a number as a tensor."""
    return x.data if isinstance(x, Block) else torch.as_tensor(x)


def joined(function: Callable, one: object, two: object) -> Block:
    """Return function(one, two) of blocks, tensors and numbers. Raises VimlearnError where their shapes do not fit."""
    one, two = (x.data if isinstance(x, Block) else x for x in (one, two))
    try:
        return Block(function(one, two))
    except RuntimeError as error:
        shapes = [tuple(getattr(x, "shape", ())) for x in (one, two)]
        raise VimlearnError(f"blocks of the shapes {shapes[0]} and {shapes[1]} do not fit each other; [:, None] makes "
                            "a column of a vector, [None, :] a row") from error


def _operators(name: str) -> tuple[Callable, Callable]:
    """Return the methods of a block for `block + x` and `x + block`, for the operator of that name."""
    function = getattr(operator, name)

    def forward(self, other):
        return NotImplemented if isinstance(other, Pointer) else joined(function, self, other)

    def backward(self, other):
        return joined(function, other, self)
    return forward, backward


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "and_", "or_", "xor"):
    for _prefix, _method in zip(("", "r"), _operators(_name), strict=True):
        setattr(Block, f"__{_prefix}{_name.rstrip('_')}__", _method)
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Block, f"__{_name}__", _operators(_name)[0])
