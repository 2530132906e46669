"""What a check can say about an answer: right, not yet, or not started, with a message of one line."""

__all__ = ["NOT_STARTED", "NOT_YET", "RIGHT", "NotStarted", "Result", "Wrong", "kind_of", "one_line"]

from dataclasses import dataclass

RIGHT = "right"
NOT_YET = "not yet"
NOT_STARTED = "not started"

_SYMBOLS = {RIGHT: "✓", NOT_YET: "✗", NOT_STARTED: "○"}
_LONGEST_LINE = 300


class Wrong(Exception):
    """Raised inside a check when the answer is not right. The message names the mistake in one line."""


class NotStarted(Exception):
    """Raised inside a check when the learner has not yet replaced the stub. The message says what to fill in."""


@dataclass(frozen=True)
class Result:
    """The verdict on one answer: `status` is "right", "not yet" or "not started", `message` is one line."""

    status: str
    message: str

    def line(self, title: str) -> str:
        """Return the printed line: symbol, the exercise's `title`, the status as a word, the message."""
        return f"{_SYMBOLS[self.status]} {title}, {self.status}: {self.message}"


def one_line(text: object) -> str:
    """Return `text` on a single line, cut after 300 characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= _LONGEST_LINE else line[: _LONGEST_LINE - 1] + "…"


def kind_of(value: object) -> str:
    """Name the type of `value` with its article, "a list" or "an int", without calling any of its methods."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return "a class"
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
