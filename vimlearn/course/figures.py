"""Pictures of the notebooks: one look, colours for all eyes, a caption as text under each and stored as its alt text.

Importing this module sets matplotlib's look for the course: colours, line styles that differ too (so that no line is
known by its colour alone), font sizes and grid. Name a colour with `COLORS["orange"]`, a diverging colour map with
`cmap=DIVERGING`.
"""

__all__ = ["COLORS", "DIVERGING", "STYLE", "course_map", "show", "write_course_map"]

import base64
import io
import re
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from IPython.display import display
from matplotlib import cycler
from matplotlib.figure import Figure
from PIL import Image

from vimlearn.course.outline import course_map_svg, course_map_text
from vimlearn.errors import VimlearnError

# Okabe and Ito, "Color universal design" (2008): distinguishable with every common kind of colour blindness.
COLORS = {
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "green": "#009E73",
    "orange": "#E69F00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "yellow": "#F0E442",
    "black": "#000000",
}
DIVERGING = "PuOr_r"

_LINES = ["-", "--", "-.", ":", (0, (6, 1, 1, 1)), (0, (1, 1))]
STYLE = {
    "axes.prop_cycle": cycler(color=list(COLORS.values())[: len(_LINES)]) + cycler(linestyle=_LINES),
    "image.cmap": "viridis",
    "figure.figsize": (7.0, 3.2),
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "lines.linewidth": 1.8,
    "legend.frameon": False,
}
_DPI = 110
_CAPTION_WORDS = (6, 40)

matplotlib.rcParams.update(STYLE)


def show(fig: Figure, caption: str) -> None:
    """Show `fig` in the notebook with `caption` as text under it and as alt text in its metadata, and close it.

    Args:
        fig: a matplotlib figure; keep it under about 9 inches wide.
        caption: 6 to 40 words that say what the picture shows, not what it is.

    Raises:
        VimlearnError: the caption is shorter or longer, or `fig` is not a figure.
    """
    if not isinstance(fig, Figure):
        raise VimlearnError(f"show needs a matplotlib figure, got {type(fig).__name__}; give ax.figure")
    _show_picture({"image/png": base64.b64encode(_png(fig)).decode("ascii")}, caption)
    plt.close(fig)


def course_map(current: int | None = None) -> None:
    """Show the course map with chapter `current` (1 to 11) lit; its text alternative stands under it.

    Raises:
        VimlearnError: there is no such chapter.
    """
    _show_picture({"image/svg+xml": course_map_svg(current)}, course_map_text(current))


def write_course_map(path: str | Path = "notebooks/images/course_map.svg") -> None:
    """Write the course map without a lit chapter to `path`, the picture in the README."""
    Path(path).write_text(course_map_svg(), encoding="utf-8", newline="\n")


def _show_picture(data: dict[str, str], caption: str) -> None:
    """Display a picture, then its caption as text of its own, because JupyterLab gives pictures no alt text."""
    caption = " ".join(caption.split())
    least, most = _CAPTION_WORDS
    if not least <= len(caption.split()) <= most:
        raise VimlearnError(f"the caption has {len(caption.split())} words, expected {least} to {most}: '{caption}'")
    alt = re.sub(r"[`*$]", "", caption)
    (kind,) = data
    # nbconvert looks for alt first beside the kind of picture, then at the top.
    metadata = {kind: {"alt": alt}, "alt": alt}
    display({**data, "text/plain": f"[picture] {alt}"}, metadata=metadata, raw=True)
    display({"text/markdown": f"**Figure.** {caption}", "text/plain": f"Figure. {alt}"}, raw=True)


def _png(fig: Figure) -> bytes:
    """Return the figure as a PNG of 256 colours, about a third of the size of one with all colours."""
    full = io.BytesIO()
    fig.savefig(full, format="png", dpi=_DPI, facecolor="white")
    picture = Image.open(full).convert("RGB")
    small = io.BytesIO()
    palette = picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    palette.save(small, format="png", optimize=True)
    return small.getvalue()
