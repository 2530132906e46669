"""A run over many comparisons, which keeps what is finished: rows are written after each one."""

__all__ = ["place", "run"]

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from .case import PATCH, Case
from .contest import environment, write_rows
from .models import OK, Rules, measure
from .table import case_of
from .time_left import TimeLeft
from .worker import FAILED

# How much larger the next side is where sizes go on until something breaks.
STEP = 1.25


def place(device: str, threads: int | None = None) -> dict[str, str]:
    """Return date, machine, threads and versions, as every row has them."""
    where = environment("timm", "triton" if device == "cuda" else "numba", device=device)
    return where | ({"threads": str(threads)} if threads else {})


def run(groups: Sequence[list[Case]], rules: Rules, output: Path, where: dict[str, str], kept: Sequence[dict] = (),
        until_it_breaks: bool = False, quiet: bool = False, measure: Callable = measure) -> list[dict]:
    """Measure all groups, write `output` after each, and return all rows, the kept ones first.

    Arguments: groups, cases to be compared, in the order of their sizes; where, what `place` returns; kept, rows of an
    earlier run: a group that has them all is not measured again; until_it_breaks, whether to go on with larger images
    for as long as any model takes them. A model that broke is not tried with a larger image, and a row says so.
    """
    rows = list(kept)
    with contextlib.closing(TimeLeft(groups, rules, quiet)) as left:
        for group in _each(groups, rows, until_it_breaks):
            left.begin(group)
            if not {case_of(row) for row in rows}.issuperset(group):
                rows[:] = [row for row in rows if case_of(row) not in group]
                rows += [row | where for row in _compare(group, rows, rules, measure, left)]
                write_rows(output, rows)
    return rows


def _each(groups: Sequence[list[Case]], rows: list[dict], further: bool) -> Iterator[list[Case]]:
    """Yield the groups and then, if wanted, the largest of each setting with ever larger images."""
    yield from groups
    largest = {replace(group[0].settings, size=0): group for group in groups} if further else {}
    for group in largest.values():
        while group := [case for case in group if not _broken(case, rows)]:
            group = [replace(case, size=PATCH * round(STEP * case.size / PATCH)) for case in group]
            yield group


def _broken(case: Case, rows: list[dict]) -> dict | None:
    """Return the row that says that a case, or the same with a smaller image, broke; None if there is none.

    What failed for another reason than memory or time says nothing of larger images.
    """
    for row in rows:
        other = case_of(row)
        if row["status"] not in (OK, FAILED) and other.size <= case.size and replace(other, size=case.size) == case:
            return row
    return None


def _compare(group: list[Case], rows: list[dict], rules: Rules, measure: Callable, watch: TimeLeft) -> list[dict]:
    """Return the rows of a group, in its order: measured, or said to be broken at a smaller size already."""
    broken = {case: row for case in group if (row := _broken(case, rows))}
    tried = [case for case in group if case not in broken]
    found = dict(zip(tried, measure(tried, rules, watch=watch) if tried else (), strict=True))
    return [found[case] if case in found else _left_out(case, broken[case]) for case in group]


def _left_out(case: Case, row: dict) -> dict:
    identity = {"size": case.size, "tokens": case.tokens}
    return {name: row[name] for name in row if name in ("model", "batch_size", "dtype", "mode", "pyramid", "compiled",
            "device", "status")} | identity | {"why": f"not tried, after {row['size']} pixels"}
