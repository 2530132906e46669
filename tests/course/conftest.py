"""Help for the tests of the chapters' checks."""

import pytest

from vimlearn.course import progress
from vimlearn.course.exercise import grade


@pytest.fixture(autouse=True)
def keeps_no_progress(monkeypatch):
    """Tests never read or write the learner's progress."""
    monkeypatch.setenv("VIMLEARN_PROGRESS", "off")
    monkeypatch.setattr(progress, "_attempts", {})


@pytest.fixture(scope="session")
def planted() -> dict[str, set[str]]:
    """The messages that `rejected` has seen in this session, for each check."""
    return {}


@pytest.fixture
def rejected(planted):
    """Return `rejected(name, answer, *words)`: the check says "not yet" and its message holds all the words.

    Where it does not, an AssertionError says what the check said instead.
    """

    def is_rejected(name: str, answer: object, *words: str) -> bool:
        result = grade(name, answer)
        assert result.status == "not yet", f"{name} took a wrong answer as {result.status}: {result.message}"
        missing = [word for word in words if word.lower() not in result.message.lower()]
        assert words and not missing, f"{name} does not say {missing}: {result.message}"
        planted.setdefault(name, set()).add(result.message)
        return True

    return is_rejected
