"""Absurd answers: objects of every kind, and functions that do every silly thing. No check may stumble or praise."""

import functools

import numpy as np
import torch


class Hostile:
    """Every question put to this object is an error."""

    def __eq__(self, other):
        raise RuntimeError("no comparison")

    __hash__ = None

    def __bool__(self):
        raise RuntimeError("no truth")

    def __len__(self):
        raise RuntimeError("no length")

    def __repr__(self):
        raise RuntimeError("no text")

    def __getattr__(self, name):
        raise RuntimeError("no attributes")


class Empty:
    """A class with nothing in it."""


def _recurse(*args, **kwargs):
    return _recurse(*args, **kwargs)


def _leave(*args, **kwargs):
    raise SystemExit(0)


def _raise_long(*args, **kwargs):
    raise ValueError("many words\n" * 500)


def _generate(*args, **kwargs):
    yield from args


async def _await(*args, **kwargs):
    return args


def _add_one_in_place(*args, **kwargs):
    for arg in args:
        if isinstance(arg, torch.Tensor):
            arg.data.add_(1)
    return args[0] if args else 0


def _loop_over_first_axis(*args, **kwargs):
    return torch.stack([row.sum() for row in args[0]])


OBJECTS = {
    "text": "euler",
    "empty text": "",
    "very long text": "a\n" * 10_000,
    "bytes": b"x",
    "true": True,
    "huge int": 10**400,
    "negative": -12345.678,
    "nan": float("nan"),
    "infinity": float("inf"),
    "complex": 1j,
    "list": [1, 2, 3],
    "empty list": [],
    "ragged list": [[1], [2, 3]],
    "nested nones": [[None], (None, [None])],
    "tuple": ("a", 1),
    "dict": {"a": 1},
    "set": {1, 2},
    "range": range(3),
    "class": Empty,
    "builtin class": dict,
    "module": torch,
    "exception class": ValueError,
    "hostile": Hostile(),
    "hostile list": [Hostile(), Hostile()],
    "scalar tensor": torch.tensor(-7777.0),
    "empty tensor": torch.zeros(0),
    "nan tensor": torch.full((2, 3), float("nan")),
    "integer tensor": torch.full((5,), -99),
    "complex tensor": torch.full((2, 2), 1j),
    "sparse tensor": torch.eye(3).to_sparse(),
    "meta tensor": torch.empty(2, 3, device="meta"),
    "text array": np.array(["a", "b"]),
    "object array": np.array([None, "a", 3], dtype=object),
    "linear layer": torch.nn.Linear(3, 2),
}
FUNCTIONS = {
    "no arguments": lambda: -77.5,
    "one argument": lambda x: x,
    "keyword only": lambda *, word: word,
    "returns nothing": lambda *args, **kwargs: print(end=""),
    "returns text": lambda *args, **kwargs: "text",
    "returns itself": lambda *args, **kwargs: _recurse,
    "returns a class": lambda *args, **kwargs: Empty,
    "returns hostile": lambda *args, **kwargs: Hostile(),
    "returns hostile parts": lambda *args, **kwargs: (Hostile(), Hostile()),
    "returns its arguments": lambda *args, **kwargs: args,
    "returns a scalar": lambda *args, **kwargs: torch.tensor(-7777.0),
    "returns an empty tensor": lambda *args, **kwargs: torch.zeros(0),
    "returns a sparse tensor": lambda *args, **kwargs: torch.eye(4).to_sparse(),
    "returns a meta tensor": lambda *args, **kwargs: torch.empty(2, 2, device="meta"),
    "returns a cyclic list": lambda *args, **kwargs: _cycle(),
    "divides by zero": lambda *args, **kwargs: 1 / 0,
    "raises at length": _raise_long,
    "leaves Python": _leave,
    "calls itself for ever": _recurse,
    "generator": _generate,
    "coroutine": _await,
    "in place": _add_one_in_place,
    "wrong axis": _loop_over_first_axis,
    "partial": functools.partial(lambda *args: -1.5, 1),
    "builtin": print,
    "torch function": torch.stack,
}


def _cycle() -> list:
    loop = []
    loop.append(loop)
    return loop


ZOO = OBJECTS | FUNCTIONS
