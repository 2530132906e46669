"""What rows say: crossover, growth, sentences, warnings, the figure."""

import io
import math

import pytest

from vimlearn import VimlearnError
from vimlearn.benchmark import figure, published, summary
from vimlearn.benchmark.summary import crossover, exponent, lines, local_exponents


def row(model, size, ms, status="ok", **more):
    return {"model": model, "size": size, "tokens": (size // 16) ** 2 + 1, "batch_size": 1, "dtype": "float32",
            "mode": "inference", "pyramid": False, "compiled": False, "device": "cpu", "status": status, "why": "full",
            "median_ms": ms, "images_per_second": ms and 1e3 / ms, "spread": 0.0} | more


@pytest.mark.parametrize("sizes, ratios, expected", [
    ((100, 400), (0.5, 2.0), 200),
    ((100, 400, 500), (0.25, 4.0, 5.0), 200),
    ((100, 200, 300), (2.0, 3.0, 4.0), 100),
    ((100, 200), (0.5, 0.9), None),
    ((100, 200), (2.0, 0.9), None),
    ((100, 200, 800), (1.5, 0.5, 2.0), 400),
    ((100, 400, 500, 2000), (0.5, 2.0, 0.5, 2.0), 1000),
    ((100, 200), (0.5, 1.0), None),
    ((100, 200, 400), (0.5, 1.0, 2.0), 200),
    ((), (), None)])
def test_crossover_is_linear_in_logarithms_and_lasts_to_the_end(sizes, ratios, expected):
    assert crossover(sizes, ratios) == (expected and pytest.approx(expected))


@pytest.mark.parametrize("power", [1.0, 1.7, 2.0])
def test_exponent_of_a_power_is_that_power(power):
    amounts = [197, 1025, 6085]
    costs = [3 * x**power for x in amounts]
    assert exponent(amounts, costs) == pytest.approx(power)
    assert local_exponents(amounts, costs) == pytest.approx([power, power])


def test_exponent_is_the_least_squares_one():
    # Slopes 1 and 3 between points at equal distances: 2 in the middle.
    assert exponent([1, 10, 100], [1, 10, 10_000]) == pytest.approx(2)


def test_sentences_name_the_crossover_the_ratio_the_memory_and_the_growth():
    rows = [row("vim-ti", 256, 2.0, peak_mb=10.0), row("vim-ti", 1024, 32.0, peak_mb=50.0),
            row("deit-ti-fused", 256, 1.0, peak_mb=20.0), row("deit-ti-fused", 1024, 64.0, peak_mb=200.0)]
    text = "\n".join(lines(rows))
    assert "Vim-Ti is faster than DeiT-Ti, fused attention from 512 pixels on, 2.00 times at 1024" in text
    assert "its peak memory there is 25.0% (50 of 200 MB)" in text
    power = math.log(64) / math.log(4097 / 257)
    assert f"DeiT-Ti, fused attention: time grows like tokens to the power {power:.2f}" in text


def test_large_numbers_are_written_whole():
    rows = [row("vim-ti", 1248, 762.74, peak_mb=118.4), row("deit-ti-plain", 1248, 12_345.6, peak_mb=84_160.0)]
    assert "(118 of 84160 MB)" in "\n".join(lines(rows))
    assert [line.split()[-3::2] for line in summary.table(rows)[1:]] == [["762.7", "118"], ["12346", "84160"]]


def test_the_ratio_within_rounds_goes_before_that_of_the_medians():
    rows = [row("vim-ti", 256, 2.0), row("deit-ti-fused", 256, 3.0, ratio=1.25, to="vim-ti")]
    assert lines(rows)[1] == "  Vim-Ti is faster than DeiT-Ti, fused attention at 256 pixels, 1.25 times"


def test_the_cost_of_a_token_is_compared_with_the_papers_smallest_size():
    rows = [row("vim-ti", size, ms) for size, ms in ((512, 1025.0), (1024, 1.0), (1248, 3 * 6085.0))]
    assert "a token at 1248 pixels costs 3.00 times one at 512" in lines(rows)[1]
    assert "a token at 1248 pixels costs" in lines(rows[1:])[1] and "times one at 1024" in lines(rows[1:])[1]


def test_number_formats_are_compared_at_the_largest_size_that_both_have():
    rows = [row("vim-ti", 256, 2.0), row("vim-ti", 512, 8.0), row("vim-ti", 1024, 30.0),
            row("vim-ti", 256, 2.0, dtype="bfloat16"), row("vim-ti", 512, 5.0, dtype="bfloat16"),
            row("deit-ti-fused", 256, 2.0, dtype="bfloat16")]
    said = [line for line in lines(rows) if "as fast as" in line]
    assert said == ["Vim-Ti at 512 pixels, inference: bfloat16 is 1.60 times as fast as float32"]


def test_what_broke_is_said_and_not_compared():
    rows = [row("vim-ti", 256, 2.0), row("vim-ti", 512, 9.0), row("deit-ti-plain", 256, 3.0),
            row("deit-ti-plain", 512, None, "out of memory")]
    text = "\n".join(lines(rows))
    assert "DeiT-Ti, plain attention at 512 pixels: out of memory, full" in text and "at 256 pixels, 1.50 times" in text


def test_settings_are_kept_apart():
    rows = [row("vim-ti", 256, 2.0), row("vim-ti", 256, 1.0, dtype="bfloat16")]
    assert [line for line in lines(rows) if line.endswith(":")] == [
        "inference, cpu, batch 1, float32:", "inference, cpu, batch 1, bfloat16:"]


def test_warnings_name_other_programs_and_wide_spreads():
    rows = [row("vim-ti", 256, 2.0, cores_elsewhere=0.05, spread=0.1), row("vim-ti", 512, 2.0, cores_elsewhere=0.6),
            row("deit-ti-plain", 512, 2.0, cores_elsewhere=0.6), row("vim-ti", 1024, 2.0, spread=0.3)]
    crowded, wide = summary.warnings(rows)
    assert "512 pixels" in crowded and "other programs used 0.6 cores" in crowded
    assert "Vim-Ti at 1024 pixels: half of the times spread over 30%" in wide


def test_the_published_points_give_the_headline():
    assert published.largest_ratio() == pytest.approx(published.HEADLINE_SPEED, rel=0.01)
    vim, deit = (
        {p.size: p for p in published.PUBLISHED if p.model == model} for model in ("vim-ti", "deit-ti-plain"))
    assert sorted(vim) == sorted(deit) == [512, 640, 738, 1024, 1248]
    assert [round(deit[s].images_per_second) for s in sorted(deit)] == [347, 178, 112, 37, 18]
    assert [round(vim[s].images_per_second) for s in sorted(vim)] == [347, 195, 117, 81, 51]
    # Its GB have 2**30 bytes, ours 10**9.
    assert [row["peak_mb"] for row in published.rows() if row["size"] == 512] == pytest.approx([4896.3, 3564.8], 1e-4)
    # 86.8 % less than what DeiT would need at 1248 pixels, which is more than the 80 GB of the axis.
    assert 80 < vim[1248].memory / (1 - published.HEADLINE_MEMORY) < 85


def test_the_figure_has_a_line_a_model_a_ratio_and_a_cross_where_memory_ran_out():
    rows = sorted(published.rows(), key=lambda row: row["model"] != "vim-ti")
    speed, memory = figure.draw(rows, "published").axes
    assert [line.get_label() for line in speed.lines] == ["Vim-Ti", "DeiT-Ti, plain attention"]
    assert "2.82 ×" in [text.get_text() for text in speed.texts]
    crosses = [line for line in memory.lines if line.get_marker() == "x"]
    assert [line.get_xdata()[0] for line in crosses] == [1248]
    highest = max(y for line in memory.lines if line not in crosses
                  for y in memory.transData.transform(line.get_xydata())[:, 1])
    assert crosses[0].get_transform().transform(crosses[0].get_xydata())[0, 1] > highest
    assert "Vim-Ti takes\n0.203 of it" in [text.get_text() for text in memory.texts]
    assert (speed.get_xscale(), speed.get_yscale(), memory.get_yscale()) == ("log", "log", "log")


def test_the_figure_gives_the_ratio_within_rounds_as_the_summary_does():
    rows = [row("vim-ti", 512, 2.0, to="vim-ti", ratio=1.0), row("deit-ti-fused", 512, 5.0, to="vim-ti", ratio=2.25)]
    assert [text.get_text() for text in figure.draw(rows).axes[0].texts] == ["", "2.25 ×"]
    for one in rows:
        del one["ratio"], one["to"]
    assert figure.draw(rows).axes[0].texts[1].get_text() == "2.5 ×"


@pytest.mark.parametrize("near", [1.0, 1.09, 1.5])
def test_what_the_figure_says_of_two_models_that_are_alike_does_not_overlap(near):
    rows = [row(model, size, ms * size / 256, peak_mb=mb * size) for size in (256, 1248) for model, ms, mb in (
        ("vim-ti", 1.0, 1.0), ("deit-ti-fused", 5.0, 1.1), ("deit-ti-plain", 5.0 * near, 1.1 * near))]
    drawn = figure.draw(rows)
    drawn.savefig(io.BytesIO())
    for axes in drawn.axes:
        boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
        assert len(boxes) == 2 and not boxes[0].overlaps(boxes[1])


def test_figures_are_written_for_settings_with_several_sizes(tmp_path):
    rows = [row("vim-ti", 256, 2.0), row("vim-ti", 512, 2.0), row("vim-ti", 256, 1.0, dtype="bfloat16")]
    assert figure.save_all(rows, tmp_path / "t.csv") == [tmp_path / "t.png"]
    with pytest.raises(VimlearnError, match="cannot write"):
        figure.save_all(rows, tmp_path / "missing" / "t.csv")
