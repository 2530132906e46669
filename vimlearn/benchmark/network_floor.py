"""What a Vim must cost on a CPU at least, part by part, and the share of that which is reached.

Each part is given the larger of two times, both measured here: its arithmetic at the best rate this CPU shows for that
kind, and its bytes at the rate of a plain copy of as many bytes. Matrix products run at the rate that large ones reach;
the scan takes its exponentials and multiply-adds, as `scan_floor` does them; norms and convolutions move their tensors
once. The parts run one after the other, so their times add up. Python, allocation and the hand-over between threads
cost nothing here; that is what makes it a floor.
"""

__all__ = ["Part", "floor_lines", "floor_rows", "parts"]

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from .case import Case, build, check
from .contest import Contestant, contest, number
from .counts import WIDTHS
from .scan_floor import scan_floor

NUMBER = 4
"""Bytes of a float32."""
DEPTH, STATES = 24, 16
# The parts that only move numbers.
MOVING = ("norm and residual sum", "convolutions")
# Side of the matrices whose product gives the rate.
LARGE = 2048


class Part(NamedTuple):
    """flops: of matrix products, a multiply-add as two. numbers: read and written. states: updates of a scan."""

    name: str
    flops: int = 0
    numbers: int = 0
    states: int = 0


def parts(size: int, width: int) -> list[Part]:
    """Return the parts of a Vim of that width for one image of that size, all layers together.

    l tokens, d wide, e = 2 d inside, r = d / 16 and n = 16. Source: `vimlearn.mixer`, whose kernels fuse what stands in
    one part here.
    """
    M = (size // 16) ** 2
    l, d, e, r = M + 1, width, 2 * width, width // 16
    per_layer = [
        Part(MOVING[0], numbers=4 * l * d),
        Part("projection in", 2 * l * d * 2 * e, l * (d + 2 * e) + 2 * d * e),
        Part(MOVING[1], numbers=3 * l * e),
        Part("projections to step, B, C", 2 * 2 * l * e * (r + 2 * STATES), 2 * l * (e + r + 2 * STATES)),
        Part("scans", 2 * 2 * l * r * e, l * (4 * e + 2 * (r + 2 * STATES)), 2 * l * e * STATES),
        Part("projection out", 2 * l * e * d, l * (e + d) + d * e)]
    layers = [Part(part.name, *(DEPTH * count for count in part[1:])) for part in per_layer]
    return [Part("patches", 2 * M * 768 * d, M * (768 + d)), *layers]


def floor_rows(model: str, sizes: tuple[int, ...], rounds: int = 9) -> list[dict]:
    """Time a network at each size beside the floor of its parts, and return rows as `contest` does, one a part too.

    Raises VimlearnError on a size that does not fit.
    """
    cases = [Case(model, size) for size in sizes]
    check(cases)
    rate = matrix_rate()
    return [row for case in cases for row in _one_size(case, rate, rounds)]


def floor_lines(rows: list[dict]) -> list[str]:
    """Return a sentence for each network: its time, its floor, and what the floor is made of."""
    found = []
    for what in dict.fromkeys(row["what"] for row in rows):
        ms = {row["contestant"]: float(row["median_ms"]) for row in rows if row["what"] == what}
        scans = ms["floor: scans"]
        moved = sum(ms[f"floor: {name}"] for name in MOVING)
        found.append(f"{what}: {number(ms['network'], 3)} ms, {ms['network'] / ms['floor']:.2f} times its floor of "
                     f"{number(ms['floor'], 3)} ms, which is scans {number(scans, 3)}, "
                     f"matrix products {number(ms['floor'] - scans - moved, 3)}, bytes {moved:.2g}")
    return found


def _one_size(case: Case, rate: float, rounds: int) -> list[dict]:
    width = WIDTHS[case.model.split("-")[1]]
    network, image = build(case), torch.randn(1, 3, case.size, case.size)
    what = f"{case.model}, 1 image of {case.size} pixels"
    measured, scans = contest(what, [Contestant("network", _without_gradients(network, image)), Contestant(
        "scans", lambda: _all_scans(case.tokens, 2 * width))], "network", rounds)
    times = {part.name: part_ms(part, rate, float(scans["median_ms"]), copy_rate) for part in parts(case.size, width)}
    total = sum(times.values())
    network_ms = float(measured["median_ms"])
    rows = [measured, {**_row(what, "floor", total, network_ms), "share_reached": f"{total / network_ms:.3f}"}]
    return rows + [_row(what, f"floor: {name}", ms, network_ms) for name, ms in times.items()]


def part_ms(part: Part, rate: float, scans_ms: float, copy: Callable[[int], float]) -> float:
    """Return the floor of one part, milliseconds.

    Arguments: rate, operations of matrix products a second; scans_ms, what the exponentials and multiply-adds of all
    scans take; copy, gives bytes a second for an amount of numbers.
    """
    arithmetic = 1e3 * part.flops / rate + (scans_ms if part.states else 0.0)
    layers = 1 if part.name == "patches" else DEPTH
    return max(arithmetic, 1e3 * NUMBER * part.numbers / copy(part.numbers // layers))


def _row(what: str, name: str, ms: float, network_ms: float) -> dict:
    return {"what": what, "contestant": name, "median_ms": f"{ms:.4g}", "times_network": f"{ms / network_ms:.3g}"}


def _without_gradients(network, image) -> Callable[[], None]:
    def call():
        with torch.no_grad():
            network(image)
    return call


def _all_scans(tokens: int, inner: int) -> None:
    for _ in range(2 * DEPTH):
        scan_floor(1, tokens, inner, STATES)


def matrix_rate(repeats: int = 9) -> float:
    """Return operations a second, a multiply-add as two, of a product of large float32 matrices."""
    left, right = torch.randn(LARGE, LARGE), torch.randn(LARGE, LARGE)
    return 2 * LARGE**3 / _seconds(lambda: left @ right, repeats)


def copy_rate(numbers: int, repeats: int = 9) -> float:
    """Return bytes a second, read and written, of a copy that reads and writes `numbers` together.

    A small copy stays in the caches, and so does what a small network moves.
    """
    source = torch.randn(max(numbers // 2, 1))
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source), repeats)


def _seconds(call: Callable, repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
