"""Contestants that take turns, so that a busy moment of the machine meets all of them.

A time alone says little: machines differ, and other work on the same one comes and goes. So each contestant runs once
in each round, one of them is the yardstick, and a row holds the median time and the ratio to the yardstick. The ratio
is the median over rounds of the ratio within a round.
"""

__all__ = ["Contestant", "contest", "environment", "number", "write_rows"]

import csv
import datetime
import gc
import io
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from ..files import write_text


class Contestant(NamedTuple):
    """A name, and what is timed: a function of no arguments. `calls` in a row count as one turn."""

    name: str
    call: Callable[[], object]
    calls: int = 1


def contest(title: str, contestants: list[Contestant], yardstick: str, rounds: int, warmup: int = 2) -> list[dict]:
    """Let the contestants take turns, and return one row for each.

    Arguments: title: what is measured; yardstick: the name of the contestant that ratios are taken to; rounds: turns of
    each, after `warmup` turns that do not count.
    Returns rows with title, contestant, median, fastest and slowest time of a call in milliseconds, and the median over
    rounds of its time divided by the yardstick's in the same round.
    """
    times = {c.name: [] for c in contestants}
    bar = tqdm(total=(rounds + warmup) * len(contestants), desc=title, unit="turn", leave=False)
    for turn in range(rounds + warmup):
        for contestant in contestants:
            seconds = _one_turn(contestant)
            bar.update()
            if turn >= warmup:
                times[contestant.name].append(seconds)
    bar.close()
    return [{"what": title, "contestant": c.name, "median_ms": number(1e3 * statistics.median(times[c.name])),
             "fastest_ms": number(1e3 * min(times[c.name])),
             "slowest_ms": number(1e3 * max(times[c.name])),
             f"times_{yardstick}": number(statistics.median(
                 mine / base for mine, base in zip(times[c.name], times[yardstick], strict=True))),
             "rounds": rounds} for c in contestants]


def _one_turn(contestant: Contestant) -> float:
    gc.collect()
    start = time.perf_counter()
    for _ in range(contestant.calls):
        contestant.call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / contestant.calls


def number(x: float, digits: int = 4) -> str:
    """Return a number with so many digits that count, and a large one whole: 7188, 85400, where %g says 8.54e+04."""
    return f"{x:.0f}" if abs(x) >= 10**digits - 0.5 else f"{x:.{digits}g}"


def environment(*packages: str, device: str = "auto") -> dict[str, str]:
    """Return what a row says of where it was measured: date, machine, threads, and versions of the given packages.

    device: "cpu" or "cuda", what the machine is named by. "auto": the GPU if there is one.
    """
    on_gpu = torch.cuda.is_available() and device != "cpu"
    machine = torch.cuda.get_device_name() if on_gpu else _processor()
    return {"date": datetime.date.today().isoformat(), "machine": machine, "threads": str(torch.get_num_threads()),
            "versions": " ".join(f"{name} {_version(name)}" for name in ("torch", *packages))}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    fields = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    vectors = [name for name in ("avx512f", "avx2", "asimd") if name in fields.get("flags", fields.get("Features", ""))]
    return f"{fields.get('model name', platform.machine())}, {os.cpu_count()} cores, {' '.join(vectors[:1])}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def write_rows(path: Path, rows: list[dict]) -> None:
    """Write rows as CSV, to a file aside that then takes the place of `path`; columns in order of first appearance.

    Raises VimlearnError where it cannot be written.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
