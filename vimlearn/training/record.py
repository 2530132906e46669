"""The folder of a run: options.yaml, log.csv with one row an epoch, model.safetensors after the last epoch.

Whatever stops a run, the rows and the weights of the last whole epoch are on disk.
"""

__all__ = ["COLUMNS", "RunFolder", "read_log"]

import csv
import os
from pathlib import Path

from ..checkpoint import save_checkpoint
from ..errors import VimlearnError
from ..vim import VisionMamba
from .options import Options, write_yaml

# Name of a column and the digits it is written with; seconds and images_per_second depend on the machine.
COLUMNS = {"epoch": "d", "lr": ".6g", "train_loss": ".6f", "train_accuracy": ".6f", "heldout_loss": ".6f",
           "heldout_accuracy": ".6f", "seconds": ".2f", "images_per_second": ".1f"}
CHECKPOINT, LOG, OPTIONS = "model.safetensors", "log.csv", "options.yaml"


class RunFolder:
    """Creates the folder of a run and writes to it. It never touches the files of an earlier run.

    Raises VimlearnError where the folder holds a run already or cannot be written.
    """

    def __init__(self, options: Options):
        output = options.run.output
        try:
            self.path = _next_folder(options.data.dataset) if output == "auto" else _named_folder(output)
            write_yaml(options, self.path / OPTIONS)
            with open(self.path / LOG, "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow(COLUMNS)
        except OSError as error:
            raise VimlearnError(f"cannot write the run to {error.filename or output}: {error.strerror}; "
                                "choose another --output") from error
        self.options, self.epochs = options, 0

    @property
    def checkpoint(self) -> Path:
        """Where the weights are."""
        return self.path / CHECKPOINT

    def add(self, row: dict, model: VisionMamba) -> None:
        """Append the row of an epoch to the log and replace the weights. Raises VimlearnError where that fails."""
        try:
            # Opened anew for each row: closed at once, so a crash later cannot take it away.
            with open(self.path / LOG, "a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow(format(row[name], digits) for name, digits in COLUMNS.items())
        except OSError as error:
            raise VimlearnError(f"cannot add epoch {row['epoch']} to {self.path / LOG}: {error.strerror}; "
                                "the earlier epochs are kept") from error
        save_checkpoint(model, self.checkpoint, {"dataset": self.options.data.dataset, "epoch": str(row["epoch"])})
        self.epochs = row["epoch"]

    def kept(self) -> str:
        """Say in a few words what is on disk."""
        return f"{self.checkpoint} holds epoch {self.epochs}" if self.epochs else f"{self.path} holds no epoch yet"


def read_log(path: str | os.PathLike) -> list[dict]:
    """Return the rows of a log.csv, numbers as numbers. Raises VimlearnError where it is missing or no log."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [{name: int(row[name]) if digits == "d" else float(row[name]) for name, digits in COLUMNS.items()}
                for row in rows]
    except OSError as error:
        raise VimlearnError(f"cannot read {path}: {error.strerror}; expected the log.csv of a run") from error
    except (KeyError, ValueError, TypeError) as error:
        raise VimlearnError(f"{path} is no log of a run: {error}; expected the columns {', '.join(COLUMNS)}") from error


def _next_folder(name: str) -> Path:
    runs = Path("runs")
    runs.mkdir(exist_ok=True)
    number = 1
    while True:
        try:
            (runs / f"{name}-{number}").mkdir()
            return runs / f"{name}-{number}"
        except FileExistsError:
            number += 1


def _named_folder(output: str) -> Path:
    path = Path(output)
    path.mkdir(parents=True, exist_ok=True)
    there = [name for name in (CHECKPOINT, LOG, OPTIONS) if (path / name).exists()]
    if there:
        raise VimlearnError(f"{path} already holds a run ({', '.join(there)}) and is left as it is; "
                            "choose another --output")
    return path
