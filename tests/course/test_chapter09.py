"""Chapter 09: plausible wrong answers are named."""

import math
import statistics

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import to_hex

from vimlearn.course.speed import bars, dots, over_sizes


def test_implied_memory(rejected):
    assert rejected("implied_memory", 11.14 / 0.868, "left after")
    assert rejected("implied_memory", 11.14 * 1.868, "more than 11.14")
    assert rejected("implied_memory", 11.14 * 0.132, "13.2 % of 11.14")
    assert rejected("implied_memory", 82.0, "close")


def test_layer_multiply_adds(rejected):
    assert rejected("layer_multiply_adds", lambda l, d: (8 * l * d * d, 2 * l * l * d), "4 l d^2 are missing")
    assert rejected("layer_multiply_adds", lambda l, d: (4 * l * d * d, 2 * l * l * d), "attention's own maps")
    assert rejected("layer_multiply_adds", lambda l, d: (24 * l * d * d, 4 * l * l * d), "as one")
    assert rejected("layer_multiply_adds", lambda l, d: (12 * l * d * d, l * l * d), "there are two")
    assert rejected("layer_multiply_adds", lambda l, d: (12 * l * d * d, 2 * l * d), "l^2 pairs")
    assert rejected("layer_multiply_adds", lambda l, d: (2 * l * l * d, 12 * l * d * d), "exchanged")
    assert rejected("layer_multiply_adds", lambda l, d: 12 * l * d * d + 2 * l * l * d, "2 values")


def tile(m, s, o, scores, values, *, remembers=True, rescales_sum=True, rescales_output=True, shifted=True,
         divided=False):
    """Add the keys of a tile one after the other, with the mistakes that are asked for."""
    new = scores.max(1).values
    new = torch.where(m > new, m, new) if remembers else new
    factor = (m - new).exp()
    s, o = s * factor if rescales_sum else s, o * factor[:, None] if rescales_output else o
    for j in range(scores.shape[1]):
        weight = (scores[:, j] - new if shifted else scores[:, j]).exp()
        s, o = s + weight, o + weight[:, None] * values[j]
    return new, s, o / s[:, None] if divided else o


def test_add_tile(rejected):
    assert rejected("add_tile", lambda *x: tile(*x, remembers=False), "forgotten")
    assert rejected("add_tile", lambda *x: tile(*x, rescales_sum=False), "old sum", "multiply")
    assert rejected("add_tile", lambda *x: tile(*x, rescales_output=False), "old o", "multiply")
    assert rejected("add_tile", lambda *x: tile(*x, shifted=False), "not taken away")
    assert rejected("add_tile", lambda *x: tile(*x, divided=True), "do not divide yet")
    assert rejected("add_tile", lambda *x: tile(*x)[2], "3 values")

    def not_from_the_start(m, s, o, scores, values):
        return tile(m.clamp(min=0), s, o, scores, values) if m.isinf().any() else tile(m, s, o, scores, values)

    assert rejected("add_tile", not_from_the_start, "m starts at 0")

    def exponentials_first(m, s, o, scores, values):
        largest = torch.maximum(m, scores.max(1).values)
        kept, weights = m.exp() / largest.exp(), scores.exp() / largest.exp()[:, None]
        return largest, kept * s + weights.sum(1), kept[:, None] * o + weights @ values

    assert rejected("add_tile", exponentials_first, "before exp", "exceeds 1")


def test_fair_ratio(rejected):
    assert rejected("fair_ratio", lambda a, b: statistics.median(a) / statistics.median(b), "two medians")
    assert rejected("fair_ratio", lambda a, b: sum(x / y for x, y in zip(a, b, strict=True)) / len(a),
                    "mean of the ratios")
    assert rejected("fair_ratio", lambda a, b: statistics.median(y / x for x, y in zip(a, b, strict=True)),
                    "upside down")
    assert rejected("fair_ratio", lambda a, b: sorted(a)[0] / sorted(b)[0], "fastest")

    def ratios(a, b):
        return [x / y for x, y in zip(a, b, strict=True)]

    assert rejected("fair_ratio", lambda a, b: sorted(ratios(a, b))[len(a) // 2], "even number", "larger")
    assert rejected("fair_ratio", lambda a, b: statistics.median_low(ratios(a, b)), "even number", "smaller")


def test_crossing(rejected):
    assert rejected("crossing", lambda low, high, p, q: low + (high - low) * (1 - p) / (q - p), "logarithm of both")
    assert rejected("crossing", lambda low, high, p, q: low * (high / low) ** ((1 - p) / (q - p)), "ratios",
                    "logarithm too")
    assert rejected("crossing", lambda low, high, p, q: low + (high - low) * math.log(1 / p) / math.log(q / p), "sizes")
    assert rejected("crossing", lambda low, high, p, q: math.log(1 / p) / math.log(q / p), "share of the way")

    def from_the_wrong_end(low, high, p, q):
        return math.exp(math.log(high) - math.log(high / low) * math.log(1 / p) / math.log(q / p))

    assert rejected("crossing", from_the_wrong_end, "wrong end")


def test_a_curve_is_drawn_at_its_sizes_and_an_empty_one_is_named():
    figure = over_sizes({"a": {64: 1.0, 128: 2.0}, "b": {128: 3.0, 256: 4.0}, "none": {}}, "ms")
    (ax,) = figure.axes
    assert [list(map(tuple, line.get_xydata())) for line in ax.lines] == [[(64, 1), (128, 2)], [(128, 3), (256, 4)], []]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["64", "128", "256"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b", "none"]
    assert len({line.get_marker() for line in ax.lines}) == 3
    plt.close(figure)


def test_a_format_goes_before_the_order_of_the_curves():
    figure = over_sizes({"a": {64: 1.0, 128: 2.0}, "b": {64: 3.0, 128: 4.0}}, "ms", formats={"a": "C2^--"})
    first, second = figure.axes[0].lines
    assert (to_hex(first.get_color()), first.get_marker(), first.get_linestyle()) == ("#009e73", "^", "--")
    assert second.get_marker() == "s"
    plt.close(figure)


def test_bars_start_at_zero_and_say_their_numbers():
    figure = bars({"one": 0.5, "two": 1234.0}, "ms", lit=["two"])
    (ax,) = figure.axes
    assert [patch.get_width() for patch in ax.patches] == [0.5, 1234.0]
    assert [text.get_text().strip() for text in ax.texts] == ["0.5", "1.23e+03"]
    assert ax.patches[0].get_facecolor() != ax.patches[1].get_facecolor()
    assert ax.get_xscale() == "linear" and ax.get_xlim()[0] == 0
    plt.close(figure)


def test_dots_stand_on_a_logarithmic_axis_and_say_their_numbers():
    figure = dots({"one": 0.5, "two": 1234.0}, "ms")
    (ax,) = figure.axes
    assert [list(map(tuple, line.get_xydata())) for line in ax.lines] == [[(0.5, 0), (1234.0, 1)]]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["one", "two"]
    assert [text.get_text().strip() for text in ax.texts] == ["0.5", "1.23e+03"]
    assert ax.get_xscale() == "log" and not ax.patches
    plt.close(figure)
