"""Whether the variables of a kernel stay what they are in its loops, as Triton demands."""

__all__ = ["Loops"]

import dis
import sys
import types
from collections.abc import Callable

import torch

from vimlearn.course.kernel_blocks import Block, Pointer
from vimlearn.errors import VimlearnError


class Loops:
    """Watches what a kernel's variables are at each turn of its `for` loops. Triton compiles a loop once, so a variable
    that is there before the loop must be of the same type and shape after each turn.
    """

    def __init__(self, fn: Callable):
        self.code, self.first, self.change = fn.__code__, {}, None
        steps = [step for step in dis.get_instructions(fn) if step.opname == "FOR_ITER"]
        self.lines = {step.positions.lineno for step in steps}

    def __enter__(self) -> "Loops":
        self.before = sys.gettrace()
        sys.settrace(lambda frame, event, arg: self._look if frame.f_code is self.code else None)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(self.before)

    def _look(self, frame: types.FrameType, event: str, arg: object) -> Callable:
        if event == "line" and frame.f_lineno in self.lines and not self.change:
            now = {name: _kind(value) for name, value in frame.f_locals.items()}
            first = self.first.setdefault(frame.f_lineno, now)
            changed = [name for name in first if first[name] != now[name]]
            if changed:
                self.change = (changed[0], first[changed[0]], now[changed[0]])
        return self._look

    def refuse_changes(self) -> None:
        """Raise VimlearnError where a variable did not stay what it was."""
        if self.change:
            name, before, after = self.change
            raise VimlearnError(f"{name} is {before} before the loop and {after} after a turn of it; Triton compiles a "
                                "loop once, so its variables have to keep type and shape")


def _kind(value: object) -> str:
    """Return what Triton would take a variable for, in words."""
    if isinstance(value, Pointer):
        return f"a pointer of shape {tuple(value.addresses.shape)}"
    if not isinstance(value, Block):
        return {bool: "a truth value", int: "an integer", float: "a number of float32"}.get(type(value), "a constant")
    kind = "integer" if value.dtype in (torch.int32, torch.int64) else str(value.dtype).removeprefix("torch.")
    if not value.shape:
        return {"integer": "an integer", "bool": "a truth value"}.get(kind, f"a number of {kind}")
    return f"a block of {kind} and shape {value.shape}"
