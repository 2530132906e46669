"""The most memory that a piece of work holds at once, above what the process held before it.

On Linux the kernel keeps the highest resident size of a process, and forgets it on request: so a call of a warmed-up
network can be measured alone. Elsewhere the highest size since the start is all there is; then the first call is the
one to measure, and it includes what is loaded on the way. On a GPU PyTorch counts what its tensors hold.
"""

__all__ = ["PeakMeter", "die_first", "give_back_freed", "limit_memory"]

import contextlib
import ctypes
import gc
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# What is written to FORGET so that the highest resident size starts anew (proc(5)).
HIGHEST_RESIDENT_SIZE = "5"
# Seconds between two looks at the memory of a process with a limit.
PAUSE = 0.02


class PeakMeter:
    """Measures peak memory between `start` and `stop`.

    device: "cpu" or "cuda". after_warmup: whether a call after the first can be measured, as it should be.
    """

    def __init__(self, device: str):
        self.device = device
        self.after_warmup = device == "cuda" or _can_forget()

    def start(self) -> None:
        """Begin: give freed memory back and note what is held now."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return
        give_back_freed()
        if self.after_warmup:
            FORGET.write_text(HIGHEST_RESIDENT_SIZE)
        self.before = _resident("VmRSS") if self.after_warmup else _highest_ever()

    def stop(self) -> int:
        """Return the most that was held since `start`, above what was held then, bytes."""
        if self.device == "cuda":
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - self.before
        highest = _resident("VmHWM") if self.after_warmup else _highest_ever()
        return max(highest - self.before, 0)


def give_back_freed() -> None:
    """Hand freed memory back to the system, with glibc; else what was freed hides what is allocated next."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _can_forget() -> bool:
    try:
        FORGET.write_text(HIGHEST_RESIDENT_SIZE)
        return _resident("VmHWM") > 0
    except (OSError, KeyError):
        return False


def _resident(field: str) -> int:
    lines = (line.split() for line in STATUS.read_text().splitlines())
    return 1024 * int({words[0]: words[1] for words in lines if len(words) > 1}[f"{field}:"])


def _highest_ever() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else 1024 * highest


def limit_memory(limit: float, over: Callable[[], object]) -> None:
    """Call `over` once this process holds more than `limit` bytes above what it holds now. Linux only.

    Looks come every 20 milliseconds, so a short peak above the limit can go unseen.
    """
    allowed = _resident("VmRSS") + limit

    def watch():
        while _resident("VmRSS") <= allowed:
            time.sleep(PAUSE)
        over()
    threading.Thread(target=watch, daemon=True).start()


def die_first() -> None:
    """Ask the system to end this process, and not another one, when memory runs out. Linux only."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{os.getpid()}/oom_score_adj").write_text("1000")
