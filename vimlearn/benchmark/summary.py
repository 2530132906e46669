"""What rows say, in numbers and in plain words: from which size on a model is faster, and how cost grows."""

__all__ = ["by_settings", "crossover", "exponent", "lines", "local_exponents", "models_of", "plain", "table", "title",
           "warnings"]

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

from .case import Case, label
from .contest import number
from .table import case_of

# The paper's smallest size, which the cost of a token is compared with, pixels.
REFERENCE = 512
# From here on a row is warned about: spread as a share of the median, and cores used by others.
WIDE_SPREAD, BUSY = 0.2, 0.1


def crossover(sizes: Sequence[float], ratios: Sequence[float]) -> float | None:
    """Return the size from which on ratios are above 1, up to the largest size; None if the last is not above 1.

    Between two sizes the logarithm of the ratio is taken to be linear in the logarithm of the size. The smallest size
    itself is returned if all are above 1. sizes: increasing; ratios: time of the other over time of ours.
    """
    pairs = list(zip(sizes, ratios, strict=True))
    if not pairs or pairs[-1][1] <= 1:
        return None
    for (low, below), (high, above) in reversed(list(pairwise(pairs))):
        if below <= 1:
            share = -math.log(below) / (math.log(above) - math.log(below))
            return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    return pairs[0][0]


def exponent(amounts: Sequence[float], costs: Sequence[float]) -> float:
    """Return p of the least-squares fit cost = c * amount**p in logarithms. It takes two different amounts."""
    return statistics.linear_regression([math.log(x) for x in amounts], [math.log(y) for y in costs]).slope


def local_exponents(amounts: Sequence[float], costs: Sequence[float]) -> list[float]:
    """Return the exponent between each two neighbours: 1 where twice the amount costs twice as much."""
    points = list(zip(amounts, costs, strict=True))
    return [exponent(*zip(first, second, strict=True)) for first, second in pairwise(points)]


def lines(rows: Iterable[dict]) -> list[str]:
    """Return what the rows say, sentence by sentence: each model against the first, over the sizes."""
    rows, found = list(rows), []
    for settings, mine in by_settings(rows).items():
        by_model = models_of(mine)
        first, *others = by_model
        found.append(f"{title(settings)}:")
        for other in others:
            found += _against(first, other, by_model[first], by_model[other])
        for model, its in by_model.items():
            found += _broken(model, its) + _growth(model, its)
    return found + _formats(rows)


def table(rows: Iterable[dict]) -> list[str]:
    """Return the rows as lines of a table: the few columns that a reader looks for."""
    found = [f"{'':36}{'ms':>9} {'spread':>7} {'ratio':>6} {'MB':>8}"]
    for row in rows:
        what = f"{row['size']:5} x{row['batch_size']:<3} {row['dtype']:9} {label(row['model'])}"
        if row.get("median_ms") is None:
            found.append(f"{what:44} {row['status']}")
            continue
        ratio, peak = ("" if row.get(name) is None else number(row[name], 3) for name in ("ratio", "peak_mb"))
        found.append(f"{what:44}{number(row['median_ms']):>9} {row['spread']:7.0%} {ratio:>6} {peak:>8}")
    return found


def plain(rows: Iterable[dict]) -> list[str]:
    """Return rows of a contest as lines: what, who, milliseconds, and the ratio."""
    rows, found = list(rows), []
    wide = [max((len(row[name]) for row in rows), default=0) for name in ("what", "contestant")]
    for row in rows:
        ratio = next((f"{value} times {key[6:]}" for key, value in row.items() if key.startswith("times_")), "")
        found.append(f"{row['what']:{wide[0]}} {row['contestant']:{wide[1]}} {row['median_ms']:>8} ms, {ratio}")
    return found


def warnings(rows: Iterable[dict]) -> list[str]:
    """Return a line for each comparison and row whose times are not to be trusted, and why."""
    found = []
    for row in rows:
        if (row.get("cores_elsewhere") or 0) > BUSY:
            found.append(f"{row['size']} pixels, {title(case_of(row))}: other programs used "
                         f"{row['cores_elsewhere']:.1f} cores meanwhile; stop them and measure again")
        elif (row.get("spread") or 0) > WIDE_SPREAD:
            found.append(f"{label(row['model'])} at {row['size']} pixels: half of the times spread over "
                         f"{row['spread']:.0%} of their median; trust ratios, not times")
    return list(dict.fromkeys(found))


def by_settings(rows: Iterable[dict]) -> dict[Case, list[dict]]:
    """Return rows by all that they share but for model and size."""
    found = defaultdict(list)
    for row in rows:
        found[replace(case_of(row), model="", size=0)].append(row)
    return dict(found)


def models_of(rows: Iterable[dict]) -> dict[str, list[dict]]:
    """Return rows by model, each in the order of the sizes."""
    found = defaultdict(list)
    for row in rows:
        found[row["model"]].append(row)
    return {model: sorted(mine, key=lambda row: row["size"]) for model, mine in found.items()}


def title(settings: Case) -> str:
    """Return in words what rows of one setting share."""
    extras = [", with a pyramid"] * settings.pyramid + [", compiled"] * settings.compiled
    return f"{settings.mode}, {settings.device}, batch {settings.batch_size}, {settings.dtype}{''.join(extras)}"


def _timed(rows: list[dict]) -> list[dict]:
    return [row for row in rows if row.get("median_ms")]


def _against(first: str, other: str, mine: list[dict], its: list[dict]) -> list[str]:
    """Compare two models at the sizes where both have times, by the ratio within rounds where there is one."""
    base = {row["size"]: row for row in _timed(mine)}
    both = [(row, base[row["size"]]) for row in _timed(its) if row["size"] in base]
    if not both:
        return []
    sizes = [row["size"] for row, _ in both]
    ratios = [row["ratio"] if row.get("ratio") and row.get("to") == first else row["median_ms"] / m["median_ms"]
              for row, m in both]
    at = crossover(sizes, ratios)
    us, them = label(first), label(other)
    if at is None:
        said = f"{us} is slower than {them} at {sizes[-1]} pixels, {1 / ratios[-1]:.2f} times"
    elif len(sizes) == 1:
        said = f"{us} is faster than {them} at {at} pixels, {ratios[-1]:.2f} times"
    elif at == sizes[0]:
        said = f"{us} is faster than {them} at every size from {sizes[0]} pixels on, {ratios[-1]:.2f} times at " \
               f"{sizes[-1]}"
    else:
        said = f"{us} is faster than {them} from {at:.0f} pixels on, {ratios[-1]:.2f} times at {sizes[-1]}"
    row, m = both[-1]
    if row.get("peak_mb") and m.get("peak_mb"):
        said += f"; its peak memory there is {m['peak_mb'] / row['peak_mb']:.1%} ({number(m['peak_mb'], 3)} of " \
                f"{number(row['peak_mb'], 3)} MB)"
    return [f"  {said}"]


def _broken(model: str, rows: list[dict]) -> list[str]:
    return [f"  {label(model)} at {row['size']} pixels: {row['status']}, {row['why']}"
            for row in rows if row.get("status", "ok") != "ok"]


def _growth(model: str, rows: list[dict]) -> list[str]:
    """Say how the cost of an image grows with its tokens."""
    timed = [row for row in _timed(rows) if row.get("tokens")]
    if len(timed) < 2:
        return []
    tokens, times = zip(*((row["tokens"], row["median_ms"]) for row in timed), strict=True)
    low, high = next((row for row in timed[:-1] if row["size"] == REFERENCE), timed[-2]), timed[-1]
    token = (high["median_ms"] / high["tokens"]) / (low["median_ms"] / low["tokens"])
    return [f"  {label(model)}: time grows like tokens to the power {exponent(tokens, times):.2f}, "
            f"{local_exponents(tokens, times)[-1]:.2f} at the end; a token at {high['size']} pixels costs {token:.2f} "
            f"times one at {low['size']}"]


def _formats(rows: Sequence[dict]) -> list[str]:
    """Say, at the largest size where there are both, what another number format than float32 does to the time."""
    times = {case_of(row): row["median_ms"] for row in _timed(rows)}
    found = {}
    for case in sorted(times, key=lambda case: case.size):
        plain = replace(case, dtype="float32")
        if case != plain and plain in times:
            found[replace(case, size=0)] = f"{label(case.model)} at {case.size} pixels, {case.mode}: {case.dtype} is " \
                f"{times[plain] / times[case]:.2f} times as fast as float32"
    return list(found.values())
