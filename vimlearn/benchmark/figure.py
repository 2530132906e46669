"""The figure of the paper's headline, from rows: speed and memory against the size of the image, both on log scales."""

__all__ = ["draw", "save_all"]

import math
from collections.abc import Iterable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

from ..errors import VimlearnError
from .case import label
from .summary import by_settings, models_of, title
from .worker import KILLED, OUT_OF_MEMORY

# Colours that differ for all eyes (Okabe and Ito), and marks and dashes that differ without colour.
LOOKS = {"vim": ("#0072B2", "o", "-"), "fused": ("#D55E00", "s", "--"), "plain": ("#009E73", "^", "-."),
         "resnet": ("#CC79A7", "D", ":")}

# Height of a plot and of a line of text in it, points, about.
PLOT, LINE = 190, 10.5


def draw(rows: Iterable[dict], heading: str = "") -> Figure:
    """Return a figure with two plots over the side of the image: images a second, and peak memory in MB.

    rows: of one comparison over sizes, one setting of everything but model and size. The first model is the one that
    ratios are written for, at the largest size. A cross stands, above all points, where a model ran out of memory.
    """
    by_model = models_of(rows)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, column, what in zip(figure.subplots(1, 2), ("images_per_second", "peak_mb"),
                                  ("images a second", "peak memory, MB"), strict=True):
        _lines(axes, by_model, column)
        _scales(axes, sorted({row["size"] for found in by_model.values() for row in found}), what)
        _make_room(axes, len(by_model))
        _write(axes, _ratios(axes, by_model, column))
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(heading, fontsize=10)
    return figure


def save_all(rows: Iterable[dict], table: Path) -> list[Path]:
    """Write a figure as PNG for each setting that has more than one size, beside the table, and return the paths.

    The first takes the name of the table, the next ones add -2, -3 and so on. Raises VimlearnError where one cannot be
    written.
    """
    several = [(settings, found) for settings, found in by_settings(rows).items()
               if len({row["size"] for row in found}) > 1]
    paths = [table.with_name(f"{table.stem}{f'-{i}' * (i > 1)}.png") for i in range(1, len(several) + 1)]
    for path, (settings, found) in zip(paths, several, strict=True):
        try:
            draw(found, title(settings)).savefig(path, dpi=150)
        except OSError as error:
            raise VimlearnError(f"cannot write {path}: {error}") from error
    return paths


def _lines(axes: Axes, by_model: dict, column: str) -> None:
    for number, (model, rows) in enumerate(by_model.items()):
        color, mark, dashes = _look(model)
        there = [(row["size"], row[column]) for row in rows if row.get(column)]
        axes.plot(*zip(*there, strict=True) if there else ([], []), color=color, marker=mark, linestyle=dashes,
                  label=label(model), markersize=5)
        for row in rows:
            if row["status"] in (OUT_OF_MEMORY, KILLED) and not row.get(column):
                # At the upper edge, which `_make_room` lifts above all points: it has no height.
                axes.plot(row["size"], 0.97 - 0.05 * number, "x", color=color, markersize=8,
                          transform=axes.get_xaxis_transform())


def _look(model: str) -> tuple[str, str, str]:
    family, *_, last = model.split("-")
    return LOOKS.get(family) or LOOKS[last]


def _ratios(axes: Axes, by_model: dict, column: str) -> list[tuple]:
    """Draw an arrow from each other model's last point to the first model's at that size.

    Returns what to write beside the arrows: (x, y, text, colour) each. Speeds are compared within rounds where there
    were rounds, as in the summary.
    """
    notes = []
    first, *others = by_model
    mine = {row["size"]: row[column] for row in by_model[first] if row.get(column)}
    for model in others:
        there = [row for row in by_model[model] if row.get(column) and row["size"] in mine]
        if there:
            row = there[-1]
            size, value = row["size"], row[column]
            low, high = sorted((value, mine[size]))
            axes.annotate("", (size, low), (size, high), arrowprops={"arrowstyle": "<->", "color": _look(model)[0]})
            if column == "peak_mb":
                said = f"{label(first)} takes\n{mine[size] / value:.3g} of it"
            else:
                said = f"{row['ratio'] if row.get('to') == first else mine[size] / value:.3g} ×"
            notes.append((size, math.sqrt(low * high), said, _look(model)[0]))
    return notes


def _write(axes: Axes, notes: list[tuple]) -> None:
    """Write (x, y, text, colour) beside its place each, and where that is taken, above the text that lies there."""
    low, high = axes.get_ylim()
    taken = 0
    for x, y, said, color in sorted(notes, key=lambda note: note[1]):
        at, half = PLOT * math.log(y / low, high / low), LINE / 2 * len(said.splitlines())
        middle = max(at, taken + half)
        axes.annotate(said, (x, y), (4, middle - at), color=color, textcoords="offset points", va="center", fontsize=8)
        taken = middle + half


def _scales(axes: Axes, sizes: list[int], what: str) -> None:
    axes.set(xscale="log", xlabel="side of the image, pixels", ylabel=what)
    axes.set_xticks(sizes, [str(size) for size in sizes], fontsize=8, rotation=45 if len(sizes) > 6 else 0)
    axes.xaxis.set_minor_formatter(NullFormatter())
    if any(len(line.get_xdata()) and line.get_marker() != "x" for line in axes.lines):
        # matplotlib has no log scale without a number on it.
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    if sizes:
        axes.set_xlim(sizes[0] / 1.08, sizes[-1] * 1.25)
    axes.grid(color="#dddddd")
    axes.spines[["top", "right"]].set_visible(False)


def _make_room(axes: Axes, models: int) -> None:
    """Lift the upper edge so that the crosses of that many models lie above all points."""
    if axes.get_yscale() == "log" and any(line.get_marker() == "x" for line in axes.lines):
        (low, high), free = axes.get_ylim(), min(0.05 * models, 0.5)
        axes.set_ylim(low, high * (high / low) ** (free / (1 - free)))
