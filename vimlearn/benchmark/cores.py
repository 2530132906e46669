"""Whether other programs used the processor while something was measured."""

__all__ = ["Cores"]

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

STAT = Path("/proc/stat")
# Fields of the first line of STAT that count time in which a core worked: user, nice, system, irq, softirq, steal.
WORKING = (1, 2, 3, 6, 7, 8)


class Cores:
    """Adds up, over turns, how long cores worked and how much of that was the contestant's own."""

    def __init__(self):
        self.wall = self.others = 0.0

    @contextlib.contextmanager
    def turn(self) -> Iterator[SimpleNamespace]:
        """Watch one turn. What is yielded wants `own` set: the contestant's processor time, seconds; None: skip it."""
        turn, start, busy = SimpleNamespace(own=None), time.perf_counter(), busy_seconds()
        yield turn
        if turn.own is not None and busy is not None:
            self.wall += time.perf_counter() - start
            self.others += busy_seconds() - busy - turn.own

    def elsewhere(self) -> float | None:
        """Return how many cores other programs used on average; None where the system does not say."""
        return max(self.others / self.wall, 0.0) if self.wall else None


def busy_seconds() -> float | None:
    """Return how long the machine's cores have worked since it started, seconds, all together; Linux only."""
    try:
        fields = STAT.read_text().split("\n", 1)[0].split()
        return sum(int(fields[i]) for i in WORKING if i < len(fields)) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None
