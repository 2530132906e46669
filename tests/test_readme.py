"""What the READMEs show is true: code runs, commands exist, links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "data" / "README.md", ROOT / "benchmarks" / "README.md"]


def blocks(*languages: str) -> list[str]:
    found = re.findall(r"^```(\w+)\n(.*?)^```", README, re.M | re.S)
    return [body for language, body in found if language in languages]


def commands(program: str) -> list[list[str]]:
    """The arguments of every use of `program`, in shell blocks and in inline code."""
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", README, flags=re.M | re.S))
    lines = [line for block in blocks("sh", "powershell") for line in block.splitlines()] + inline
    words = [re.sub(r"^(?:\w+=\S+ )+", "", line).split() for line in lines]
    return [parts[1:] for parts in words if parts and re.split(r"[/\\]", parts[0])[-1] == program and len(parts) > 1]


def test_python_blocks_run_in_order(tmp_path):
    code = blocks("python")
    assert code
    run = subprocess.run([sys.executable, "-c", "\n".join(code)], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_make_commands_are_targets():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    used = {parts[0] for parts in commands("make")}
    assert {"lab", "test", "train", "bench", "notebooks", "clean"} <= used
    assert used <= set(targets), f"not in the Makefile: {used - set(targets)}"


def test_vimlearn_commands_exist_with_their_flags(monkeypatch, capsys):
    from vimlearn.cli import main

    used = commands("vimlearn")
    assert {parts[0] for parts in used} >= {"train", "eval", "progress"}
    monkeypatch.setenv("COLUMNS", "200")
    for name, *rest in used:
        try:
            status = main([name, "--help"])
        except SystemExit as stop:  # the option parser's way to end
            status = stop.code
        assert not status, f"vimlearn {name} is not a command"
        shown = capsys.readouterr().out
        for flag in (word.split("=")[0] for word in rest if word.startswith("--")):
            assert flag in shown, f"vimlearn {name} has no {flag}"


def test_pip_lines_are_those_of_the_makefile():
    setup = (ROOT / "Makefile").read_text().split("\n.venv/ready:")[1]
    recipe = re.findall(r"pip install (.*)", setup)
    wanted = [line.replace("-q ", "") for line in recipe]
    for shell in ("sh", "powershell"):
        shown = [line.split("pip install ")[1] for block in blocks(shell) for line in block.splitlines()
                 if "pip install " in line]
        assert shown == wanted, shell


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "#")):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name} links to {target}, which is not there"


def test_pictures_have_alternative_text():
    pictures = re.findall(r"!\[(.*?)\]", README, re.S)
    assert pictures
    assert all(len(text.split()) >= 6 for text in pictures)


def test_chapter_states_are_those_of_the_course_map():
    from vimlearn.course.outline import CHAPTERS

    rows = re.findall(r"^\| \[?(\d\d) ([^\]|]+?)(?:\]\([^)]+\))? \|.*\| ([^|]+) \|$", README, re.M)
    assert [(number, title) for number, title, _ in rows] == [(c.number, c.title) for c in CHAPTERS]
    for (number, _, state), chapter in zip(rows, CHAPTERS, strict=True):
        assert (state if state in ("next", "planned") else "ready") == chapter.state, number
