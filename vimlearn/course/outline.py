"""The course at a glance: its chapters in reading order, and their map as an SVG picture."""

__all__ = ["CHAPTERS", "Chapter", "course_map_svg", "course_map_text"]

import textwrap
from dataclasses import dataclass
from html import escape

from vimlearn.errors import VimlearnError


@dataclass(frozen=True)
class Chapter:
    """One notebook: two digits, the topic in its file name, its title, its group, and "ready", "next" or "planned"."""

    number: str
    topic: str
    title: str
    group: str
    state: str = "ready"

    @property
    def file(self) -> str:
        """The notebook's file name."""
        return f"{self.number}_{self.topic}.ipynb"


CHAPTERS = (
    Chapter("01", "ssm_discretization", "State spaces in steps", "Foundation"),
    Chapter("02", "selective_scan", "The selective scan", "Foundation"),
    Chapter("03", "parallel_scan", "The parallel scan", "Foundation"),
    Chapter("04", "fused_kernel", "The fused kernel", "Foundation"),
    Chapter("05", "vim_block", "The Vim block", "Network"),
    Chapter("06", "vision_mamba", "The whole Vision Mamba", "Network"),
    Chapter("07", "imagenet_training", "Training on images", "Network"),
    Chapter("08", "activation_maps", "Activation maps", "Use"),
    Chapter("09", "speed_and_memory", "Speed and memory", "Use"),
    Chapter("10", "semantic_segmentation", "Semantic segmentation", "Use", "planned"),
    Chapter("11", "object_detection", "Object detection", "Use", "planned"),
)

# Pixels of the picture. It has a light card of its own, so it reads alike on white and on dark pages.
_LEFT, _TOP, _BOX_W, _BOX_H, _GAP_X, _GAP_Y = 142, 24, 172, 84, 22, 26
_BLUE, _INK, _GREY = "#0072B2", "#1b1b1b", "#5c5c5c"


def course_map_text(current: int | None = None) -> str:
    """Return the map's text alternative, one sentence that names the groups and the current chapter."""
    where = f"; you are at chapter {_chapter(current).number}, {_chapter(current).title}" if current is not None else ""
    return f"Course map: {len(CHAPTERS)} chapters in reading order, from foundation over network to use{where}."


def course_map_svg(current: int | None = None) -> str:
    """Draw the course map as SVG text, the same text every time.

    Chapters that are ready have a solid outline; the others are dashed and say "next" or "planned". The current chapter
    is filled, has a thick outline and says "you are here".

    Args:
        current: the number of the chapter to light, 1 to 11, or None for no chapter.

    Raises:
        VimlearnError: there is no such chapter.
    """
    lit = None if current is None else _chapter(current)
    groups = list(dict.fromkeys(chapter.group for chapter in CHAPTERS))
    rows = [[chapter for chapter in CHAPTERS if chapter.group == group] for group in groups]
    width = _LEFT + max(map(len, rows)) * (_BOX_W + _GAP_X) + 2
    height = 2 * _TOP + len(rows) * (_BOX_H + _GAP_Y) - _GAP_Y
    body = [_links(rows)]
    for y, (group, row) in enumerate(zip(groups, rows, strict=True)):
        body.append(_text(24, _corner(0, y)[1] + _BOX_H / 2 + 5, group, size=16, weight="bold", colour=_INK))
        body += [_box(*_corner(x, y), chapter, chapter is lit) for x, chapter in enumerate(row)]
    listed = ", ".join(f"{c.number} {c.title}" + (f" ({c.state})" if c.state != "ready" else "") for c in CHAPTERS)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            'style="max-width:100%;height:auto" role="img" aria-labelledby="map-title map-desc" '
            'font-family="DejaVu Sans, Verdana, Segoe UI, sans-serif">',
            f'<title id="map-title">{escape(course_map_text(current))}</title>',
            f'<desc id="map-desc">{escape(listed)}.</desc>',
            f'<rect x="1" y="1" width="{width - 2}" height="{height - 2}" rx="12" fill="#ffffff" stroke="#b5b5b5"/>',
            *body,
            "</svg>\n",
        ]
    )


def _chapter(number: int) -> Chapter:
    if isinstance(number, int) and 1 <= number <= len(CHAPTERS):
        return CHAPTERS[number - 1]
    raise VimlearnError(f"there is no chapter {number!r}; give a whole number from 1 to {len(CHAPTERS)}")


def _corner(x: int, y: int) -> tuple[int, int]:
    return _LEFT + x * (_BOX_W + _GAP_X), _TOP + y * (_BOX_H + _GAP_Y)


def _links(rows: list[list[Chapter]]) -> str:
    """One thin line through all boxes in reading order; it runs behind them."""
    points = []
    for y, row in enumerate(rows):
        left, top = _corner(0, y)
        right, middle = _corner(len(row) - 1, y)[0] + _BOX_W, top + _BOX_H // 2
        if y:
            points += [(left + _BOX_W // 2, top - _GAP_Y // 2), (left + _BOX_W // 2, middle)]
        points += [(left + _BOX_W // 2, middle), (right - _BOX_W // 2, middle)]
        if y + 1 < len(rows):
            points.append((right - _BOX_W // 2, top + _BOX_H + _GAP_Y // 2))
    path = " ".join(f"{x},{y}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{_GREY}" stroke-width="2"/>'


def _box(x: int, y: int, chapter: Chapter, lit: bool) -> str:
    ready = chapter.state == "ready"
    fill, stroke, ink = (_BLUE, _INK, "#ffffff") if lit else ("#ffffff", _BLUE if ready else _GREY, _INK)
    dash = "" if ready or lit else ' stroke-dasharray="6 4"'
    mark = "▶ you are here" if lit else "" if ready else chapter.state
    title = textwrap.wrap(chapter.title, 18)
    lines = [
        f'<rect x="{x}" y="{y}" width="{_BOX_W}" height="{_BOX_H}" rx="8" fill="{fill}" stroke="{stroke}" '
        f'stroke-width="{4 if lit else 2}"{dash}/>',
        _text(x + 12, y + 24, chapter.number, size=15, weight="bold", colour=ink if lit or not ready else _BLUE),
    ]
    if mark:
        style = {"weight": "bold", "colour": ink} if lit else {"colour": _GREY}
        lines.append(_text(x + _BOX_W - 12, y + 24, mark, size=12, end=True, **style))
    lines += [_text(x + 12, y + 47 + 19 * i, line, size=14, colour=ink) for i, line in enumerate(title)]
    return "\n".join(lines)


def _text(x, y, text: str, *, size: int, colour: str, weight: str = "normal", end: bool = False) -> str:
    anchor = ' text-anchor="end"' if end else ""
    style = f'font-size="{size}" font-weight="{weight}" fill="{colour}"'
    return f'<text x="{x:g}" y="{y:g}" {style}{anchor}>{escape(text)}</text>'
