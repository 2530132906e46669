"""Ctrl-C and SIGTERM end a run between two steps, not within one; and the processor threads of a run."""

__all__ = ["Request", "Stopped", "requests", "threads"]

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass
class Request:
    """The signal that asked the run to stop; 0 while none did.

    signal: what this process got, at any moment. agreed: what all processes knew of at their last step. They act on
    the latter alone: else one would stop, and the others would wait for it in the next step.
    """

    signal: int = 0
    agreed: int = 0


class Stopped(KeyboardInterrupt):
    """A run ended because it was asked to. `signal` is what asked; the text says what is on disk."""

    def __init__(self, number: int, text: str):
        super().__init__(text)
        self.signal = number


@contextmanager
def requests() -> Iterator[Request]:
    """Note the first Ctrl-C or SIGTERM instead of acting on it; a second Ctrl-C interrupts at once.

    Python lets only the main thread do this; in another thread signals stay as they are.
    """
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number, frame):
        if request.signal and number == signal.SIGINT:
            raise KeyboardInterrupt("interrupted within a step; the state before it is kept")
        request.signal = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            # None: it was set outside Python, and cannot be put back from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let PyTorch use `count` processor threads for a while; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
