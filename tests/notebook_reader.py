"""Reading the course's notebooks: their cells by tag, their exercises, their pictures."""

import linecache
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nbformat

FOLDER = Path(__file__).parents[1] / "notebooks"
EXERCISE_TAGS = ("exercise", "exercise-stub", "exercise-check", "exercise-help")
PAPER_STUB = re.compile(r"^\w+(: [^=\n]+)? = (None|[({][^\n]*None[^\n]*[)}])( *#.*)?$", re.MULTILINE)


def tags(cell) -> list[str]:
    """Return the tags of a cell."""
    return cell.metadata.get("tags", [])


def lines(cell) -> list[str]:
    """Return the lines of a cell that are not blank."""
    return [line for line in cell.source.splitlines() if line.strip()]


@dataclass(frozen=True)
class Exercise:
    """The four cells of one exercise and what stands in them. Raises AssertionError where a part is missing."""

    box: nbformat.NotebookNode
    stub: nbformat.NotebookNode
    check: nbformat.NotebookNode
    help: nbformat.NotebookNode

    @cached_property
    def heading(self) -> re.Match:
        """Number and title."""
        found = re.match(r"### Exercise (?P<number>\d+\.\d+) · (?P<title>.+)\n", self.box.source)
        assert found, f"no line '### Exercise 1.2 · Title' at the start of: {self.box.source[:60]!r}"
        return found

    @cached_property
    def call(self) -> re.Match:
        """The name of the check and of the answer."""
        found = re.fullmatch(r"check\.(?P<name>\w+)\((?P<answer>\w+)\)", self.check.source.strip())
        assert found, f"a check cell is one line, check.NAME(answer), not {self.check.source!r}"
        return found

    @cached_property
    def folds(self) -> dict[str, str]:
        """The folded blocks by their summary."""
        pattern = r"<details>\s*<summary>(.*?)</summary>\n\n(.*?)\n\n</details>"
        return dict(re.findall(pattern, self.help.source, re.DOTALL))

    @cached_property
    def solution(self) -> str:
        """The code in the folded solution."""
        blocks = re.findall(r"^```python\n(.*?)^```", self.folds["Solution"], re.DOTALL | re.MULTILINE)
        assert len(blocks) == 1, f"{self.call['name']}: the solution holds {len(blocks)} python blocks, expected 1"
        return blocks[0]


class Notebook:
    """One notebook of the course."""

    def __init__(self, path: Path):
        self.path = path
        self.raw = nbformat.read(path, as_version=4)
        self.cells = self.raw.cells
        self.code = [cell for cell in self.cells if cell.cell_type == "code"]
        self.markdown = [cell for cell in self.cells if cell.cell_type == "markdown"]

    @property
    def outputs(self) -> list:
        """All stored outputs."""
        return [output for cell in self.code for output in cell.outputs]

    @cached_property
    def setup(self) -> str:
        """The source of the set-up cell."""
        found = [cell.source for cell in self.code if "setup" in tags(cell)]
        assert len(found) == 1, f"{len(found)} cells are tagged 'setup', expected one"
        return found[0]

    @cached_property
    def exercises(self) -> list[Exercise]:
        """The exercises in order; their four cells must follow each other."""
        found = []
        for i, cell in enumerate(self.cells):
            if "exercise" not in tags(cell):
                continue
            four = self.cells[i : i + 4]
            for part, tag in zip(four, EXERCISE_TAGS, strict=False):
                assert tag in tags(part), f"cell {i}: expected the tag '{tag}' after '### Exercise', got {tags(part)}"
            found.append(Exercise(*four))
        count = sum(tag in EXERCISE_TAGS for cell in self.cells for tag in tags(cell))
        assert count == 4 * len(found), "an exercise cell stands outside of an exercise"
        return found

    @cached_property
    def prose(self) -> str:
        """The text of all markdown cells without code blocks and HTML tags."""
        text = "\n\n".join(cell.source for cell in self.markdown)
        return re.sub(r"</?[a-z][^>]*>", " ", re.sub(r"^```.*?^```", " ", text, flags=re.DOTALL | re.MULTILINE))

    def namespace(self, *sources: str) -> dict:
        """Run the set-up cell and then `sources` in a fresh namespace, and return it."""
        names = {"__name__": "__main__"}
        for i, source in enumerate([self.setup, *sources]):
            file = f"{self.path.stem}-part{i}.py"
            linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
            exec(compile(source, file, "exec"), names)
        return names


NOTEBOOKS = {path.stem: Notebook(path) for path in sorted(FOLDER.glob("*.ipynb"))}
