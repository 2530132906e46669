"""Model against model: contestants that take turns, each in a process of its own.

    from vimlearn.benchmark.models import Rules, compare
    rows = compare(["vim-ti", "deit-ti-fused", "deit-ti-plain"], size=224, rules=Rules(budget=10))

Each process builds its network and warms it up. The second call gives its peak memory. Then the contestants take
turns: in every round each runs once, so that a busy moment of the machine meets all of them. A row holds the median
time of a call, its spread, and the median over rounds of the ratio to the first contestant in the same round.
A contestant that runs out of memory, or whose process is ended, becomes a row that says so; the others go on.
"""

__all__ = ["Rules", "Watch", "compare", "measure"]

import contextlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..errors import VimlearnError
from .case import Case, check
from .cores import Cores
from .worker import Broken, Worker

OK, TOO_SLOW = "ok", "too slow"
GIGABYTE = 1e9


@dataclass(frozen=True)
class Rules:
    """How contestants are measured.

    rounds, least_rounds: turns of each, at most and at least, whatever the budget says. budget: seconds that the turns
    of one comparison may take together. turn: seconds that calls are repeated for in a turn of a quick contestant.
    longest: a contestant whose second call takes more seconds than this is not called again. memory_limit: gigabytes
    that a contestant may hold above what its process holds before the network is there. threads: of each, None: as
    PyTorch chooses.
    """

    rounds: int = 15
    least_rounds: int = 3
    budget: float = 60.0
    turn: float = 0.2
    longest: float = 120.0
    memory_limit: float | None = None
    threads: int | None = None

    def __post_init__(self):
        for name in ("rounds", "least_rounds", "budget", "turn", "longest", "memory_limit", "threads"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise VimlearnError(f"{name} is {value}; expected more than 0")

    def rounds_of(self, seconds: float) -> int:
        """Return how many rounds a comparison has, if a round takes that many seconds."""
        return max(min(self.rounds, int(self.budget / seconds)), min(self.least_rounds, self.rounds))


class Watch:
    """Is told of the progress of a comparison; this one does nothing with it."""

    def tick(self, case: Case, seconds: float, calls: int) -> None:
        """Calls of a case took that many seconds together."""

    def plan(self, seconds: float) -> None:
        """The turns will take that many seconds."""


@dataclass
class Contender:
    """A contestant in a comparison. known: what its process has answered so far. times: seconds of a call, by round."""

    case: Case
    worker: Worker
    status: str = OK
    why: str = ""
    known: dict = field(default_factory=dict)
    times: list[float] = field(default_factory=list)

    def ask(self, command: str, **arguments) -> dict | None:
        """Return the answer of the process, or None if it cannot go on; then `status` says why."""
        if self.status != OK:
            return None
        try:
            return self.worker.ask(command, **arguments) if command != "wait" else self.worker.wait()
        except Broken as end:
            self.status, self.why = end.status, end.why
            self.worker.close()
            return None


def compare(models: Sequence[str], size: int, rules: Rules = Rules(), **settings) -> list[dict]:
    """Measure models against each other at one size and return a row each, the ratios to the first model.

    settings: other fields of `Case`, as in batch_size=8, dtype="bfloat16", mode="training".
    Raises VimlearnError on an unknown model and on sizes that do not fit.
    """
    cases = [Case(model, size, **settings) for model in models]
    check(cases)
    return measure(cases, rules)


def measure(cases: Sequence[Case], rules: Rules = Rules(), start: Callable = Worker,
            watch: Watch | None = None) -> list[dict]:
    """Measure cases that are to be compared and return a row each, the ratios to the first case.

    Arguments: start, what makes the process of a case; watch, what is told of the progress.
    """
    watch = watch or Watch()
    limit = rules.memory_limit and rules.memory_limit * GIGABYTE
    with contextlib.ExitStack() as stack:
        contenders = []
        for case in cases:
            worker = start(case, limit, rules.threads)
            stack.callback(worker.close)
            contenders.append(Contender(case, worker))
        # All import at the same time; from here on only one works.
        for contender in contenders:
            contender.known |= contender.ask("wait") or {}
        for contender in contenders:
            _warm_up(contender, rules, watch)
        cores = Cores()
        _take_turns(contenders, rules, watch, cores)
        return [_row(contender, contenders[0], cores.elsewhere()) for contender in contenders]


def _warm_up(contender: Contender, rules: Rules, watch: Watch) -> None:
    for command in ("load", "warm_up", "again"):
        answer = contender.ask(command)
        if answer is None:
            return
        contender.known |= answer
        if "seconds" in answer:
            watch.tick(contender.case, answer["seconds"], 1)
    if contender.known["seconds"] > rules.longest:
        contender.status, contender.why = TOO_SLOW, f"a call takes longer than {rules.longest:g} seconds"
        contender.times = [contender.known["seconds"]]


def _take_turns(contenders: list[Contender], rules: Rules, watch: Watch, cores: Cores) -> None:
    calls = {c.case: max(1, round(rules.turn / max(c.known["seconds"], 1e-6))) for c in contenders if c.status == OK}
    cost = sum(calls[c.case] * c.known["seconds"] for c in contenders if c.status == OK)
    rounds = rules.rounds_of(cost) if cost else 0
    watch.plan(rounds * cost)
    for _ in range(rounds):
        for contender in contenders:
            with cores.turn() as turn:
                answer = contender.ask("turn", calls=calls[contender.case]) if contender.case in calls else None
                turn.own = calls[contender.case] * answer["processor"] if answer else None
            if answer:
                contender.times.append(answer["seconds"])
                watch.tick(contender.case, calls[contender.case] * answer["seconds"], calls[contender.case])


def _row(contender: Contender, first: Contender, elsewhere: float | None) -> dict:
    case, known, times = contender.case, contender.known, contender.times
    row = {"model": case.model, "size": case.size, "tokens": case.tokens, "batch_size": case.batch_size,
           "dtype": case.dtype, "mode": case.mode, "pyramid": case.pyramid, "compiled": case.compiled,
           "device": case.device, "status": contender.status, "why": contender.why}
    if contender.status in (OK, TOO_SLOW):
        median = statistics.median(times)
        row |= {"median_ms": 1e3 * median, "fastest_ms": 1e3 * min(times), "slowest_ms": 1e3 * max(times),
                "spread": _spread(times), "rounds": len(times), "images_per_second": case.batch_size / median}
        if first.status in (OK, TOO_SLOW):
            row |= {"to": first.case.model, "ratio": statistics.median(
                mine / its for mine, its in zip(times, first.times, strict=False))}
    row |= {"peak_mb": known.get("peak_mb"), "parameters": known.get("parameters"), "cores_elsewhere": elsewhere}
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in row.items()}


def _spread(times: list[float]) -> float:
    """Return the distance of the quartiles as a share of the median."""
    if len(times) < 2:
        return 0.0
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return (high - low) / median
