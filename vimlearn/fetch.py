"""`vimlearn fetch`: a published set of images from its source to a checked folder FOLDER/{train,val}/CLASS/IMAGE.

Three things lie beside FOLDER while it works: FOLDER.part, the archive as far as it has arrived; FOLDER.unpacking,
which takes the name FOLDER when it is whole; and FOLDER.lock. So FOLDER is there as a whole or not at all, and a stop
loses nothing that has arrived.
"""

__all__ = ["SETS", "FetchOptions", "PublishedSet", "fetch_dataset"]

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit
from urllib.request import url2pathname

import tyro
from filelock import FileLock, Timeout
from tqdm import tqdm

from .download import check_sha256
from .errors import VimlearnError, nearest
from .resume import download
from .unpack import unpack_batches, unpack_tree


@dataclass(frozen=True)
class PublishedSet:
    """A set of images as its authors publish it.

    size: of the archive, bytes. room: what archive and images need on the disk together, bytes, roughly. classes: the
    folders, in the order of the labels. images: a count for each part. unpack: writes the archive's images.
    """

    title: str
    about: str
    licence: str
    url: str
    size: int
    sha256: str
    room: int
    classes: tuple[str, ...]
    images: dict[str, int]
    unpack: Callable


SETS = {
    "cifar10": PublishedSet(
        title="CIFAR-10", about="colour images of 32 x 32 pixels",
        licence="its authors state no licence and ask to cite Krizhevsky, Learning Multiple Layers of Features from "
                "Tiny Images, 2009",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", size=170_498_071,
        sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce", room=450_000_000,
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        images={"train": 50_000, "val": 10_000}, unpack=unpack_batches),
    "imagenette": PublishedSet(
        title="Imagenette2-320", about="photographs, shorter side 320 pixels, of ten ImageNet classes",
        licence="the photographs are ImageNet's, for research and teaching that is not commercial "
                "(image-net.org/download)",
        url="https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz", size=341_663_724,
        sha256="569b4497c98db6dd29f335d1f109cf315fe127053cedf69010d047f0188e158c", room=750_000_000,
        classes=("n01440764", "n02102040", "n02979186", "n03000684", "n03028079", "n03394916", "n03417042", "n03425413",
                 "n03445777", "n03888257"),
        images={"train": 9_469, "val": 3_925}, unpack=unpack_tree),
}


@dataclass(frozen=True)
class FetchOptions:
    """Options of `vimlearn fetch`."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """Name of the set of images: cifar10 or imagenette."""
    output: str | None = None
    """Folder to write, which must be new or empty. None: datasets/NAME."""
    url: str | None = None
    """Address of a mirror, file:///PATH, or path of an archive that is here already. It must be the published one, bit
    for bit. None: the address at which its authors publish it."""
    quiet: bool = False
    """Whether to leave out the progress bar and all notes."""


def fetch_dataset(name: str, output: str | os.PathLike | None = None, url: str | None = None,
                  quiet: bool = False) -> Path:
    """Download the set of images called `name`, check it, unpack it, and return its folder.

    A folder that holds the whole set already is left as it is; another one that is not empty is never touched. The
    arguments are the fields of FetchOptions.
    Raises VimlearnError where there is no such set, where the archive cannot be had or is not the published one, and
    where the disk is full or not to be written.
    """
    if name not in SETS:
        raise VimlearnError(f"unknown set {name!r}{nearest(name, SETS)}; expected one of {', '.join(SETS)}")
    published = SETS[name]
    folder = Path(output if output is not None else Path("datasets", name)).expanduser()
    say = (lambda text: None) if quiet else print
    with _plain_errors(folder, published):
        if _is_there(published, folder):
            say(f"already there: {folder} holds {_counts(published.images)} images")
        else:
            say(f"{published.title}: {sum(published.images.values()):,} {published.about}\n"
                f"size: {published.size / 1e6:.0f} MB to download, about {published.room / 1e6:.0f} MB on the disk "
                f"while it is unpacked\nlicence: {published.licence}")
            # A link stays a link, and what is renamed is its target.
            _fetch(published, folder.resolve(), url or published.url, quiet)
            say(f"written to {folder}: {_counts(published.images)} images")
    say(f"for training: vimlearn train --dataset {folder}")
    return folder


def _fetch(published: PublishedSet, folder: Path, url: str, quiet: bool) -> None:
    part, unpacking, lock = (folder.with_name(folder.name + suffix) for suffix in (".part", ".unpacking", ".lock"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            # Another process may have done it since.
            if _is_there(published, folder):
                return
            _unpack(published, _archive(published, url, part, quiet), unpacking, quiet)
            if folder.exists():
                folder.rmdir()
            unpacking.rename(folder)
            part.unlink(missing_ok=True)
    except Timeout as error:
        raise VimlearnError(f"another `vimlearn fetch` is writing {folder}; wait for it, or choose another "
                            "--output") from error
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("stopped; the same command takes up the download where it was") from stop


def _is_there(published: PublishedSet, folder: Path) -> bool:
    """Return whether the folder holds the whole set. Raises VimlearnError where it holds anything else."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise VimlearnError(f"{folder} is a file; expected a folder to write. Choose another --output")
    if not any(folder.iterdir()):
        if folder.samefile(Path.cwd()):
            raise VimlearnError(f"the output {folder} is the folder you are in, which would be replaced by a new one; "
                                "name a folder to be made, as in --output cifar10")
        return False
    missing = _missing(published, folder)
    if missing:
        raise VimlearnError(f"{folder} is not empty and not the whole of {published.title} ({missing}); nothing in it "
                            "is overwritten: move it away, or choose another --output")
    return True


def _missing(published: PublishedSet, folder: Path) -> str:
    """Return, in words, how the folder differs from the whole set; an empty string where it does not."""
    for split, expected in published.images.items():
        found = 0
        for name in published.classes:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder / split / name) as files:
                found += sum(not file.name.startswith(".") for file in files)
        if found != expected:
            return f"{split} has {found:,} of {expected:,} images"
    return ""


def _counts(images: dict[str, int]) -> str:
    return " + ".join(f"{count:,} {split}" for split, count in images.items())


def _archive(published: PublishedSet, url: str, part: Path, quiet: bool) -> Path:
    """Return the archive as a checked local file: `part`, or the user's own file."""
    if not url.lower().startswith(("http://", "https://")):
        path = Path(url2pathname(urlsplit(url).path) if url.startswith("file:") else url).expanduser()
        if not path.is_file():
            raise VimlearnError(f"there is no file {url}; expected an http(s) address, file:///PATH, or the path of "
                                "an archive")
        check_sha256(path, published.sha256)
        return path
    begun_before = download(url, part, published.size, quiet)
    try:
        check_sha256(part, published.sha256, remove=True)
    except VimlearnError:
        if not begun_before:
            raise
        # The beginning was that of another file.
        download(url, part, published.size, quiet)
        check_sha256(part, published.sha256, remove=True)
    return part


def _unpack(published: PublishedSet, archive: Path, unpacking: Path, quiet: bool) -> None:
    """Write the images into the new folder `unpacking`, and count them; on any failure the folder is removed."""
    # Left by a process that was killed
    shutil.rmtree(unpacking, ignore_errors=True)
    unpacking.mkdir()
    try:
        with tqdm(total=sum(published.images.values()), desc="unpack", unit="img", dynamic_ncols=True,
                  disable=quiet) as bar:
            published.unpack(archive, unpacking, published.classes, bar)
        missing = _missing(published, unpacking)
        if missing:
            raise VimlearnError(f"{archive.name} is not the whole set: {missing}; get it from another source")
    except BaseException:
        shutil.rmtree(unpacking, ignore_errors=True)
        raise


@contextlib.contextmanager
def _plain_errors(folder: Path, published: PublishedSet):
    """Turn what the disk refuses into a VimlearnError that says what to do."""
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = (f"the disk of {folder} is full; {published.title} needs about {published.room / 1e6:.0f} MB there. "
                    "What was downloaded is kept: make room and run the same again, or choose another --output")
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            text = f"no permission for {where}; ask for it, or choose another --output"
        elif error.errno in (errno.ENOTDIR, errno.EEXIST):
            text = f"{where} is a file where a folder is needed; choose another --output"
        else:
            text = f"cannot write {folder}: {error}; choose another --output"
        raise VimlearnError(text) from error
