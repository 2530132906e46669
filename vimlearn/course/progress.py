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

_VARIABLE = "VIMLEARN_PROGRESS"
_FIRST_NOTEBOOK = "notebooks/01_ssm_discretization.ipynb"
_LOCK_SECONDS = 5

# Wrong and right answers since this Python process started; written down with the first right one.
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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two notebooks may finish an exercise at the same moment: read, add and write as one step.
        with FileLock(f"{path}.lock", timeout=_LOCK_SECONDS):
            entries, note = _read(path, set_aside=True)
            if name not in entries:
                today = datetime.date.today().isoformat()
                entries[name] = {"date": today, "attempts": _attempts[name]}
                _write(path, entries)
            return note
    except (OSError, Timeout) as error:
        return f"(progress is not saved: {error})"


def solved() -> dict[str, dict]:
    """Return the solved exercises: from the check's name to `{"date": "2025-01-31", "attempts": 2}`."""
    path = location()
    return _read(path, set_aside=False)[0] if path else {}


def report() -> str:
    """Return the table that `vimlearn progress` prints: every exercise, solved or open, and where this is kept."""
    from vimlearn.course.exercise import exercises
    from vimlearn.course.outline import CHAPTERS

    path, done, lines = location(), solved(), []
    known = exercises()
    for chapter in CHAPTERS:
        mine = [made for made in known if made.chapter == chapter.number]
        if not mine:
            continue
        count = sum(made.name in done for made in mine)
        lines += ["", f"{chapter.number} {chapter.title}: {count} of {len(mine)} solved"]
        lines += [_row(made.number, made.title, done.get(made.name)) for made in mine]
    total = sum(made.name in done for made in known)
    where = "progress is not kept (VIMLEARN_PROGRESS is off)" if path is None else f"kept in {path}"
    return "\n".join([f"{total} of {len(known)} exercises solved, {where}", *lines])


def _row(number: str, title: str, entry: dict | None) -> str:
    if entry is None:
        return f"  ○ open    {number:<5} {title}"
    attempts = "1 attempt" if entry["attempts"] == 1 else f"{entry['attempts']} attempts"
    return f"  ✓ solved  {number:<5} {title} ({entry['date']}, {attempts})"


def _read(path: Path, *, set_aside: bool) -> tuple[dict[str, dict], str | None]:
    """Return the entries, and a line where the file is damaged and `set_aside` says to rename it."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}, None
    except (OSError, UnicodeDecodeError):
        text = ""
    try:
        entries = json.loads(text)["solved"]
        for entry in entries.values():
            datetime.date.fromisoformat(entry["date"])
            int(entry["attempts"])
        return entries, None
    except (ValueError, TypeError, KeyError, AttributeError):
        if not set_aside:
            return {}, None
    kept = _free_name(path)
    path.rename(kept)
    return {}, f"(the progress file was damaged; it is kept as {kept.name} and a new one is begun)"


def _free_name(path: Path) -> Path:
    names = (path.with_name(f"{path.stem}.damaged{number}{path.suffix}") for number in range(1, 1000))
    return next(name for name in names if not name.exists())


def _write(path: Path, entries: dict[str, dict]) -> None:
    """Write beside the file and rename, so that a crash leaves the old file or the new one, never half of one."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.new")
    beside.write_text(json.dumps({"version": 1, "solved": entries}, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)
