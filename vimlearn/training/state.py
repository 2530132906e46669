"""The whole state of a run in one file: weights, moving average, optimiser, and where the run is.

One safetensors file a state, so that a state is whole or not there, and reading it runs no code. Tensors are named
`model/KEY`, `ema/KEY` and `optimizer/PARAMETER/KEY`. Everything else is JSON beside them, with a SHA-256 over all
tensors, so that a damaged file is known as such. The two newest states are kept. (Accelerate's own states are several
files with pickles.)
"""

__all__ = ["State", "newest_state", "optimizer_tensors", "part", "read_state", "restore_optimizer", "write_state"]

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import VimlearnError
from ..files import write_safetensors

FOLDER, KEPT = "states", 2
# What an epoch adds up.
SUMS = ("images", "loss", "right", "grad_norm", "steps", "skipped", "unreadable")


@dataclass
class State:
    """Where a run is: `step` steps of `epoch` (from 1) are done.

    sums: what this epoch has added up so far, by the names in SUMS. seconds: its training time. rows: the log of the
    epochs before. extra: what else must be kept. tensors: as above; empty except on the way to and from a file.
    """

    epoch: int = 1
    step: int = 0
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SUMS, 0))
    seconds: float = 0.0
    rows: list[dict] = field(default_factory=list)
    extra: dict = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def add(self, sums: dict[str, float], seconds: float) -> None:
        """Count one more step."""
        for name, value in sums.items():
            self.sums[name] += value
        self.step, self.seconds = self.step + 1, self.seconds + seconds

    def end_epoch(self, row: dict) -> None:
        """Go on to the next epoch, with the row of this one in the log."""
        self.epoch, self.step, self.seconds, self.rows = self.epoch + 1, 0, 0.0, [*self.rows, row]
        self.sums = dict.fromkeys(SUMS, 0)


def write_state(folder: Path, state: State) -> Path:
    """Write a state into `folder`/states, then remove all but the two newest. Raises VimlearnError where it cannot."""
    path = folder / FOLDER / f"epoch-{state.epoch:04}-step-{state.step:07}.safetensors"
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.tensors.items()}
    plain = {name: value for name, value in vars(state).items() if name != "tensors"}
    write_safetensors(path, tensors, {"state": json.dumps(plain), "sha256": _digest(tensors, plain)})
    # What a run that was killed while it wrote has left is of no use.
    for old in [*_newest_first(folder)[KEPT:], *(folder / FOLDER).glob("*.part")]:
        old.unlink(missing_ok=True)
    return path


def read_state(path: Path) -> State:
    """Return the state in a file. Raises VimlearnError where it is missing, damaged or no state."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
            strings = file.metadata() or {}
        plain = json.loads(strings["state"])
        if strings["sha256"] != _digest(tensors, plain):
            raise ValueError("its content does not match its SHA-256")
        return State(**plain, tensors=tensors)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise VimlearnError(f"{path} is damaged or no state of a run: {error}") from error


def newest_state(folder: Path) -> State | None:
    """Return the newest state of a run that is whole, or None where there is none yet. Damaged ones are warned about.

    Raises VimlearnError where there are states and all of them are damaged.
    """
    paths = _newest_first(folder)
    for path in paths:
        try:
            return read_state(path)
        except VimlearnError as error:
            warnings.warn(f"{error}; taking the one before", stacklevel=2)
    if paths:
        raise VimlearnError(f"all {len(paths)} states in {folder / FOLDER} are damaged; start again with another "
                            f"--output, or from the weights with --weights {folder / 'model.safetensors'}")
    return None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's moments and counts as `optimizer/PARAMETER/KEY`."""
    return {f"optimizer/{i}/{key}": value for i, moments in optimizer.state_dict()["state"].items()
            for key, value in moments.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put the moments and counts back. The settings of its groups stay as they are."""
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        kind, *rest = name.split("/")
        if kind == "optimizer":
            moments.setdefault(int(rest[0]), {})[rest[1]] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the tensors below `name/`, without it."""
    return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}


def _newest_first(folder: Path) -> list[Path]:
    found = {path: re.fullmatch(r"epoch-(\d+)-step-(\d+)\.safetensors", path.name)
             for path in (folder / FOLDER).glob("epoch-*")}
    return sorted((path for path, numbers in found.items() if numbers), reverse=True,
                  key=lambda path: tuple(map(int, found[path].groups())))


def _digest(tensors: Mapping[str, Tensor], plain: dict) -> str:
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for key in sorted(tensors):
        digest.update(key.encode())
        digest.update(tensors[key].contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
