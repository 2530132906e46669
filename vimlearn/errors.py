"""The one error type that this package raises for bad input."""

__all__ = ["VimlearnError", "nearest"]

import difflib
from collections.abc import Iterable


class VimlearnError(ValueError):
    """Something the caller gave does not fit. The message says what was wrong, what was expected and what to do."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `", did you mean 'x'?"` for the known word nearest to `word`, or an empty string where none is near."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean '{matches[0]}'?" if matches else ""
