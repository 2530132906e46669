"""Maps over their image: the right numbers in the right place, in colours with a bar, marks and a text."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from test_explain import images_for, vim

from vimlearn import VimlearnError, explain

PHOTO = Image.fromarray(np.arange(60 * 40 * 3, dtype=np.uint32).reshape(40, 60, 3).astype(np.uint8))
MAP = torch.tensor([[0.0, 1, 0], [0, -4, 3]])


def overlays(figure):
    """Return what lies over the image in each panel but the first, and what stands at the colour bar."""
    *panels, bar = figure.axes
    return [axes.images[1] for axes in panels[1:]], bar


@pytest.mark.parametrize("signed, limits, colours", [(True, (-4, 4), "PuOr_r"), (False, (0, 4), "viridis")])
def test_one_map_is_drawn_in_its_values(signed, limits, colours):
    figure = explain.draw(PHOTO, MAP if signed else MAP.abs(), signed=signed, unit="share", titles=["a map"])
    (drawn,), bar = overlays(figure)
    assert np.array_equal(drawn.get_array(), MAP if signed else MAP.abs())
    assert drawn.get_clim() == limits and drawn.get_cmap().name == colours
    assert drawn.get_extent() == [-0.5, 59.5, 39.5, -0.5] and 0.5 < drawn.get_alpha() < 0.8
    assert bar.get_ylabel() == "share" and bar.get_ylim() == limits
    assert figure.axes[0].images[0].get_array().shape == (40, 60, 3)
    assert [axes.get_title() for axes in figure.axes[:2]] == ["image", "a map"]
    assert np.allclose(figure.axes[0].images[0].get_array() * 255, np.asarray(PHOTO))
    # The picture below is grey.
    assert figure.axes[1].images[0].get_array().shape == (40, 60)


def test_the_colours_of_the_file_are_where_the_map_is(tmp_path):
    grey = np.full((30, 30, 3), 128, np.uint8)
    figure = explain.draw(grey, torch.tensor([[0.0, 1], [0, 0]]))
    figure.savefig(tmp_path / "x.png", dpi="figure")
    x0, y0, x1, y1 = figure.axes[1].get_window_extent().extents
    pixels = np.asarray(Image.open(tmp_path / "x.png").convert("RGB")).astype(int)
    bottom = len(pixels)
    at = {place: pixels[int(bottom - y1 + (y1 - y0) * row), int(x0 + (x1 - x0) * column)]
          for place, row, column in (("loud", 0.25, 0.75), ("quiet", 0.25, 0.25), ("below", 0.75, 0.75))}
    # Viridis: yellow is the largest, violet 0.
    assert at["loud"][0] > 180 and at["loud"][2] < 110
    assert at["quiet"][2] > at["quiet"][1] and np.array_equal(at["quiet"], at["below"])


def test_several_maps_each_have_their_own_scale():
    maps = torch.stack([MAP, 100 * MAP, 0 * MAP])
    figure = explain.draw(PHOTO, maps, signed=True, titles="abc", columns=3)
    drawn, bar = overlays(figure)
    assert [one.get_clim() for one in drawn] == [(-4, 4), (-400, 400), (-1, 1)]
    assert [label.get_text() for label in bar.get_yticklabels()] == ["−largest\n|value|\nof each", "0",
                                                                     "largest\n|value|\nof each"]
    assert [axes.get_title() for axes in figure.axes[:-1]] == ["image", "a", "b", "c"]


def test_scales_from_the_smallest_value_and_cut_at_a_percentile():
    values = torch.arange(1.0, 101).view(10, 10)
    assert overlays(explain.draw(PHOTO, values, from_zero=False))[0][0].get_clim() == (1, 100)
    cut = overlays(explain.draw(PHOTO, values, percentile=50))[0][0].get_clim()
    assert cut == (0, 50.5)
    assert overlays(explain.draw(PHOTO, torch.ones(2, 2), from_zero=False))[0][0].get_clim() == (0, 1)


def test_images_in_other_forms():
    array = np.asarray(PHOTO)
    for same in (array, array / 255, torch.tensor(array).permute(2, 0, 1), torch.tensor(array / 255).permute(2, 0, 1)):
        shown = explain.draw(same, MAP).axes[0].images[0].get_array()
        assert np.allclose(shown * 255, array)


def test_nothing_is_left_open():
    before = plt.get_fignums()
    explain.draw(PHOTO, MAP)
    assert plt.get_fignums() == before


@pytest.mark.parametrize("settings, area", [
    ({}, (0, 0, 1, 1)), ({"img_size": (8, 16)}, (0, 0, 1, 1)), ({"img_size": 14}, (0, 0, 12 / 14, 12 / 14)),
    # 5 patches of 4 pixels with steps of 2: middles from 2 to 10 pixels.
    ({"stride": 2}, (1 / 12, 1 / 12, 11 / 12, 11 / 12))])
def test_patches_lie_where_the_network_cuts_them(settings, area):
    assert explain.patch_area(vim(**settings)) == pytest.approx(area)


@pytest.mark.parametrize("settings, class_place, patch_of_5", [
    ({}, (1 / 3, 0.5), (1, 1)), ({"class_token": "first"}, (0, 1 / 6), (1, 1)),
    ({"class_token": None, "global_pool": "avg"}, None, (1, 2))])
def test_marks(settings, class_place, patch_of_5):
    model = vim(**settings)
    row, column = patch_of_5
    mark = explain.query_mark(model, 5)
    assert (mark.x, mark.y, mark.width, mark.height) == pytest.approx((column / 3, row / 3, 1 / 3, 1 / 3))
    assert explain.query_mark(model, (row, column)) == mark
    # In front of the class token too, where there is one in the middle.
    assert explain.query_mark(model, (1, 0)).y == pytest.approx(1 / 3)
    assert explain.query_mark(model, (1, 0)).x == pytest.approx(0)
    if class_place is None:
        with pytest.raises(VimlearnError, match="no class token"):
            explain.class_token_mark(model)
        return
    mark = explain.class_token_mark(model)
    assert (mark.x, mark.y, mark.width) == (*map(pytest.approx, class_place), 0)
    assert explain.query_mark(model).text == "query: class token" and explain.query_mark(model).x == mark.x


def test_marks_are_drawn_and_named():
    marks = [explain.Mark("query", 0.5, 0.5, 0.25, 0.25), explain.Mark("class token", 0, 0.5)]
    figure = explain.draw(PHOTO, MAP, marks=marks)
    for axes in figure.axes[:2]:
        (frame, _) = axes.patches
        assert frame.get_bbox().bounds == (29.5, 19.5, 15, 10)
        assert axes.lines[0].get_xydata().tolist() == [[-0.5, 19.5]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["query", "class token"]


@pytest.mark.parametrize("name", explain.METHODS)
def test_a_figure_for_every_method(name):
    model, known = vim(), explain.METHODS[name]
    images = images_for(model, 1)
    figure = explain.draw_method(model, PHOTO, explain.explain(model, images, name)[0], name, about="image a.jpg")
    (drawn,), bar = overlays(figure)
    assert known.title in figure.axes[1].get_title() and bar.get_ylabel() == known.unit
    assert (drawn.get_clim()[0] < 0) == known.signed
    text = figure.get_label()
    assert text.lower().startswith(known.title.lower())
    assert ", image a.jpg over the image in grey. It is largest" in text
    assert ("query" in text) == ("query" in known.options)
    if "layer" in known.options:
        every = explain.explain(model, images, name, layer="all")[:, 0]
        figure = explain.draw_method(model, PHOTO, every, name, layer="all", query=None)
        assert [axes.get_title() for axes in figure.axes[1:-1]] == ["layer 0", "layer 1", "layer 2"]
        assert ", 3 maps over" in figure.get_label()


def test_direction_and_class_token_are_shown():
    model = vim()
    maps = explain.explain(model, images_for(model, 1), "hidden", query=(0, 1), direction="forward")[0]
    figure = explain.draw_method(model, PHOTO, maps, "hidden", query=(0, 1), direction="forward")
    assert figure.axes[1].get_title() == "hidden attention, layer 2, forward"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["query", "class token"]


def test_the_alt_text_says_where_and_how_much():
    assert explain.alt_text(MAP, "A map", signed=True) == (
        "A map over the image in grey. It is largest in size, -4, in row 1, column 1 of 2 x 3; half of the total lies "
        "in 1 of 6 places; 17% of the values are below 0.")
    assert "it is 0 everywhere" in explain.alt_text(0 * MAP).lower()
    assert explain.alt_text(torch.stack([MAP, MAP.flip(1)]).abs(), "Two") == (
        "Two, 2 maps over the image in grey. First: largest, 4, in row 1, column 1. Last: largest, 4, in row 1, "
        "column 1.")
    assert explain.draw(PHOTO, MAP, alt="my own").get_label() == "my own"


@pytest.mark.parametrize("image, maps, titles, message", [
    (np.zeros((4, 4)), MAP, (), r"the image has shape \(4, 4\); expected a PIL image in RGB"),
    (torch.randn(3, 4, 4), MAP, (), "the image runs from .* expected uint8, or 0 to 1; normalised images have to be"),
    (PHOTO, torch.zeros(3), (), r"the maps have shape \(3,\); expected \(rows, columns\)"),
    (PHOTO, MAP / 0, (), "all finite"),
    (PHOTO, MAP, ("a", "b"), "there are 2 titles for 1 maps"),
])
def test_bad_input_is_said(image, maps, titles, message):
    with pytest.raises(VimlearnError, match=message):
        explain.draw(image, maps, titles=titles)
