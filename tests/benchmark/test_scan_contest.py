"""The contest of scans: it takes part only who computes the same, and peers are asked for by name."""

import sys

import pytest

from vimlearn import VimlearnError
from vimlearn.benchmark import scan_contest
from vimlearn.benchmark.scan_contest import Sizes, agree, tensors

SMALL = Sizes(1, 5, 64, 4)


def test_rows_of_all_backends_and_the_floor():
    rows = scan_contest.scan_contest(SMALL, rounds=1)
    forward = {row["contestant"]: float(row["median_ms"]) for row in rows if row["what"].startswith("scan forward, ")}
    assert list(forward) == ["floor", "numba", "parallel", "loop"] and all(ms > 0 for ms in forward.values())
    assert [row["contestant"] for row in rows if "backward" in row["what"]] == ["numba", "parallel", "loop"]


def test_one_that_computes_something_else_is_refused_by_name():
    x = tensors(SMALL)
    scans = {"loop": (scan_contest._ours("loop"), x), "wrong": (lambda **t: scan_contest._ours("loop")(**t) + 1, x)}
    with pytest.raises(AssertionError, match="wrong: "):
        agree(scans)


def test_peers_that_are_not_there_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mambapy", None)
    with pytest.raises(VimlearnError, match=r"the peers are not installed .* or leave out --peers"):
        scan_contest.scan_contest(SMALL, rounds=1, peers=True)


@pytest.mark.parametrize("sizes", [Sizes(0), Sizes(e=100), Sizes(n=3)])
def test_sizes_that_the_floor_cannot_count_are_refused(sizes):
    with pytest.raises(VimlearnError, match="channels in multiples of"):
        scan_contest.scan_contest(sizes)
