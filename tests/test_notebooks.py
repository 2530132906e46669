"""The course's notebooks: complete, run in order, described, within their limits, and every solution accepted."""

import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import matplotlib
import nbformat
import pytest
import torch
from notebook_reader import EXERCISE_TAGS, FOLDER, NOTEBOOKS, PAPER_STUB, Notebook, lines, tags

from vimlearn.course import figures
from vimlearn.course.exercise import exercises, grade
from vimlearn.course.outline import CHAPTERS

PICTURES = ("image/png", "image/svg+xml", "image/jpeg")
MOST_BYTES = 500_000
MACHINE_PATHS = ("/work/", "/home/", "/root/", "/tmp/", "/Users/", "C:\\", "site-packages")

each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS.values(), ids=NOTEBOOKS)
each_exercise = pytest.mark.parametrize(
    ("notebook", "number"),
    [(book, i) for book in NOTEBOOKS.values() for i in range(sum("exercise" in tags(c) for c in book.cells))],
    ids=lambda value: value.path.stem if isinstance(value, Notebook) else str(value + 1),
)


@pytest.fixture
def clean_slate(monkeypatch):
    """Undo what a set-up cell changes in this process: default dtype, random state, matplotlib's settings."""
    monkeypatch.setenv("VIMLEARN_PROGRESS", "off")
    monkeypatch.setattr(figures, "display", lambda *args, **kwargs: None)
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    with torch.random.fork_rng(devices=[]), matplotlib.rc_context():
        yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)


def test_the_folder_holds_the_chapters_of_the_outline():
    assert sorted(NOTEBOOKS) == sorted(Path(c.file).stem for c in CHAPTERS if c.state == "ready")


@each_notebook
def test_cells_were_run_in_order_without_errors(notebook):
    assert [cell.execution_count for cell in notebook.code] == list(range(1, len(notebook.code) + 1))
    for cell in notebook.code:
        allowed = "raises-exception" in tags(cell)
        assert allowed or not any(out.output_type == "error" for out in cell.outputs), cell.source


@each_notebook
def test_outputs_show_no_path_of_a_machine_and_no_warning(notebook):
    for cell in notebook.code:
        for output in cell.outputs:
            assert output.get("name") != "stderr", f"{cell.source}\nwrote to stderr: {output.get('text')}"
            data = {kind: text for kind, text in output.get("data", {}).items() if kind not in PICTURES}
            found = [path for path in MACHINE_PATHS if path in str([output.get("text"), data, output.get("traceback")])]
            assert not found, f"the output of this cell shows {found}:\n{cell.source}"


@each_notebook
def test_each_picture_has_alt_text_and_the_same_caption_under_it(notebook):
    for cell in notebook.code:
        for i, output in enumerate(cell.outputs):
            kinds = [kind for kind in PICTURES if kind in output.get("data", {})]
            for kind in kinds:
                alt = output.metadata.get(kind, {}).get("alt", "")
                assert 6 <= len(alt.split()) <= 40, f"draw with show(fig, caption): {cell.source}"
                caption = cell.outputs[i + 1].data["text/plain"] if i + 1 < len(cell.outputs) else ""
                assert caption == f"Figure. {alt}", f"no caption under the picture of: {cell.source}"


@each_notebook
def test_each_picture_in_the_text_is_local_and_described(notebook):
    text = "\n".join(cell.source for cell in notebook.markdown)
    for alt, target in re.findall(r"!\[(.*?)\]\((.*?)\)", text):
        assert len(alt.split()) >= 3, f"the picture {target} has no description"
        assert (FOLDER / target.split()[0]).is_file(), f"the picture {target} is not in the repository"
    assert "<img" not in text, "write pictures as ![description](file)"


@each_notebook
def test_title_map_and_ending(notebook):
    chapter = next(c for c in CHAPTERS if c.file == notebook.path.name)
    title = notebook.cells[0].source
    assert title.startswith(f"# {chapter.number} · {chapter.title}\n"), (
        "the title is the one in vimlearn/course/outline.py"
    )
    for word in ("You need", "You will build", "Time to work", "Time to run"):
        assert word in title, f"the title cell has no line '{word}'"
    maps = [i for i, cell in enumerate(notebook.cells) if cell.source.strip() == f"course_map({int(chapter.number)})"]
    assert len(maps) == 1 and maps[0] < 8, f"one cell near the top is course_map({int(chapter.number)})"
    ending = "\n".join(cell.source for cell in notebook.cells[-6:] if cell.cell_type == "markdown").lower()
    assert re.search(r"^\|.*symbol.*\|.*code.*\|.*shape.*\|", ending, re.MULTILINE), (
        "no table symbol, code, shape at the end"
    )
    assert "skipped" in notebook.prose.lower(), "say what was skipped and where to find it"


@each_notebook
def test_questions_come_before_running(notebook):
    sections = [cell for cell in notebook.markdown if re.match(r"## ", cell.source)]
    questions = sum("**Before you run:**" in cell.source for cell in notebook.markdown)
    assert questions >= 3, f"{questions} questions '**Before you run:**' for {len(sections)} sections"


@each_notebook
def test_equalities_are_asserted(notebook):
    code = "\n".join(cell.source for cell in notebook.code)
    assert len(re.findall(r"assert_close|^\s*assert ", code, re.MULTILINE)) >= 3
    assert re.search(r"\.grad\b|autograd\.grad|gradcheck|vjp|jacrev", code), (
        "the gradients are not compared with the package's"
    )


@each_notebook
def test_setup_stands_first_and_runs_twice(notebook, clean_slate):
    first = next(cell for cell in notebook.code if "course_map" not in cell.source or "setup" in tags(cell))
    assert "setup" in tags(first)
    assert "manual_seed" in notebook.setup
    notebook.namespace(notebook.setup)


@each_notebook
def test_limits_of_size(notebook):
    """The numbers are those of good courses, as walls a little wider than the aim."""
    written = [len(lines(cell)) for cell in notebook.code if "exercise-check" not in tags(cell)]
    assert max(written) <= 40
    assert statistics.quantiles(written, n=10)[-1] <= 20
    assert 2 <= statistics.median(written) <= 9
    assert 35 <= len(notebook.cells) <= 100
    assert 0.9 <= len(notebook.markdown) / len(notebook.code) <= 2.2
    assert 1200 <= len(re.findall(r"[\w'’-]+", notebook.prose)) <= 4500
    assert notebook.path.stat().st_size <= MOST_BYTES
    pictures = sum(kind in output.get("data", {}) for output in notebook.outputs for kind in PICTURES)
    own = sum(not set(EXERCISE_TAGS) & set(tags(cell)) for cell in notebook.code)
    assert pictures >= max(4, own / 5), f"{pictures} pictures for {own} code cells"


@each_notebook
def test_the_file_holds_nothing_but_the_notebook(notebook):
    assert set(notebook.raw.metadata) == {"kernelspec", "language_info"}
    assert set(notebook.raw.metadata.kernelspec) <= {"name", "display_name", "language"}
    assert notebook.raw.metadata.kernelspec.name == "python3"
    assert set(notebook.raw.metadata.language_info) == {"name"}
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}, f"metadata {set(cell.metadata)} in: {cell.source[:60]!r}"
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    nbformat.validate(notebook.raw)


@each_notebook
def test_number_and_kinds_of_exercises(notebook):
    assert 4 <= len(notebook.exercises) <= 7
    chapter = str(int(notebook.path.stem[:2]))
    numbers = [exercise.heading["number"] for exercise in notebook.exercises]
    assert numbers == [f"{chapter}.{i + 1}" for i in range(len(numbers))]
    assert any(PAPER_STUB.search(exercise.stub.source) for exercise in notebook.exercises), (
        "none by prediction or on paper"
    )


@each_exercise
def test_an_exercise_is_complete(notebook, number):
    exercise = notebook.exercises[number]
    level = re.search(r"^Level [123] · \d+ minutes$", exercise.box.source, re.MULTILINE)
    assert level, "no line 'Level 2 · 10 minutes'"
    assert [cell.cell_type for cell in (exercise.box, exercise.stub, exercise.check, exercise.help)] == [
        "markdown",
        "code",
        "code",
        "markdown",
    ]
    for cell in (exercise.stub, exercise.check):
        assert "nbval-ignore-output" in tags(cell)
    assert list(exercise.folds) == ["Hint 1", "Hint 2", "Solution"]
    assert all(len(text.split()) >= 5 for text in exercise.folds.values())
    reason = exercise.folds["Solution"].replace(exercise.solution, "")
    assert len(reason.split()) >= 10, "the solution does not say why it works"
    assert exercise.call["answer"] in exercise.stub.source and exercise.call["answer"] in exercise.solution


@each_exercise
def test_the_stored_stub_is_not_started(notebook, number, clean_slate):
    exercise = notebook.exercises[number]
    answer = notebook.namespace(exercise.stub.source)[exercise.call["answer"]]
    assert grade(exercise.call["name"], answer).status == "not started"
    assert [output.name for output in exercise.check.outputs] == ["stdout"]
    assert "not started" in exercise.check.outputs[0].text and exercise.check.outputs[0].text.count("\n") == 1


@each_exercise
def test_the_folded_solution_is_right(notebook, number, clean_slate):
    exercise = notebook.exercises[number]
    answer = notebook.namespace(exercise.solution)[exercise.call["answer"]]
    result = grade(exercise.call["name"], answer)
    assert result.status == "right", result.message
    assert len(result.message.split()) >= 3 and result.message != "None", "the praise says what is right"


def test_notebooks_and_checks_belong_together():
    used = [(e.heading["number"], e.heading["title"], e.call["name"]) for n in NOTEBOOKS.values() for e in n.exercises]
    assert sorted(used) == sorted((made.number, made.title, made.name) for made in exercises())


def run_nbval(folder: Path) -> subprocess.CompletedProcess:
    """Run the command of `make test` on the notebooks in `folder`."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env", "."]
    env = os.environ | {"VIMLEARN_PROGRESS": "off", "PYTEST_ADDOPTS": ""}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def small_notebook(path: Path, source: str, output: str, *, tag: str | None = None) -> None:
    stored = nbformat.v4.new_output("stream", name="stdout", text=output)
    cell = nbformat.v4.new_code_cell(
        source, execution_count=1, outputs=[stored], metadata={"tags": [tag] if tag else []}
    )
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), path)


def test_nbval_fails_on_an_altered_output_only(tmp_path):
    small_notebook(tmp_path / "same.ipynb", "print(0.125)", "0.125\n")
    small_notebook(tmp_path / "altered.ipynb", "print(0.125)", "0.126\n")
    small_notebook(tmp_path / "not_compared.ipynb", "print(0.125)", "0.126\n", tag="nbval-ignore-output")
    done = run_nbval(tmp_path)
    assert done.returncode == 1 and "1 failed, 2 passed" in done.stdout, done.stdout
    assert "altered.ipynb::Cell 0" in done.stdout and "Cell outputs differ" in done.stdout


def test_a_solved_notebook_passes_nbval_and_writes_nothing(tmp_path):
    notebook = Notebook(NOTEBOOKS["01_ssm_discretization"].path)
    for exercise in notebook.exercises:
        exercise.stub.source = exercise.solution
    nbformat.write(notebook.raw, tmp_path / notebook.path.name)
    done = run_nbval(tmp_path)
    assert done.returncode == 0, done.stdout[-4000:]
    assert [path.name for path in tmp_path.iterdir()] == [notebook.path.name]
