"""A run over many comparisons: kept rows, resuming, sizes until it breaks, and what is refused before any work."""

from functools import partial
from pathlib import Path

import pytest
from fakes import workers

from vimlearn import VimlearnError, cli
from vimlearn.benchmark import models, session
from vimlearn.benchmark.case import groups
from vimlearn.benchmark.contest import write_rows
from vimlearn.benchmark.models import Rules
from vimlearn.benchmark.table import check_writable, finished, read_rows
from vimlearn.benchmark.time_left import TimeLeft, work

WHERE = {"date": "2026-11-25", "machine": "m", "threads": "1", "versions": "v"}
PAIR = ("vim-ti", "deit-ti-plain")


def run(path, sizes, kept=(), seconds=None, breaks=None, log=None, **more):
    measure = partial(models.measure, start=workers(seconds or {}, breaks, log))
    return session.run(groups(PAIR, size=sizes), Rules(**more.pop("rules", {})), path, WHERE, kept, quiet=True,
                       measure=measure, **more)


def test_the_table_comes_back_with_its_types(tmp_path):
    rows = run(tmp_path / "t.csv", (32, 64), breaks={("deit-ti-plain", 64): ("out of memory", "x", "again")})
    back = read_rows(tmp_path / "t.csv")
    assert len(back) == 4
    for row, again in zip(rows, back, strict=True):
        assert {k: v for k, v in again.items() if v is not None} == {
            k: v for k, v in row.items() if v not in (None, "")}


def test_rows_are_written_after_each_comparison_and_resuming_skips_them(tmp_path):
    path, log = tmp_path / "t.csv", []

    def stopped(cases, rules, watch):
        if cases[0].size == 64:
            raise KeyboardInterrupt
        return models.measure(cases, rules, workers({}), watch)
    with pytest.raises(KeyboardInterrupt):
        session.run(groups(PAIR, size=(32, 64)), Rules(), path, WHERE, quiet=True, measure=stopped)
    assert [row["size"] for row in read_rows(path)] == [32, 32]
    rows = run(path, (32, 64), finished(path, WHERE), log=log)
    assert {size for _, size, _ in log} == {64}
    assert [row["size"] for row in rows] == [32, 32, 64, 64] == [row["size"] for row in read_rows(path)]


def test_a_comparison_that_lacks_a_row_is_measured_again_as_a_whole(tmp_path):
    path = tmp_path / "t.csv"
    run(path, (32,))
    write_rows(path, read_rows(path)[:1])
    rows = run(path, (32,), finished(path, WHERE), seconds={"vim-ti": 3.0})
    assert [row["model"] for row in rows] == list(PAIR) and rows[1]["ratio"] == pytest.approx(1 / 3, rel=1e-3)


def test_a_model_that_broke_is_not_tried_with_larger_images(tmp_path):
    log = []
    breaks = {("deit-ti-plain", 64): ("out of memory", "x", "load")}
    rows = run(tmp_path / "t.csv", (32, 64, 128), breaks=breaks, log=log)
    assert [(row["size"], row["status"], row["why"]) for row in rows if row["model"] == "deit-ti-plain"] == [
        (32, "ok", ""), (64, "out of memory", "x"), (128, "out of memory", "not tried, after 64 pixels")]
    assert ("deit-ti-plain", 128, "load") not in log and ("vim-ti", 128, "turn") in log


def test_what_failed_otherwise_is_tried_again(tmp_path):
    log = []
    run(tmp_path / "t.csv", (32, 64), breaks={("deit-ti-plain", 32): ("failed", "x", "load")}, log=log)
    assert ("deit-ti-plain", 64, "turn") in log


def test_sizes_go_on_until_every_model_broke(tmp_path):
    rows = run(tmp_path / "t.csv", (224, 256), until_it_breaks=True, rules={"longest": 4.0},
               breaks={("deit-ti-plain", 320): ("killed", "x", "load")})
    ends = {model: [(row["size"], row["status"]) for row in rows if row["model"] == model] for model in PAIR}
    assert ends["deit-ti-plain"] == [(224, "ok"), (256, "ok"), (320, "killed")]
    # A call of 224 pixels takes a second here, and one of more than twice the side more than four.
    assert ends["vim-ti"][-2:] == [(400, "ok"), (496, "too slow")]


def test_rows_of_another_place_are_not_mixed_in(tmp_path):
    run(tmp_path / "t.csv", (32,))
    with pytest.raises(VimlearnError, match=r"holds rows with threads '1' and here it is '2'; .* another file"):
        finished(tmp_path / "t.csv", WHERE | {"threads": "2"})


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "\0\0"])
def test_a_file_that_is_no_table_is_refused(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(VimlearnError, match="is no table of this benchmark"):
        read_rows(tmp_path / "t.csv")


def test_a_table_with_a_broken_number_is_refused(tmp_path):
    run(tmp_path / "t.csv", (32,))
    text = (tmp_path / "t.csv").read_text()
    for old, new in ((",32,", ",large,"), (",False,", ",maybe,")):
        (tmp_path / "t.csv").write_text(text.replace(old, new))
        with pytest.raises(VimlearnError, match="is no table of this benchmark"):
            read_rows(tmp_path / "t.csv")


def test_the_place_of_the_table_is_tried_before_any_work(tmp_path):
    check_writable(tmp_path / "new" / "t.csv")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").touch()
    for path, words in ((tmp_path, "it is a folder"), (tmp_path / "file" / "t.csv", "cannot write")):
        with pytest.raises(VimlearnError, match=words):
            check_writable(path)


@pytest.fixture
def no_work(monkeypatch):
    monkeypatch.setattr(models, "measure", lambda *args, **more: pytest.fail("work was begun"))
    monkeypatch.setattr(session, "run", lambda *args, **more: pytest.fail("work was begun"))


@pytest.mark.parametrize("args, words", [
    (["--models", "vim-to"], "unknown model 'vim-to', did you mean 'vim-ti'?"),
    (["--models"], "there is no model to measure; expected at least one"),
    (["--sizes", "500"], "size 500 is not a multiple of the patch"),
    (["--sizes", "8"], "too small for Vim-Ti"),
    (["--rounds", "0"], "rounds is 0; expected more than 0"),
    (["--dtypes", "int8"], "invalid choice 'int8'"),
    (["--output", "."], "it is a folder"),
    (["--output", "there.csv"], "there.csv is there already; --resume goes on with it"),
    (["--output", "there.csv", "--resume"], "there.csv is no table of this benchmark"),
    (["--size", "32"], "unknown option --size, did you mean '--sizes'?"),
    (["skan"], "unknown part 'skan' of vimlearn bench, did you mean 'scan'?"),
    (["scan", "--channels", "7"], "channels in multiples of"),
    (["floor", "--sizes", "100"], "not a multiple of the patch"),
    (["floor", "--output", "there.csv/x.csv"], "cannot write there.csv/x.csv")])
def test_bad_input_is_one_line_before_any_work(capsys, tmp_path, monkeypatch, no_work, args, words):
    monkeypatch.chdir(tmp_path)
    Path("there.csv").write_text("a,b\n1,2\n")
    assert cli.main(["bench", *args]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("vimlearn: ") and err.count("\n") == 1 and words in err, err
    assert [path.name for path in tmp_path.iterdir()] == ["there.csv"]


def test_the_command_writes_table_and_figure_and_says_what_it_found(capsys, tmp_path, monkeypatch):
    measure = partial(models.measure, start=workers({"vim-ti": 1.0, "deit-ti-plain": 0.5}))
    monkeypatch.setattr(session, "run", partial(session.run, measure=measure))
    path = tmp_path / "t.csv"
    assert cli.main(["bench", "--models", *PAIR, "--sizes", "32", "64", "--output", str(path), "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "Vim-Ti is slower than DeiT-Ti, plain attention at 64 pixels, 2.00 times" in out
    assert len(read_rows(path)) == 4 and path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    before = path.read_text()
    assert cli.main(["bench", "--models", *PAIR, "--sizes", "32", "64", "--output", str(path), "--quiet",
                     "--resume"]) == 0
    assert path.read_text() == before


def test_a_stop_says_how_to_go_on(capsys, tmp_path, monkeypatch):
    path = tmp_path / "t.csv"

    def stopped(cases, rules, watch):
        if path.exists():
            raise KeyboardInterrupt
        return models.measure(cases, rules, workers({}), watch)
    monkeypatch.setattr(session, "run", partial(session.run, measure=stopped))
    assert cli.main(["bench", "--sizes", "32", "64", "--output", str(path), "--quiet"]) == 130
    assert capsys.readouterr().err == f"vimlearn: stopped; {path} holds what is finished, and --resume goes on\n"
    assert [row["size"] for row in read_rows(path)] == [32] * 3


def test_the_time_left_is_that_of_the_operations():
    small, large = groups(PAIR, size=(32, 64))
    left = TimeLeft([small, large], Rules(budget=1000, rounds=10), quiet=True)
    left.begin(small)
    for case in small:
        left.tick(case, 1e-9 * work(case))
    left.plan(0)
    once = sum(1e-9 * work(case) for case in large)
    assert left.left() == pytest.approx(10 + 12 * once)
    left.close()
