"""One contestant at work: builds its network and does calls, as it is told.

The answers are plain dictionaries, so that the one who asks can sit in another process.
"""

__all__ = ["Runner", "is_out_of_memory"]

import time
from collections.abc import Callable

import torch

from ..training.memory import keep_freed_memory
from .case import Case, build
from .peak import PeakMeter
from .training_step import training_step

MEGABYTE = 1e6


class Runner:
    """The network of a case, and the four things that a benchmark does with it.

    make: what returns the call of a case and its network's parameters; for tests.
    """

    def __init__(self, case: Case, make: Callable[[Case], tuple[Callable, int]] | None = None):
        self.case, self.make, self.meter = case, make or prepare, PeakMeter(case.device)

    def load(self) -> dict:
        """Build the network. Answer: parameters, a count."""
        self.call, parameters = self.make(self.case)
        return {"parameters": parameters}

    def warm_up(self) -> dict:
        """Call once, which compiles what is compiled at first use. Answer: seconds; peak_mb where only the first call
        can be measured.
        """
        return self._measured(not self.meter.after_warmup)

    def again(self) -> dict:
        """Call a second time and measure its memory. Answer: seconds; peak_mb."""
        return self._measured(self.meter.after_warmup)

    def turn(self, calls: int) -> dict:
        """Call some times. Answer: seconds, and seconds of processor time, of one call."""
        if self.case.device == "cuda":
            # Memory was given back after the last turn, for the others, and is asked for again here.
            self.call()
        self._wait()
        start, processor = time.perf_counter(), time.process_time()
        for _ in range(calls):
            self.call()
        self._wait()
        spent = {"seconds": (time.perf_counter() - start) / calls,
                 "processor": (time.process_time() - processor) / calls}
        self._give_back()
        return spent

    def _measured(self, memory: bool) -> dict:
        if memory:
            self.meter.start()
        start = time.perf_counter()
        self.call()
        self._wait()
        answer = {"seconds": time.perf_counter() - start}
        answer |= {"peak_mb": self.meter.stop() / MEGABYTE} if memory else {}
        self._give_back()
        return answer

    def _give_back(self) -> None:
        """Leave the GPU's memory to the other contestants: PyTorch keeps what it has freed."""
        if self.case.device == "cuda":
            torch.cuda.empty_cache()

    def _wait(self) -> None:
        if self.case.device == "cuda":
            torch.cuda.synchronize()


def prepare(case: Case) -> tuple[Callable[[], object], int]:
    """Return what is timed for a case, a function of no arguments, and the parameters of its network, a count."""
    network = build(case)
    parameters = sum(p.numel() for p in network.parameters())
    dtype = getattr(torch, case.dtype)
    if case.mode == "training":
        keep_freed_memory()
        return training_step(network, case.batch_size, case.size, dtype, case.device), parameters
    images = torch.randn(case.batch_size, 3, case.size, case.size, device=case.device).to(dtype)

    def infer():
        with torch.no_grad():
            network(images)
    return infer, parameters


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out: PyTorch has no one type for it on the CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "not enough memory", "out of memory"))
