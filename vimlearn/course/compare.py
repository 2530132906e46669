"""Comparing an answer with the right one, and saying in one line what is different about it."""

__all__ = ["choose", "match"]

import numbers
from collections.abc import Mapping

import numpy as np
import torch

from vimlearn.course.verdict import Wrong, kind_of, one_line

# Relative and absolute tolerance. Answers worked out on paper (Python floats) need three digits.
_TOLERANCE = {torch.float64: (1e-7, 1e-9), torch.float32: (1e-4, 1e-5), torch.bfloat16: (2e-2, 1e-2)}
_PAPER_TOLERANCE = (2e-3, 1e-6)


def match(
    got: object,
    expected: object,
    name: str | tuple[str, ...] = "the result",
    *,
    mistakes: Mapping[str, object] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> None:
    """Return silently where `got` equals `expected`; otherwise raise Wrong with the most telling line there is.

    Args:
        got: the answer. A tensor is wanted where `expected` is one, with its shape and dtype. For an expected number
            any scalar will do, for an expected list or tuple of numbers any sequence, array or tensor.
        expected: a tensor, NumPy array, number, bool, text, None, or a list, tuple or dict of those.
        name: what the message calls the answer; for a tuple, one name for each entry.
        mistakes: from the message to the value that this mistake gives, or a function without arguments for it.
        rtol, atol: tolerances; by default 1e-7 in float64, 1e-4 in float32, 2e-3 for a Python float, 0 for an int.

    Raises:
        Wrong: they differ. Known mistakes come first; then type, shape, dtype, NaN and values, in that order.
    """
    problem = _difference(got, expected, name, rtol, atol, strict=True)
    if problem is None:
        return
    for message, value in (mistakes or {}).items():
        wrong = value() if callable(value) else value
        # In a small case a mistake can give the right numbers, and is then not what is wrong.
        if _difference(wrong, expected, name, rtol, atol, strict=False) is None:
            continue
        if _difference(got, wrong, name, rtol, atol, strict=False) is None:
            raise Wrong(message)
    raise Wrong(problem)


def choose(answer: object, right: str, wrong: Mapping[str, str]) -> None:
    """Check a prediction that is one of a few words: `right`, or a key of `wrong`, which says what each overlooks.

    Case, spaces and a closing full stop do not matter.

    Raises:
        Wrong: with the message of that wrong choice, or naming the choices where the answer is none of them.
    """
    messages = {_plain(word): message for word, message in wrong.items()}
    choices = ", ".join(repr(word) for word in sorted([right, *wrong]))
    if not isinstance(answer, str):
        raise Wrong(f"answer with one of the texts {choices}; this is {kind_of(answer)}")
    if _plain(answer) == _plain(right):
        return
    if _plain(answer) in messages:
        raise Wrong(messages[_plain(answer)])
    raise Wrong(f"answer with one of {choices}; '{one_line(answer)[:40]}' is none of them")


def _plain(text: str) -> str:
    return " ".join(text.casefold().strip(" .\n\t").split())


def _difference(got: object, expected: object, name, rtol, atol, *, strict: bool) -> str | None:
    """Return what is different in one line, or None where nothing is."""
    if isinstance(expected, torch.Tensor):
        return _tensor_difference(got, expected, _one_name(name), rtol, atol, strict)
    if isinstance(expected, np.ndarray):
        return _tensor_difference(_from_data(got), torch.from_numpy(expected), _one_name(name), rtol, atol, strict)
    if expected is None or isinstance(expected, str | bool | np.bool_):
        return _word_difference(got, expected, _one_name(name))
    if isinstance(expected, numbers.Number):
        return _number_difference(got, expected, _one_name(name), rtol, atol)
    if isinstance(expected, Mapping):
        return _mapping_difference(got, expected, _one_name(name), rtol, atol, strict)
    return _sequence_difference(got, expected, name, rtol, atol, strict)


def _one_name(name: str | tuple[str, ...]) -> str:
    return name if isinstance(name, str) else f"({', '.join(name)})"


def _tensor_difference(got, expected, name, rtol, atol, strict) -> str | None:
    if not isinstance(got, torch.Tensor):
        return f"{name} should be a tensor, but it is {kind_of(got)}"
    got, expected = got.detach(), expected.detach()
    if got.shape != expected.shape:
        swapped = sorted(got.shape) == sorted(expected.shape)
        return f"{name} has shape {tuple(got.shape)}, expected {tuple(expected.shape)}" + (
            "; are two axes exchanged?" if swapped else ""
        )
    if strict and got.dtype != expected.dtype:
        short = [str(x.dtype).removeprefix("torch.") for x in (got, expected)]
        return f"{name} has dtype {short[0]}, expected {short[1]}; make new tensors with the dtype of the inputs"
    tolerance = _TOLERANCE.get(expected.dtype, (0.0, 0.0))
    tolerance = [value if given is None else given for given, value in zip((rtol, atol), tolerance, strict=True)]
    return _value_difference(_wide(got), _wide(expected), name, *tolerance)


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def _value_difference(got, expected, name, rtol, atol) -> str | None:
    if got.dtype != expected.dtype:
        got, expected = got.to(torch.complex128), expected.to(torch.complex128)

    def close(a, b):
        return torch.isclose(a, b, rtol=rtol, atol=atol, equal_nan=True)

    off = ~close(got, expected)
    if not off.any():
        return None
    for word, bad in (("NaN", got.isnan() & ~expected.isnan()), ("an infinite value", got.isinf() & ~expected.isinf())):
        if bad.any():
            return f"{name} holds {word}, first{_place(bad)}"
    pattern = _pattern(got, expected, close)
    if pattern:
        return f"{name} {pattern}"
    if rtol < 1e-6 and torch.isclose(got, expected, rtol=2e-6, atol=2e-7).all():
        return f"{name} is right to about six digits; was a part computed in float32? Keep the type of the inputs"
    place = tuple(off.nonzero()[0].tolist())
    count = f"; {int(off.sum())} of {off.numel()} entries are off" if off.numel() > 1 else ""
    return f"{name} is {_digits(got[place])}{_place(off)}, expected {_digits(expected[place])}{count}"


def _place(mask: torch.Tensor) -> str:
    return f" at {mask.nonzero()[0].tolist()}" if mask.dim() else ""


def _digits(value: torch.Tensor) -> str:
    return f"{value.item():.4g}"


def _pattern(got: torch.Tensor, expected: torch.Tensor, close) -> str | None:
    """Recognise a few mistakes that any array can have: reversed sign or order, one step off, a constant factor."""
    if close(got, -expected).all():
        return "has the opposite sign everywhere"
    for axis, size in enumerate(got.shape):
        if size > 1 and close(got, expected.flip(axis)).all():
            return f"is in reversed order along axis {axis}"
        if size > 2 and expected.std(axis).max() > 0:
            for where, a, b in (("late", got, expected), ("early", expected, got)):
                if close(a.narrow(axis, 1, size - 1), b.narrow(axis, 0, size - 1)).all():
                    return f"is one step too {where} along axis {axis}"
    largest = expected.abs().argmax()
    factor = got.flatten()[largest] / expected.flatten()[largest]
    if got.numel() > 1 and factor != 0 and close(got, factor * expected).all():
        return f"is {_digits(factor)} times what is expected, everywhere"
    return None


def _bare(value: object) -> object:
    """Return a tensor or array without axes as the Python number that it holds."""
    is_scalar = isinstance(value, torch.Tensor | np.ndarray | np.generic) and len(value.shape) == 0
    return value.item() if is_scalar else value


def _word_difference(got, expected, name) -> str | None:
    got, expected = _bare(got), _bare(expected)
    if type(got) is not type(expected):
        return f"{name} should be {kind_of(expected)}, but it is {kind_of(got)}"
    same = _plain(got) == _plain(expected) if isinstance(expected, str) else got is expected
    return None if same else f"{name} is not {one_line(repr(got))[:60]}"


def _number_difference(got, expected, name, rtol, atol) -> str | None:
    got = _bare(got)
    if isinstance(got, bool) or not isinstance(got, numbers.Number):
        return f"{name} should be a number, but it is {kind_of(got)}"
    relative, absolute = (0.0, 0.0) if isinstance(expected, numbers.Integral) else _PAPER_TOLERANCE
    relative, absolute = relative if rtol is None else rtol, absolute if atol is None else atol
    if isinstance(expected, numbers.Integral) and isinstance(got, float) and not got.is_integer():
        return f"{name} should be a whole number, and {got:,.6g} is none"
    error = abs(got - expected)
    if error <= absolute + relative * abs(expected):
        return None
    # Whoever asks for all digits of a result has a function before him, and no answer worked out on paper.
    if relative > 1e-6 and error <= 0.05 * abs(expected):
        return f"{name} is close to {got:.4g}, but not equal; give more digits"
    return f"{name} is not {_written(got)}"


def _written(value: numbers.Number) -> str:
    """Return whole numbers with all their digits: of a million, four could look like the right answer."""
    return f"{value:,}" if isinstance(value, numbers.Integral) else f"{value:.4g}"


def _mapping_difference(got, expected, name, rtol, atol, strict) -> str | None:
    if not isinstance(got, Mapping):
        return f"{name} should be a dict, but it is {kind_of(got)}"
    if set(got) != set(expected):
        return f"{name} should have the keys {', '.join(map(repr, expected))}"
    found = (_difference(got[key], expected[key], f"{name}[{key!r}]", rtol, atol, strict=strict) for key in expected)
    return next((line for line in found if line), None)


def _sequence_difference(got, expected, name, rtol, atol, strict) -> str | None:
    whole = _one_name(name)
    if isinstance(got, torch.Tensor | np.ndarray) and got.ndim and all(isinstance(x, numbers.Number) for x in expected):
        got = got.tolist()
    if not isinstance(got, list | tuple):
        return f"{whole} should be {len(expected)} values in a tuple, but it is {kind_of(got)}"
    if len(got) != len(expected):
        return f"{whole} should have {len(expected)} entries, but it has {len(got)}"
    names = [f"{name}[{i}]" for i in range(len(expected))] if isinstance(name, str) else name
    found = (_difference(*three, rtol, atol, strict=strict) for three in zip(got, expected, names, strict=True))
    return next((line for line in found if line), None)


def _from_data(got: object) -> object:
    """Return arrays, sequences and numbers as a tensor, and anything else as it is."""
    try:
        return got if isinstance(got, torch.Tensor) else torch.from_numpy(np.atleast_1d(np.asarray(got)))
    except (TypeError, ValueError, RuntimeError):
        return got
