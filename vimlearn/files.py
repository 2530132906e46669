"""Files that are whole or not there: written aside, brought to the disk, then renamed."""

__all__ = ["check_folder", "write_aside", "write_safetensors", "write_text"]

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .errors import VimlearnError


def write_safetensors(path: str | os.PathLike, tensors: Mapping[str, Tensor], strings: Mapping[str, str]) -> Path:
    """Write tensors and strings as one safetensors file and return its path.

    An earlier file of that name stays as it is until the new one is whole. Raises VimlearnError where it cannot be
    written.
    """
    plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    return write_aside(Path(path), lambda aside: save_file(plain, aside, {k: str(v) for k, v in strings.items()}))


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Write text in UTF-8 and return its path, in the same manner."""
    return write_aside(Path(path), lambda aside: aside.write_text(text, encoding="utf-8", newline=""))


def check_folder(folder: Path) -> None:
    """Make a folder, and raise VimlearnError unless files can be written there: before long work, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise VimlearnError(f"cannot write to {folder}: {error.strerror}; expected a folder with permission to write, "
                            "choose another one") from error


def write_aside(path: Path, write: Callable[[Path], object]) -> Path:
    """Call `write(aside)`, which writes a file aside and may check it, then rename that file to `path`; return `path`.

    Where `write` raises, no file is left aside and an earlier one of that name is untouched. Raises VimlearnError where
    it cannot be written.
    """
    aside = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(aside)
        with open(aside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    except (OSError, SafetensorError) as error:
        raise VimlearnError(f"cannot write {path}: {error}; an earlier file of that name is untouched") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
    return path
