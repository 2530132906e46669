"""Running a learner's code safely: on copies, with errors turned into one line that points at their code."""

__all__ = ["call", "gradients", "parts", "require_started"]

import dis
import inspect
import linecache
import sysconfig
import traceback
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from vimlearn.course.verdict import NotStarted, Wrong, kind_of, one_line

# Instructions of a function whose body is only a docstring and `...`, `pass` or `return None`.
_EMPTY_BODY = {"RESUME", "NOP", "CACHE", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST", "COPY_FREE_VARS"}
_EMPTY_ANSWERS = (None, Ellipsis)
# How to copy what has no clone().
_COPIES = {list: "list({})", dict: "dict({})", np.ndarray: "{}.copy()"}
_NOT_THE_LEARNER = tuple(
    str(Path(folder).resolve())
    for folder in (*map(sysconfig.get_path, ("stdlib", "purelib", "platlib")), Path(__file__).parents[1])
)


def call(answer: Callable, *args: object, **kwargs: object) -> object:
    """Call the learner's function on copies of the inputs and return what it returns.

    Raises:
        NotStarted: the function is still its stub, or returns `...`.
        Wrong: it is not callable, raises an error, returns None, or changes one of its inputs in place.
    """
    copies = [_copy(arg) for arg in args]
    named_copies = {key: _copy(arg) for key, arg in kwargs.items()}
    got = _run(answer, copies, named_copies)
    before = [*args, *kwargs.values()]
    after = [*copies, *named_copies.values()]
    for name, old, new in zip(_names(answer, len(args)) + list(kwargs), before, after, strict=True):
        if not _same(old, new):
            copy = _COPIES.get(type(old), "{}.clone()").format(name)
            raise Wrong(f"your function changes its input {name} in place; work on a copy, for example {copy}")
    return got


def gradients(answer: Callable, *args: object) -> tuple[torch.Tensor, ...]:
    """Return the gradients of the learner's function with respect to every floating-point tensor in `args`.

    The scalar that is differentiated is a fixed, uneven weighting of all outputs, so that no term can hide.
    Use it on the reference too: `match(gradients(answer, u, A), gradients(reference, u, A), name=("du", "dA"))`.

    Raises:
        NotStarted, Wrong: as `call`, and Wrong where no gradient flows or the backward pass fails.
    """
    copies = [_copy(arg) for arg in args]
    leaves = [x.requires_grad_() for x in copies if isinstance(x, torch.Tensor) and x.is_floating_point()]
    with torch.enable_grad():
        got = _run(answer, copies, {})
        outputs = got if isinstance(got, tuple | list) else (got,)
        outputs = [y for y in outputs if isinstance(y, torch.Tensor) and y.requires_grad]
        if not outputs:
            raise Wrong("no gradient flows through your result; .detach(), .item() and torch.no_grad() would cut it")
        total = sum((y * _uneven(y)).sum() for y in outputs)
        try:
            grads = torch.autograd.grad(total, leaves, allow_unused=True)
        except Exception as error:
            if "inplace operation" in str(error):
                raise Wrong("the values are right, but a tensor that the gradient needs was changed in place; "
                            "write s = a * s, not s *= a") from None
            raise Wrong(f"the backward pass fails with {_explain(error)}") from None
    return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads, strict=True))


def parts(got: object, *names: str) -> tuple:
    """Return the parts of a result that should be a tuple with one entry for each of `names`.

    Raises:
        Wrong: `got` is no tuple or list, or has another number of entries.
    """
    wanted = f"{len(names)} values ({', '.join(names)})"
    if not isinstance(got, tuple | list):
        raise Wrong(f"your function should return {wanted}, but it returns {kind_of(got)}")
    if len(got) != len(names):
        raise Wrong(f"your function should return {wanted}, but it returns {len(got)}")
    return tuple(got)


def require_started(answer: object) -> None:
    """Raise NotStarted where `answer` is still the stub: None, `...`, only those in a list, or a body that is `...`."""
    if isinstance(answer, types.FunctionType) and _is_stub(answer):
        raise NotStarted(f"replace the ... in {answer.__name__} above, then run this cell again")
    if isinstance(answer, type):
        for name, member in vars(answer).items():
            function = getattr(member, "__func__", member)
            if isinstance(function, types.FunctionType) and _is_stub(function):
                raise NotStarted(f"replace the ... in {answer.__name__}.{name} above, then run this cell again")
    values = answer.values() if type(answer) is dict else answer if type(answer) in (list, tuple) else [answer]
    if len(values) > 0 and all(any(value is empty for empty in _EMPTY_ANSWERS) for value in values):
        raise NotStarted("put your answer into the cell above, then run this cell again")


def _is_stub(function: types.FunctionType) -> bool:
    steps = list(dis.get_instructions(function))
    returned = [step.argval for step in steps if step.opname in ("LOAD_CONST", "RETURN_CONST")]
    return {step.opname for step in steps} <= _EMPTY_BODY and all(value in _EMPTY_ANSWERS for value in returned)


def _run(answer: Callable, args: list, kwargs: dict) -> object:
    if not callable(answer):
        raise Wrong(f"the answer should be a function, but it is {kind_of(answer)}")
    require_started(answer)
    try:
        got = answer(*args, **kwargs)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise Wrong(f"your function stops with {_explain(error)}") from None
    if got is Ellipsis:
        raise NotStarted("your function still returns ...; replace it, then run this cell again")
    if got is None:
        raise Wrong("your function returns None; does it end with a return line?")
    return got


def _explain(error: BaseException) -> str:
    """Return "TypeError at line 3 (`h = A * h`): message", with the innermost line that is the learner's own."""
    text = f"{type(error).__name__}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        own = not str(Path(frame.filename).resolve()).startswith(_NOT_THE_LEARNER)
        if own and not frame.filename.startswith("<frozen"):
            source = linecache.getline(frame.filename, frame.lineno or 0).strip()
            text += f" at line {frame.lineno}" + (f" (`{source}`)" if source else "")
            break
    message = one_line(error)
    return f"{text}: {message}" if message else text


def _names(answer: Callable, count: int) -> list[str]:
    """Return the names of the first `count` parameters, or their positions where they have no names."""
    try:
        names = list(inspect.signature(answer).parameters)
    except (TypeError, ValueError):
        names = []
    return (names + [f"number {i + 1}" for i in range(len(names), count)])[:count]


def _copy(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) in (list, tuple):
        return type(value)(_copy(item) for item in value)
    if type(value) is dict:
        return {key: _copy(item) for key, item in value.items()}
    return value


def _same(old: object, new: object) -> bool:
    """Tell whether a copy still holds what it held; of other objects than data it knows nothing and says yes."""
    if isinstance(old, torch.Tensor):
        return old.shape == new.shape and bool(((old == new) | ((old != old) & (new != new))).all())
    if isinstance(old, np.ndarray):
        return old.shape == new.shape and bool(((old == new) | ((old != old) & (new != new))).all())
    if type(old) in (list, tuple):
        return len(old) == len(new) and all(map(_same, old, new))
    if type(old) is dict:
        return old.keys() == new.keys() and all(_same(old[key], new[key]) for key in old)
    return True


def _uneven(y: torch.Tensor) -> torch.Tensor:
    return torch.cos(torch.arange(y.numel(), dtype=torch.float64) + 0.5).to(y.dtype).reshape(y.shape)
