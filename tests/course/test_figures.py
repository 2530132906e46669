"""Figures carry their caption twice, as text and as alt; the course map is one picture for notebooks and README."""

import base64
import io
import re
import struct
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from nbconvert import HTMLExporter
from PIL import Image

from vimlearn.course import figures
from vimlearn.course.figures import COLORS, course_map, show, write_course_map
from vimlearn.course.outline import CHAPTERS, course_map_svg, course_map_text
from vimlearn.errors import VimlearnError

ROOT = Path(__file__).parents[2]
CAPTION = "Two lines with `A_bar` that fall & rise, <both> slowly."
ALT = "Two lines with A_bar that fall & rise, <both> slowly."


@pytest.fixture
def displayed(monkeypatch):
    """Collect what would be shown, as notebook outputs."""
    outputs = []

    def display(data, metadata=None, raw=False):
        assert raw
        outputs.append(nbformat.v4.new_output("display_data", data=data, metadata=metadata or {}))

    monkeypatch.setattr(figures, "display", display)
    return outputs


@pytest.fixture
def figure():
    fig, ax = plt.subplots()
    ax.plot([1, 2], [3, 1])
    yield fig
    plt.close(fig)


def test_a_figure_has_its_caption_as_alt_and_as_text(displayed, figure):
    show(figure, CAPTION)
    picture, caption = displayed
    assert picture.metadata["image/png"]["alt"] == picture.metadata["alt"] == ALT
    assert caption.data["text/markdown"] == f"**Figure.** {CAPTION}"
    assert not plt.fignum_exists(figure.number)


def test_nbconvert_writes_the_alt_text_into_html(displayed, figure):
    show(figure, CAPTION)
    cell = nbformat.v4.new_code_cell("show(fig, caption)", outputs=displayed)
    html, _ = HTMLExporter(template_name="classic").from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    assert re.search(r'alt="Two lines with A_bar that fall &amp; rise, &lt;both&gt; slowly\."', html)


def test_a_figure_is_small_and_of_the_expected_size(displayed, figure):
    show(figure, CAPTION)
    png = base64.b64decode(displayed[0].data["image/png"])
    assert struct.unpack(">II", png[16:24]) == (770, 352)
    assert len(png) < 20_000
    assert Image.open(io.BytesIO(png)).mode == "P"


def test_the_same_figure_is_the_same_picture(displayed):
    for _ in range(2):
        fig, ax = plt.subplots()
        ax.imshow(np.arange(12).reshape(3, 4))
        show(fig, CAPTION)
    assert displayed[0] == displayed[2]


@pytest.mark.parametrize("count", [0, 5, 41])
def test_a_caption_of_too_few_or_many_words_is_refused(displayed, figure, count):
    with pytest.raises(VimlearnError, match=f"has {count} words, expected 6 to 40"):
        show(figure, "word " * count)
    assert not displayed


def test_something_else_than_a_figure_is_refused(figure):
    with pytest.raises(VimlearnError, match=r"needs a matplotlib figure, got Axes; give ax\.figure"):
        show(figure.axes[0], CAPTION)


def test_lines_differ_in_more_than_colour():
    cycle = list(plt.rcParams["axes.prop_cycle"])
    assert len({str(style["linestyle"]) for style in cycle}) == len({style["color"] for style in cycle}) == len(cycle)
    assert {style["color"] for style in cycle} <= set(COLORS.values())


@pytest.mark.parametrize("current", [None, *range(1, 12)])
def test_the_map_is_sound_and_says_everything_in_words(current):
    svg = course_map_svg(current)
    root = ET.fromstring(svg)
    space = {"s": "http://www.w3.org/2000/svg"}
    assert root.get("role") == "img"
    assert root.get("aria-labelledby").split() == [root.find(f"s:{tag}", space).get("id") for tag in ("title", "desc")]
    assert root.find("s:title", space).text == course_map_text(current)
    texts = [text.text for text in root.findall("s:text", space)]
    assert [text for text in texts if text in {c.number for c in CHAPTERS}] == [c.number for c in CHAPTERS]
    assert texts.count("▶ you are here") == (current is not None)
    lit = current if current is not None else 0
    for state in ("next", "planned"):
        assert texts.count(state) == sum(c.state == state and int(c.number) != lit for c in CHAPTERS)
    boxes = root.findall("s:rect", space)[1:]
    assert [int(i + 1) for i, box in enumerate(boxes) if box.get("stroke-width") == "4"] == [lit] * bool(lit)
    assert svg == course_map_svg(current)


@pytest.mark.parametrize("wrong", [0, 12, "2", 1.0, -1])
def test_a_chapter_that_is_not_there_is_refused(wrong):
    with pytest.raises(VimlearnError, match=r"there is no chapter .* from 1 to 11"):
        course_map_svg(wrong)


def test_every_title_fits_its_box():
    for chapter in CHAPTERS:
        words = chapter.title.split()
        assert max(map(len, words)) <= 18 and len(chapter.title) <= 36


def test_chapters_are_numbered_in_reading_order():
    assert [chapter.number for chapter in CHAPTERS] == [f"{i:02d}" for i in range(1, len(CHAPTERS) + 1)]
    assert CHAPTERS[0].file == "01_ssm_discretization.ipynb"


def test_the_map_is_shown_with_its_text(displayed):
    course_map(2)
    picture, caption = displayed
    assert picture.data["image/svg+xml"] == course_map_svg(2)
    assert picture.metadata["image/svg+xml"]["alt"] == course_map_text(2)
    assert "you are at chapter 02" in caption.data["text/plain"]


def test_the_stored_map_is_the_drawn_one(tmp_path):
    write_course_map(tmp_path / "map.svg")
    stored = ROOT / "notebooks" / "images" / "course_map.svg"
    assert stored.read_bytes() == (tmp_path / "map.svg").read_bytes(), (
        'run: python -c "from vimlearn.course.figures import write_course_map; write_course_map()"'
    )
