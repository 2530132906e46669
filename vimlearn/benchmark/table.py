"""The rows of a benchmark in a CSV file: read back with their types, and checked before any work."""

__all__ = ["SAME_PLACE", "case_of", "check_writable", "finished", "read_rows"]

import csv
import tempfile
from dataclasses import fields
from pathlib import Path

from ..errors import VimlearnError
from .case import Case

# What must agree between rows that are compared.
SAME_PLACE = ("machine", "threads", "versions")
NUMBERS = {"size": int, "tokens": int, "batch_size": int, "rounds": int, "parameters": int}
NUMBERS |= dict.fromkeys(("median_ms", "fastest_ms", "slowest_ms", "spread", "images_per_second", "ratio", "peak_mb",
                          "cores_elsewhere"), float)
TRUTHS = ("pyramid", "compiled")


def read_rows(path: Path) -> list[dict]:
    """Return the rows of a CSV file that `write_rows` wrote, with numbers as numbers and None for empty fields.

    Raises VimlearnError where the file cannot be read or is no such table.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = {field.name for field in fields(Case)}.difference(reader.fieldnames or ())
            if missing:
                raise KeyError(f"no columns {', '.join(sorted(missing))}")
            return [{name: _typed(name, value) for name, value in row.items()} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error, ValueError, KeyError, TypeError) as error:
        raise VimlearnError(f"{path} is no table of this benchmark ({type(error).__name__}: {error}); expected a CSV "
                            "that vimlearn bench wrote") from error


def _typed(name: str, value: str):
    if value == "":
        return None
    if name in TRUTHS:
        return {"True": True, "False": False}[value]
    return NUMBERS.get(name, str)(value)


def case_of(row: dict) -> Case:
    """Return the case that a row is about."""
    return Case(**{field.name: row[field.name] for field in fields(Case)})


def finished(path: Path, place: dict[str, str]) -> list[dict]:
    """Return the rows of an earlier run that are to be kept; none if there is no file.

    Raises VimlearnError where they come from another machine, other versions or another number of threads.
    """
    rows = read_rows(path) if path.exists() else []
    for row in rows:
        for name in SAME_PLACE:
            if row.get(name) != place[name]:
                raise VimlearnError(f"{path} holds rows with {name} {row.get(name)!r} and here it is {place[name]!r}; "
                                    "rows are compared within one place, so write to another file")
    return rows


def check_writable(path: Path) -> None:
    """Raise VimlearnError unless a file can be written at `path`; nothing is left behind."""
    path = Path(path)
    if path.is_dir():
        raise VimlearnError(f"cannot write {path}: it is a folder; expected the name of a file, such as "
                            f"{path}/rows.csv")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise VimlearnError(f"cannot write {path}: {error.strerror or error}; name a file in a folder that you may "
                            "write to") from error
