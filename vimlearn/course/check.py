"""All checks of the course by name: `from vimlearn.course import check`, then `check.euler_step(euler_step)`."""

from vimlearn.course.exercise import Exercise, exercises, find


def __getattr__(name: str) -> Exercise:
    if name.startswith("__"):
        raise AttributeError(name)
    return find(name)


def __dir__() -> list[str]:
    return [made.name for made in exercises()]
