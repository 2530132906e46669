"""Progress: written once and safely, off when told so, never a crash."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vimlearn.course import exercise, progress
from vimlearn.errors import VimlearnError


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "kept" / "progress.json"
    monkeypatch.setenv("VIMLEARN_PROGRESS", str(path))
    return path


@pytest.fixture
def course(monkeypatch):
    """A course of two exercises."""
    monkeypatch.setattr(exercise, "_registry", {})
    monkeypatch.setattr(exercise.pkgutil, "iter_modules", lambda path: [])

    @exercise.exercise("1.1", "A word")
    def word(answer):
        exercise.choose(answer, "yes", {"no": "think again"})
        return "indeed."

    @exercise.exercise("2.1", "A number")
    def number(answer):
        exercise.match(answer, 3)
        return "three."

    return exercise.exercises()


def test_only_the_first_right_answer_is_written_with_its_attempts(file, course):
    word, _ = course
    word(None)
    word("no")
    assert not file.exists()
    word("yes")
    first = file.read_text()
    assert json.loads(first)["solved"]["word"]["attempts"] == 2
    word("no")
    word("yes")
    assert file.read_text() == first


def test_grading_alone_records_nothing(file, course):
    assert exercise.grade("word", "yes").status == "right"
    assert not file.parent.exists()


def test_off_writes_nothing_anywhere(tmp_path, course, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIMLEARN_PROGRESS", "off")
    course[0]("yes")
    assert progress.location() is None and progress.solved() == {}
    assert list(tmp_path.iterdir()) == []


def test_the_file_lies_in_the_course_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("VIMLEARN_PROGRESS")
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    monkeypatch.chdir(notebooks)
    assert progress.location() == notebooks / ".vimlearn" / "progress.json"
    (notebooks / "01_ssm_discretization.ipynb").touch()
    assert progress.location() == tmp_path / ".vimlearn" / "progress.json"


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        "null",
        '{"solved": 3}',
        '{"solved": {"word": {}}}',
        '{"solved": {"word": {"date": "now"}}}',
        "[" * 9999,
    ],
)
def test_a_damaged_file_is_set_aside_and_said_so(file, course, capsys, damage):
    file.parent.mkdir()
    file.write_text(damage)
    assert "is damaged" in progress.report()
    with pytest.raises(VimlearnError, match="is damaged"):
        progress.solved()
    course[0]("yes")
    verdict, note = capsys.readouterr().out.splitlines()
    assert "right" in verdict and "damaged; it is kept as progress.damaged1.json" in note
    assert file.with_name("progress.damaged1.json").read_text() == damage
    assert set(progress.solved()) == {"word"}


def test_bytes_that_are_no_text_count_as_damage(file, course):
    file.parent.mkdir()
    file.write_bytes(b"\xff\xfe\x00")
    course[0]("yes")
    assert set(progress.solved()) == {"word"}


def test_a_place_that_cannot_be_written_is_a_line_and_no_crash(tmp_path, course, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VIMLEARN_PROGRESS", str(tmp_path / "file" / "progress.json"))
    course[0]("yes")
    assert "(your progress is not saved: " in capsys.readouterr().out
    monkeypatch.setenv("VIMLEARN_PROGRESS", str(tmp_path))
    course[0]("yes")
    assert "not saved" in capsys.readouterr().out
    assert "cannot be read" in progress.report()


WRITER = """
import pathlib, sys, time
from vimlearn.course import progress
me, other = sys.argv[1:]
pathlib.Path(me).touch()
while not pathlib.Path(other).exists():
    time.sleep(0.001)
for i in range(50):
    assert progress.record(f"{me}{i}", True) is None
"""


def test_two_notebooks_at_once_lose_nothing(file, tmp_path):
    """Two processes wait for each other, then write fifty exercises each into the same file."""
    env = os.environ | {"VIMLEARN_PROGRESS": str(file), "PYTHONPATH": str(Path(__file__).parents[2])}
    both = [subprocess.Popen([sys.executable, "-c", WRITER, *names], env=env, cwd=tmp_path) for names in ("ab", "ba")]
    assert [process.wait() for process in both] == [0, 0]
    assert set(progress.solved()) == {f"{name}{i}" for name in "ab" for i in range(50)}
    assert {path.name for path in file.parent.iterdir()} <= {"progress.json", "progress.json.lock"}


def test_the_report_shows_every_exercise(file, course):
    course[1](3)
    date = progress.solved()["number"]["date"]
    assert progress.report().splitlines() == [
        f"1 of 2 exercises solved, kept in {file}",
        "",
        "01 State spaces in steps: 0 of 1 solved",
        "  ○ open    1.1   A word",
        "",
        "02 The selective scan: 1 of 1 solved",
        f"  ✓ solved  2.1   A number ({date}, 1 attempt)",
    ]
