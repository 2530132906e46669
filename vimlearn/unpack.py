"""Archives of labelled images into folders FOLDER/{train,val}/CLASS/IMAGE, without trusting the archive.

A tar archive can name files outside the folder, and a pickle can name any function to be called. So each member is
checked before it is used, whatever its place, and the pickles of CIFAR-10 are read by an unpickler that knows three
names.
"""

__all__ = ["ArrayUnpickler", "unpack_batches", "unpack_tree"]

import contextlib
import gzip
import pickle
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from PIL import Image
from tqdm import tqdm

from .errors import VimlearnError

SPLITS = ("train", "val")
BATCHES = {**{f"data_batch_{i + 1}": ("train", 10_000 * i) for i in range(5)}, "test_batch": ("val", 0)}
"""Files of CIFAR-10: the part they belong to, and the number of their first image in it."""
SIDE = 32


def unpack_tree(archive: Path, folder: Path, classes: Sequence[str], bar: tqdm) -> None:
    """Write the images of an archive that is a tree already, TOP/{train,val}/CLASS/IMAGE, into `folder`.

    What lies elsewhere in the archive is left out. `bar` moves by one an image.
    Raises VimlearnError where a member would leave the folder, or where the archive is damaged.
    """
    with _opened(archive) as tar:
        for member in _checked(tar):
            _, *place = PurePosixPath(member.name).parts or [""]
            wanted = len(place) == 3 and place[0] in SPLITS and place[1] in classes and not place[2].startswith(".")
            if wanted and member.isfile():
                tar.extract(member.replace(name="/".join(place), deep=False), folder, filter="data")
                bar.update()


def unpack_batches(archive: Path, folder: Path, classes: Sequence[str], bar: tqdm) -> None:
    """Write the arrays of the Python version of CIFAR-10 into `folder` as PNG files, named by their number.

    Label k belongs to classes[k]. `bar` moves by one an image.
    Raises VimlearnError where a member would leave the folder, where a pickle asks for more than an array of bytes, or
    where the archive is damaged.
    """
    for split in SPLITS:
        for name in classes:
            (folder / split / name).mkdir(parents=True)
    with _opened(archive) as tar:
        for member in _checked(tar):
            name = PurePosixPath(member.name).name
            if name not in BATCHES:
                continue
            split, first = BATCHES[name]
            images, labels = _read_batch(tar.extractfile(member), name, len(classes))
            for i, (pixels, label) in enumerate(zip(images, labels, strict=True)):
                Image.fromarray(pixels).save(folder / split / classes[label] / f"{first + i:05d}.png")
                bar.update()


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    if not hasattr(tarfile, "data_filter"):
        raise VimlearnError("this Python cannot unpack archives safely; it needs release 3.11.4 or later")
    try:
        with tarfile.open(archive) as tar:
            yield tar
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise VimlearnError(f"{archive.name} is damaged or no tar archive: {error}; fetch it again") from error


def _checked(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in tar:
        _check_member(member)
        yield member


def _check_member(member: tarfile.TarInfo) -> None:
    """Raise VimlearnError unless the member is a plain file or folder under a relative name without `..`."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or "\\" in member.name or ":" in member.name:
        wrong = "leads out of the folder"
    elif not (member.isfile() or member.isdir()):
        wrong = "is a link or a device"
    else:
        return
    raise VimlearnError(f"the archive was not unpacked: its member {member.name!r} {wrong}, and only files and folders "
                        "inside are expected; get the archive from another source")


class ArrayUnpickler(pickle.Unpickler):
    """Reads a pickle of plain containers and NumPy arrays, and refuses every other name that the pickle asks for."""

    def __init__(self, file: BinaryIO):
        # Python 2 wrote these files: its strings are bytes.
        super().__init__(file, encoding="bytes")

    def find_class(self, module: str, name: str):
        """Return one of the three things that an array is built from. Raises VimlearnError for everything else."""
        if (module, name) not in ARRAY_PARTS:
            raise VimlearnError(f"the pickle asks for {module}.{name}, and only arrays, lists, numbers and text are "
                                "expected; it was not read; get the archive from another source")
        return ARRAY_PARTS[module, name]


# NumPy's function has moved between its modules, so it is taken from an array.
ARRAY_PARTS = {("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
               ("numpy", "ndarray"): np.ndarray,
               ("numpy", "dtype"): np.dtype}


def _read_batch(file: BinaryIO, name: str, num_classes: int) -> tuple[np.ndarray, list[int]]:
    """Return images (N, 32, 32, 3) of bytes and their N labels."""
    try:
        content = ArrayUnpickler(file).load()
        images, labels = content[b"data"], content[b"labels"]
        # (N, 3 * 32 * 32), colour by colour
        images = images.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
        fits = (images.dtype == np.uint8 and len(images) == len(labels)
                and all(type(label) is int and 0 <= label < num_classes for label in labels))
    except VimlearnError:
        raise
    except Exception as error:  # whatever a damaged pickle leads to
        raise VimlearnError(f"{name} is no batch of CIFAR-10 ({type(error).__name__}: {error}); "
                            "fetch the archive again") from error
    if not fits:
        raise VimlearnError(f"{name} is no batch of CIFAR-10: expected rows of {3 * SIDE**2} bytes, each with a label "
                            f"below {num_classes}; fetch the archive again")
    return np.ascontiguousarray(images), labels
