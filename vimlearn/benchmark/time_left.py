"""A progress bar over comparisons whose cost grows from one to the next by orders of magnitude."""

__all__ = ["TimeLeft", "work"]

import time
from collections.abc import Sequence

from tqdm import tqdm

from .case import Case
from .counts import model_counts
from .models import Rules

# Seconds until the processes of a comparison have imported everything, and what an operation is taken to cost before
# one was timed.
START, OPERATION = 10.0, 2e-11
# Operations of ResNet-50 at 224 pixels.
RESNET = 8.2e9


def work(case: Case) -> float:
    """Return the operations of a call of a case, roughly: a training step counts as three forward passes."""
    counts = model_counts(case)
    forward = counts.flops(2) if counts else RESNET * (case.size / 224) ** 2
    return case.batch_size * forward * (3 if case.mode == "training" else 1)


class TimeLeft:
    """The bar. A comparison that is still to come is taken to cost what its operations cost at the rate of the last one
    of the same model.
    """

    def __init__(self, groups: Sequence[Sequence[Case]], rules: Rules, quiet: bool = False):
        self.waiting, self.rules, self.rates = list(groups), rules, {}
        self.start, self.here = time.perf_counter(), None
        self.bar = tqdm(total=1.0, disable=quiet,
                        bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed} gone{postfix}")

    def begin(self, group: Sequence[Case]) -> None:
        """Say that a comparison begins."""
        if group in self.waiting:
            self.waiting.remove(group)
        self.here = self._expected(group)
        case = group[0]
        self.bar.set_description_str(f"{case.size} pixels, batch {case.batch_size}, {case.dtype}, {case.mode}", False)
        self._show()

    def tick(self, case: Case, seconds: float, calls: int = 1) -> None:
        """Note that calls of a case took that long together."""
        self.rates[case.model] = seconds / calls / work(case)
        self.here = max(self.here - seconds, 0.0)
        self._show()

    def plan(self, seconds: float) -> None:
        """Note how long the turns of this comparison will take, which is known once all are warmed up."""
        self.here = seconds
        self._show()

    def left(self) -> float:
        """Return the seconds that are left, as far as one can tell."""
        return self.here + sum(self._expected(group) for group in self.waiting)

    def close(self) -> None:
        """Take the bar away."""
        self.bar.close()

    def _expected(self, group: Sequence[Case]) -> float:
        once = sum(work(case) * self.rates.get(case.model, OPERATION) for case in group)
        return START + 2 * once + self.rules.rounds_of(once) * once

    def _show(self) -> None:
        gone, left = time.perf_counter() - self.start, self.left()
        self.bar.n, self.bar.total = gone, gone + left
        self.bar.set_postfix_str(f"about {tqdm.format_interval(left)} left")
