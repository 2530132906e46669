"""The two kinds of plot that chapter 09 draws again and again: a value over the size of the image, and bars."""

__all__ = ["bars", "over_sizes"]

from collections.abc import Iterable, Mapping

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vimlearn.course.figures import COLORS

# Curves differ by mark too, in the order of `vimlearn.benchmark.figure`: Vim, fused attention, plain attention.
_MARKS = "os^Dv"


def over_sizes(curves: Mapping[str, Mapping[int, float]], ylabel: str, ticks: Iterable[int] | None = None,
               ax: Axes | None = None) -> Figure:
    """Return a figure with a line for each curve over the side of the image, both axes in logarithms.

    Args:
        curves: by name, the value at each size in pixels; one without values stands in the legend only.
        ylabel: what the values are, with their unit.
        ticks: the sizes that are written below; all of them by default.
        ax: axes to draw in; by default a figure is made.
    """
    ax = plt.subplots()[1] if ax is None else ax
    for (name, values), mark in zip(curves.items(), _MARKS, strict=False):
        ax.plot(list(values), list(values.values()), marker=mark if len(values) < 12 else "", markersize=5, label=name)
    ax.set(xscale="log", yscale="log", xlabel="side of the image, pixels", ylabel=ylabel)
    ticks = sorted(set().union(*curves.values())) if ticks is None else list(ticks)
    ax.set_xticks(ticks, [str(size) for size in ticks], fontsize=8)
    ax.xaxis.set_minor_locator(plt.NullLocator())
    ax.grid(axis="y")
    ax.legend(fontsize=8)
    return ax.figure


def bars(values: Mapping[str, float], xlabel: str, log: bool = False, lit: Iterable[str] = ()) -> Figure:
    """Return a figure with a horizontal bar for each value, the number beside it; `lit` names bars in vermilion."""
    fig, ax = plt.subplots(figsize=(7, 0.6 + 0.36 * len(values)))
    drawn = ax.barh(list(values), list(values.values()),
                    color=[COLORS["vermilion" if name in set(lit) else "blue"] for name in values])
    ax.bar_label(drawn, fmt=" %.3g", fontsize=9)
    ax.invert_yaxis()
    if log:
        ax.set(xscale="log", xlim=(min(values.values()) / 4, max(values.values()) * 4))
    else:
        ax.set_xlim(0, 1.12 * max(values.values()))
    ax.set_xlabel(xlabel)
    return fig
