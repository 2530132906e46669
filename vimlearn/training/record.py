"""The folder of a run.

    options.yaml        all options
    log.csv             one row an epoch
    model.safetensors   the weights after the last whole epoch; ema.safetensors their moving average
    states/             the whole state, the two newest (see state.py)
    tensorboard/        the curves

Whatever stops a run, the rows and the weights of the last whole epoch are on disk.
"""

__all__ = ["COLUMNS", "RunFolder", "read_log"]

import contextlib
import csv
import io
import os
from pathlib import Path

from ..errors import VimlearnError
from ..files import write_text
from .options import Options, read_yaml, write_yaml

# Name of a column and the digits it is written with; seconds and images_per_second depend on the machine.
COLUMNS = {"epoch": "d", "lr": ".6g", "train_loss": ".6f", "train_accuracy": ".6f", "grad_norm": ".6g",
           "heldout_loss": ".6f", "heldout_accuracy": ".6f", "ema_accuracy": ".6f", "skipped": "d", "unreadable": "d",
           "seconds": ".2f", "images_per_second": ".1f"}
# What earlier versions of a log do not have, and what is empty in a run without a moving average.
OPTIONAL = ("grad_norm", "ema_accuracy", "skipped", "unreadable")
MODEL_FILE, EMA_FILE, LOG, OPTIONS = "model.safetensors", "ema.safetensors", "log.csv", "options.yaml"
# Options that a resumed run may change: they say where and how, and not what.
FREE = {"run": ("output", "resume", "save_steps", "device", "threads", "tensorboard", "quiet", "on_nonfinite"),
        "data": ("workers", "max_unreadable"), "recipe": ("accumulate",), "network": ("backend",)}


class RunFolder:
    """Creates the folder of a run, or opens the one to resume, and writes to it. It never touches another run's files.

    Attributes: path; epochs, the whole epochs on disk. Raises VimlearnError where the folder holds a run that is not to
    be resumed, holds one with other options, is written by another process, or cannot be written.
    """

    def __init__(self, options: Options):
        output, resume = options.run.output, options.run.resume == "auto"
        self.options, self.epochs, self.writer = options, 0, None
        try:
            self.path = _automatic_folder(options, resume) if output == "auto" else _named_folder(output, resume)
            if (self.path / OPTIONS).exists():
                _compare(read_yaml(self.path / OPTIONS), options, self.path)
            else:
                write_yaml(options, self.path / f"{OPTIONS}.part")
                os.replace(self.path / f"{OPTIONS}.part", self.path / OPTIONS)
                self.write_log([])
            self.lock = _lock(self.path / OPTIONS)
        except OSError as error:
            raise VimlearnError(f"cannot write the run to {error.filename or output}: {error.strerror}; "
                                "choose another --output") from error

    def refuse_if_begun(self) -> None:
        """Raise VimlearnError where there are epochs on disk, and no state to go on from."""
        rows = read_log(self.path / LOG) if (self.path / LOG).exists() else []
        if rows:
            raise VimlearnError(f"{self.path} holds {len(rows)} epochs and no state to go on from; start again with "
                                f"another --output, or from the weights with --weights {self.path / MODEL_FILE}")

    def write_log(self, rows: list[dict]) -> None:
        """Replace log.csv by `rows`. Raises VimlearnError where that fails; the earlier rows are kept."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow("" if row[name] is None else format(row[name], digits) for name, digits in COLUMNS.items())
        write_text(self.path / LOG, text.getvalue())
        self.epochs = len(rows)

    def add_curves(self, row: dict) -> None:
        """Add the row of an epoch to the curves for TensorBoard, if they are wanted. Raises VimlearnError where that
        fails.
        """
        if not self.options.run.tensorboard:
            return
        try:
            if self.writer is None:
                from torch.utils.tensorboard import SummaryWriter
                # What a stopped run drew of later epochs is taken back.
                self.writer = SummaryWriter(str(self.path / "tensorboard"), purge_step=row["epoch"])
            for name in COLUMNS:
                if name != "epoch" and row[name] is not None:
                    self.writer.add_scalar(name, row[name], row["epoch"])
            self.writer.flush()
        except OSError as error:
            raise VimlearnError(f"cannot write {self.path / 'tensorboard'}: {error.strerror or error}; make room, or "
                                "leave the curves out with --no-tensorboard") from error

    def close(self) -> None:
        """Close the file of curves, and let other processes have the folder."""
        if self.lock is not None:
            self.lock.close()
        if self.writer is not None:
            # What could not be written was said when it was added.
            with contextlib.suppress(OSError):
                self.writer.close()

    def kept(self) -> str:
        """Say in a few words what is on disk."""
        path = self.path / MODEL_FILE
        return f"{path} holds epoch {self.epochs}" if self.epochs else f"{self.path} holds no epoch yet"


def read_log(path: str | os.PathLike) -> list[dict]:
    """Return the rows of a log.csv, numbers as numbers, None where a cell is empty.

    Raises VimlearnError where it is missing or no log.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [{name: _number(name, row, digits) for name, digits in COLUMNS.items()}
                    for row in csv.DictReader(file)]
    except OSError as error:
        raise VimlearnError(f"cannot read {path}: {error.strerror}; expected the log.csv of a run") from error
    except (KeyError, ValueError, TypeError) as error:
        raise VimlearnError(f"{path} is no log of a run: {error}; expected the columns {', '.join(COLUMNS)}") from error


def _number(name: str, row: dict, digits: str) -> int | float | None:
    if name in OPTIONAL and not row.get(name):
        return None
    return int(row[name]) if digits == "d" else float(row[name])


def _lock(path: Path) -> io.IOBase | None:
    """Lock a file against other processes until this one ends or closes what is returned, and not for its workers.

    Returns None where the system or the folder knows no locks. Raises VimlearnError where another process has it. A
    second start of the same run, by a scheduler say, would else write between the lines of the first.
    """
    try:
        import fcntl
        file = path.open("r+b")
    except (ImportError, OSError):  # Windows; a file that may be read only
        return None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.close()
        raise VimlearnError(f"another process is writing to {path.parent} at this moment; wait for its end, or choose "
                            "another --output") from error
    except OSError:
        file.close()
        return None
    return file


def _automatic_folder(options: Options, resume: bool) -> Path:
    name = Path(options.data.dataset.rpartition(":")[2]).name or "run"
    runs = Path("runs")
    runs.mkdir(exist_ok=True)
    taken = [int(path.name.removeprefix(f"{name}-")) for path in runs.iterdir()
             if path.name.startswith(f"{name}-") and path.name.removeprefix(f"{name}-").isdecimal()]
    if resume and taken:
        return runs / f"{name}-{max(taken)}"
    number = 1
    while True:
        try:
            (runs / f"{name}-{number}").mkdir()
            return runs / f"{name}-{number}"
        except FileExistsError:
            number += 1


def _named_folder(output: str, resume: bool) -> Path:
    path = Path(output)
    path.mkdir(parents=True, exist_ok=True)
    there = [name for name in (MODEL_FILE, LOG, OPTIONS) if (path / name).exists()]
    if there and not resume:
        raise VimlearnError(f"{path} already holds a run ({', '.join(there)}) and is left as it is; "
                            "choose another --output, or go on with it by --resume auto")
    if there and OPTIONS not in there:
        raise VimlearnError(f"{path} holds {', '.join(there)} and no {OPTIONS}, so it cannot be resumed; "
                            "choose another --output")
    return path


def _compare(stored: Options, given: Options, path: Path) -> None:
    """Raise VimlearnError where a run would be resumed with options that change its result."""
    for group, settings in vars(given).items():
        for name, value in vars(settings).items():
            before = getattr(getattr(stored, group), name)
            # Shards are dealt to the workers, which so decide on the order.
            free = name in FREE.get(group, ()) and not (name == "workers" and given.data.dataset.startswith("wds:"))
            if before != value and not free:
                raise VimlearnError(f"the run in {path} has {name} {before!r} and now it is {value!r}; resume with "
                                    "the same options, or choose another --output")
