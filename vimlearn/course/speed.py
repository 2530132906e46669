"""The kinds of plot that chapter 09 draws again and again: a value over the size of the image, bars, and dots."""

__all__ = ["bars", "dots", "over_sizes"]

from collections.abc import Iterable, Mapping

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vimlearn.course.figures import COLORS

# Curves differ by mark too, in the order of `vimlearn.benchmark.figure`: Vim, fused attention, plain attention.
_MARKS = "os^Dv"


def over_sizes(curves: Mapping[str, Mapping[int, float]], ylabel: str, ticks: Iterable[int] | None = None,
               ax: Axes | None = None, formats: Mapping[str, str] | None = None) -> Figure:
    """Return a figure with a line for each curve over the side of the image, both axes in logarithms.

    Args:
        curves: by name, the value at each size in pixels; one without values stands in the legend only.
        ylabel: what the values are, with their unit.
        ticks: the sizes that are written below; all of them by default.
        ax: axes to draw in; by default a figure is made.
        formats: by name, colour, mark and line of curves that are not to take the next ones, as in "C2^--".
    """
    ax = plt.subplots()[1] if ax is None else ax
    for (name, values), mark in zip(curves.items(), _MARKS, strict=False):
        look = [formats[name]] if formats and name in formats else []
        marker = {} if look else {"marker": mark if len(values) < 12 else ""}
        ax.plot(list(values), list(values.values()), *look, **marker, markersize=5, label=name)
    ax.set(xscale="log", yscale="log", xlabel="side of the image, pixels", ylabel=ylabel)
    ticks = sorted(set().union(*curves.values())) if ticks is None else list(ticks)
    ax.set_xticks(ticks, [str(size) for size in ticks], fontsize=8)
    ax.xaxis.set_minor_locator(plt.NullLocator())
    ax.grid(axis="y")
    ax.legend(fontsize=8)
    return ax.figure


def bars(values: Mapping[str, float], xlabel: str, lit: Iterable[str] = ()) -> Figure:
    """Return a figure with a horizontal bar from 0 for each value, the number beside it; `lit` names vermilion bars."""
    fig, ax = plt.subplots(figsize=(7, 0.6 + 0.36 * len(values)))
    drawn = ax.barh(list(values), list(values.values()),
                    color=[COLORS["vermilion" if name in set(lit) else "blue"] for name in values])
    ax.bar_label(drawn, fmt=" %.3g", fontsize=9)
    ax.invert_yaxis()
    ax.set(xlabel=xlabel, xlim=(0, 1.12 * max(values.values())))
    return fig


def dots(values: Mapping[str, float], xlabel: str) -> Figure:
    """Return a figure with a dot for each value on a logarithmic axis, where bars have no length; numbers beside."""
    fig, ax = plt.subplots(figsize=(7, 0.6 + 0.36 * len(values)))
    ax.plot(list(values.values()), range(len(values)), "o", markersize=8)
    for row, value in enumerate(values.values()):
        ax.annotate(f"{value:.3g}", (value, row), (9, 0), textcoords="offset points", va="center", fontsize=9)
    ax.set_yticks(range(len(values)), list(values))
    ax.set(xscale="log", xlabel=xlabel, xlim=(min(values.values()) / 4, max(values.values()) * 4),
           ylim=(len(values) - 0.5, -0.5))
    ax.grid(axis="x")
    return fig
