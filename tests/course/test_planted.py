"""Every exercise has wrong answers planted in its chapter's tests. Runs after the files test_chapterNN.py."""

import pytest

from vimlearn.course.exercise import exercises


def test_two_mistakes_are_planted_and_named_for_each_exercise(planted, request):
    if request.config.option.keyword or any("::" in arg for arg in request.config.args):
        pytest.skip("counts what the chapters' tests have planted, so it needs them whole")
    files = {item.path.stem for item in request.session.items}
    if not any(file.startswith("test_chapter") for file in files):
        pytest.skip("no chapter's tests are part of this run")
    few = {
        f"{made.number} {made.name}": sorted(planted.get(made.name, ()))
        for made in exercises()
        if f"test_chapter{made.chapter}" in files and len(planted.get(made.name, ())) < 2
    }
    assert not few, f"plant at least two different mistakes with rejected(name, answer, *words): {few}"


def test_each_chapter_with_checks_has_its_tests(request):
    here = {path.stem for path in request.path.parent.glob("test_chapter*.py")}
    assert {f"test_chapter{made.chapter}" for made in exercises()} <= here
