"""The processes that read images for another one."""

__all__ = ["leave_signals", "one_line", "shut_down"]

import os
import signal
from collections.abc import Iterable, Iterator

from .errors import VimlearnError

GRACE = 60
"""Seconds that a worker goes on after SIGTERM."""


def leave_signals(worker: int) -> None:
    """Let a worker of a DataLoader end with its owner: Ctrl-C, and the end of a job's time, reach all processes of a
    job, and the step under way still needs its images.

    Ctrl-C is left alone. After SIGTERM a worker goes on for GRACE seconds, or until the next one, by which PyTorch ends
    those that do not end themselves.
    """
    asked = []

    def note(number, frame):
        if asked:
            os._exit(0)
        asked.append(number)
        signal.alarm(GRACE)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, note)


def one_line(loader: Iterable) -> Iterator:
    """Yield what a DataLoader yields, and end its workers with it, unless they are to stay.

    A VimlearnError from a worker comes without the worker's traceback, which DataLoader puts into its text.
    """
    iterator = iter(loader)
    try:
        yield from iterator
    except VimlearnError as error:
        line = str(error).strip().splitlines()[-1]
        raise VimlearnError(line.removeprefix(f"{VimlearnError.__module__}.{VimlearnError.__name__}: ")) from error
    finally:
        if not getattr(loader, "persistent_workers", False):
            shut_down(iterator)


def shut_down(iterator: Iterator | None) -> None:
    """End the workers of an iterator of a DataLoader now. Whoever still refers to it would keep them, up to the end of
    the program and seconds beyond.
    """
    if hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()
