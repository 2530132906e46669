"""Exercises and their checks: the small language in which the files chapter01.py, chapter02.py, ... are written.

A chapter file holds one function for each exercise of its notebook. The function looks at the learner's answer, raises
`Wrong` (mostly through `call` and `match`) with one line that names the mistake, or returns one line that says what is
right::

    from vimlearn.course.exercise import Wrong, call, choose, exercise, match, parts

    @exercise("1.2", "One Euler step")
    def euler_step(answer):
        h, A, x = torch.tensor([1.0, -2.0]), torch.tensor([-0.5, -1.0]), torch.tensor(3.0)
        match(
            call(answer, h, A, x, 0.1),
            h + 0.1 * (A * h + x),
            name="h",
            mistakes={
                "the step size multiplies A h, but x is left without it": h + 0.1 * A * h + x,
                "this is the change alone; add it to the old state h": 0.1 * (A * h + x),
            },
        )
        return "the new state is the old one plus delta times the slope."

    @exercise("1.3", "When does Euler blow up?")
    def euler_limit(answer):
        choose(answer, "2.0", wrong={"1.0": "at 1.0 the state reaches 0 in one step, which is still stable"})
        return "beyond 2 / |a| each step overshoots by more than it corrects."

The first argument is the exercise's number in its notebook, the second its title there; the function's own name is the
one that notebooks call: `check.euler_step(euler_step)`. Names are unique in the whole course.

Whatever the answer is, the learner sees one line and never a traceback; an untouched stub is told so; the random state
is left as it was. Tests use `grade`, which neither prints nor records.
"""

__all__ = [
    "Exercise",
    "NotStarted",
    "Result",
    "Wrong",
    "call",
    "choose",
    "exercise",
    "exercises",
    "grade",
    "gradients",
    "match",
    "parts",
]

import importlib
import pkgutil
import random
import re
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from vimlearn.course import progress
from vimlearn.course.answers import call, gradients, parts, require_started
from vimlearn.course.compare import choose, match
from vimlearn.course.verdict import NOT_STARTED, NOT_YET, RIGHT, NotStarted, Result, Wrong, one_line
from vimlearn.errors import VimlearnError, nearest

_registry: dict[str, "Exercise"] = {}


class UnknownExercise(VimlearnError, AttributeError):
    """There is no exercise of this name. The message suggests the nearest one."""


@dataclass(frozen=True)
class Exercise:
    """One exercise and its check. Calling it prints the verdict on an answer in one line and records a right one."""

    name: str
    number: str
    title: str
    body: Callable[[object], str]

    @property
    def chapter(self) -> str:
        """The chapter's two digits, "01" for exercise 1.2."""
        return f"{int(self.number.split('.')[0]):02d}"

    def __call__(self, answer: object = None) -> None:
        result = self.grade(answer)
        print(result.line(f"Exercise {self.number}"))
        note = progress.record(self.name, result.status == RIGHT) if result.status != NOT_STARTED else None
        if note:
            print(note)

    def grade(self, answer: object) -> Result:
        """Return the verdict on `answer`, whatever kind of object it is; print and record nothing."""
        try:
            with _untouched_surroundings():
                require_started(answer)
                return Result(RIGHT, one_line(self.body(answer)))
        except NotStarted as stop:
            return Result(NOT_STARTED, one_line(stop))
        except Wrong as stop:
            return Result(NOT_YET, one_line(stop))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return Result(NOT_YET, one_line(f"the check cannot read this answer ({type(error).__name__}: {error})"))


def exercise(number: str, title: str) -> Callable[[Callable[[object], str]], Exercise]:
    """Turn the function below into the check of exercise `number` ("3.2"), called `title`; see this module's docstring.

    Raises:
        VimlearnError: the number is not of that form, or the number or the function's name is taken by another check.
    """
    if not re.fullmatch(r"\d{1,2}\.\d{1,2}", number):
        raise VimlearnError(f"exercise number '{number}' is not of the form '3.2'")

    def register(body: Callable[[object], str]) -> Exercise:
        made = Exercise(body.__name__, number, title, body)
        for other in _registry.values():
            # The same function read again, as after a reload, replaces itself.
            if other.body.__module__ == body.__module__ and other.name == made.name:
                continue
            if made.name == other.name or number == other.number:
                raise VimlearnError(
                    f"check '{made.name}' of exercise {number} clashes with '{other.name}' of {other.number}"
                )
        _registry[made.name] = made
        return made

    return register


def exercises() -> tuple[Exercise, ...]:
    """Return the exercises of all chapters that are there, in the order of their numbers."""
    package = importlib.import_module("vimlearn.course")
    for module in pkgutil.iter_modules(package.__path__):
        if re.fullmatch(r"chapter\d\d", module.name):
            importlib.import_module(f"vimlearn.course.{module.name}")
    return tuple(sorted(_registry.values(), key=lambda made: [int(part) for part in made.number.split(".")]))


def find(name: str) -> Exercise:
    """Return the exercise whose check is called `name`.

    Raises:
        UnknownExercise: there is none; it is a VimlearnError and an AttributeError.
    """
    known = {made.name: made for made in exercises()}
    if name not in known:
        raise UnknownExercise(f"there is no exercise '{name}'{nearest(name, known)}; dir(check) lists them all")
    return known[name]


def grade(name: str, answer: object) -> Result:
    """Return the verdict of the check `name` on `answer`; print nothing and leave the learner's progress alone."""
    return find(name).grade(answer)


@contextmanager
def _untouched_surroundings():
    """Silence warnings and put the random states back, so that a solved exercise changes no later cell."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
