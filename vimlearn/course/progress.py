"""Which exercises the learner has solved, kept in a small local file that belongs to the learner alone.

The file is `.vimlearn/progress.json` in the course folder. The environment variable VIMLEARN_PROGRESS names another
file, or is `off` to keep nothing.
"""

__all__ = ["location", "record", "report", "solved"]

import datetime
import json
import os
from pathlib import Path

from filelock import FileLock, Timeout

from vimlearn.errors import VimlearnError

_VARIABLE = "VIMLEARN_PROGRESS"
_FIRST_NOTEBOOK = "notebooks/01_ssm_discretization.ipynb"
_LOCK_SECONDS = 5

# Answers checked since this Python process started; written down with the first right one.
_attempts: dict[str, int] = {}


def location() -> Path | None:
    """Return the path of the progress file, or None where VIMLEARN_PROGRESS is `off`."""
    setting = os.environ.get(_VARIABLE, "").strip()
    if setting.lower() == "off":
        return None
    if setting:
        return Path(setting).expanduser()
    here = Path.cwd()
    course = next((folder for folder in (here, *here.parents) if (folder / _FIRST_NOTEBOOK).is_file()), here)
    return course / ".vimlearn" / "progress.json"


def record(name: str, right: bool) -> str | None:
    """Count one attempt at exercise `name` and write it down when it is the first right one.

    Returns a line for the learner where the file was damaged or cannot be written, otherwise None.
    """
    _attempts[name] = _attempts.get(name, 0) + 1
    path = location()
    if path is None or not right:
        return None
    note = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two notebooks may finish an exercise at the same moment: read, add and write as one step.
        with FileLock(f"{path}.lock", timeout=_LOCK_SECONDS, poll_interval=0.005):
            entries = _read(path)
            if entries is None:
                entries, note = {}, _set_aside(path)
            if name not in entries:
                entries[name] = {"date": datetime.date.today().isoformat(), "attempts": _attempts[name]}
                _write(path, entries)
    except (OSError, Timeout) as error:
        note = f"(your progress is not saved: {error})"
    return note


def solved() -> dict[str, dict]:
    """Return the solved exercises: from the check's name to `{"date": "2025-01-31", "attempts": 2}`.

    Raises:
        VimlearnError: the file is damaged or cannot be read.
    """
    path = location()
    if path is None:
        return {}
    try:
        entries = _read(path)
    except OSError as error:
        raise VimlearnError(f"the progress file {path} cannot be read: {error}") from None
    if entries is None:
        raise VimlearnError(f"the progress file {path} is damaged; the next solved exercise sets it aside")
    return entries


def report() -> str:
    """Return the table that `vimlearn progress` prints: every exercise, solved or open, and where this is kept."""
    from vimlearn.course.exercise import exercises
    from vimlearn.course.outline import CHAPTERS

    path, known = location(), exercises()
    where = "progress is not kept (VIMLEARN_PROGRESS is off)" if path is None else f"kept in {path}"
    try:
        done = solved()
    except VimlearnError as error:
        done, where = {}, str(error)
    total = sum(made.name in done for made in known)
    lines = [f"{total} of {len(known)} exercises solved, {where}"]
    for chapter in CHAPTERS:
        mine = [made for made in known if made.chapter == chapter.number]
        if mine:
            count = sum(made.name in done for made in mine)
            lines += ["", f"{chapter.number} {chapter.title}: {count} of {len(mine)} solved"]
            lines += [_row(made.number, made.title, done.get(made.name)) for made in mine]
    return "\n".join(lines)


def _row(number: str, title: str, entry: dict | None) -> str:
    if entry is None:
        return f"  ○ open    {number:<5} {title}"
    attempts = "1 attempt" if entry["attempts"] == 1 else f"{entry['attempts']} attempts"
    return f"  ✓ solved  {number:<5} {title} ({entry['date']}, {attempts})"


def _read(path: Path) -> dict[str, dict] | None:
    """Return the entries, none where there is no file yet, or None where the file is damaged."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["solved"]
        for entry in entries.values():
            datetime.date.fromisoformat(entry["date"])
            int(entry["attempts"])
        return entries
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _set_aside(path: Path) -> str:
    names = (path.with_name(f"{path.stem}.damaged{number}{path.suffix}") for number in range(1, 1000))
    kept = next(name for name in names if not name.exists())
    path.rename(kept)
    return f"(the progress file was damaged; it is kept as {kept.name} and a new one is begun)"


def _write(path: Path, entries: dict[str, dict]) -> None:
    """Write beside the file and rename, so that a crash leaves the old file or the new one, never half of one."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.new")
    beside.write_text(json.dumps({"version": 1, "solved": entries}, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)
