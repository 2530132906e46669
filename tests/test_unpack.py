"""Archives that mean harm or are damaged: nothing is written outside the folder, and no pickle calls a function."""

import gzip
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from published_archives import WNIDS, cifar, python2_pickle, tar_of, tree
from tqdm import tqdm

from vimlearn import VimlearnError
from vimlearn.fetch import SETS
from vimlearn.unpack import unpack_batches, unpack_tree

CLASSES = {unpack_tree: WNIDS, unpack_batches: SETS["cifar10"].classes}


@pytest.fixture
def unpack(monkeypatch, tmp_path):
    """Unpack an archive with these members into tmp_path/set, and return how many images were written."""
    monkeypatch.chdir(tmp_path)
    Path("set").mkdir()

    def unpack(function, members) -> int:
        Path("archive.tgz").write_bytes(members if isinstance(members, bytes) else tar_of(members))
        with tqdm(disable=True) as bar:
            function(Path("archive.tgz"), Path("set"), CLASSES[function], bar)
        return sum(not path.is_dir() for path in Path("set").rglob("*"))
    return unpack


def outside() -> set[str]:
    return {path.name for path in Path().iterdir()} - {"archive.tgz", "set"}


def test_archives_as_published_are_unpacked(unpack):
    assert unpack(unpack_tree, {**tree(), f"{INSIDE}/folder.JPEG": special(tarfile.DIRTYPE)}) == 14
    assert not Path("set/train", WNIDS[0], "folder.JPEG").exists()
    assert unpack(unpack_batches, cifar()) == 28


def special(kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


INSIDE = f"imagenette2-320/train/{WNIDS[0]}"


@pytest.mark.parametrize("name, content", [
    ("../owned", b"x"), (f"{INSIDE}/../../../../owned", b"x"), (f"top/train/{WNIDS[0]}/..", b"x"),
    ("/{here}/owned", b"x"), ("C:\\owned", b"x"), ("C:/owned", b"x"), ("top\\..\\..\\owned", b"x"),
    (f"{INSIDE}/link.JPEG", special(tarfile.SYMTYPE, "../../../../owned")),
    (f"{INSIDE}/link.JPEG", special(tarfile.SYMTYPE, "/etc")), (f"{INSIDE}", special(tarfile.SYMTYPE, "../train")),
    (f"{INSIDE}/link.JPEG", special(tarfile.LNKTYPE, f"{INSIDE}/train_0.JPEG")),
    (f"{INSIDE}/pipe.JPEG", special(tarfile.FIFOTYPE)), (f"{INSIDE}/device.JPEG", special(tarfile.CHRTYPE)),
    (f"{INSIDE}/disk.JPEG", special(tarfile.BLKTYPE)),
])
@pytest.mark.parametrize("function, members", [(unpack_tree, tree), (unpack_batches, cifar)])
def test_member_that_escapes_is_refused(unpack, tmp_path, function, members, name, content):
    hostile = {name.replace("/{here}", str(tmp_path)): content}
    # Images before it are unpacked by then.
    with pytest.raises(VimlearnError, match=r"was not unpacked: its member .* (leads out of|is a link or a device)"):
        unpack(function, {**members(), **hostile})
    assert not outside() and not [path for path in Path("set").rglob("*") if path.is_symlink() or path.name == "owned"]


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("value", [
    Hostile(exec, "open('owned', 'w')"), Hostile(np.save, "owned", 1), Hostile(np.ctypeslib.load_library, "owned", "."),
    {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 0], "x": Hostile(open, "owned", "w")}])
@pytest.mark.parametrize("dump", [python2_pickle, lambda value: pickle.dumps(value, 0), pickle.dumps])
def test_hostile_pickle_does_not_run(unpack, value, dump):
    with pytest.raises(VimlearnError, match=r"^the pickle asks for \S+, and only arrays"):
        unpack(unpack_batches, cifar(data_batch_2=dump(value)))
    assert not outside()


@pytest.mark.parametrize("content, message", [
    (b"\x80\x02}q", "data_batch_2 is no batch of CIFAR-10"), (python2_pickle({"labels": []}), "no batch .*KeyError"),
    (python2_pickle({"data": np.zeros((2, 3072)), "labels": [0, 0]}), "expected rows of 3072 bytes"),
    (python2_pickle({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}), "expected rows of 3072 bytes"),
    (python2_pickle({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]}), "with a label below 10"),
    (python2_pickle({"data": np.zeros((2, 3072), np.uint8), "labels": [0, -1]}), "with a label below 10"),
    (python2_pickle({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1.0]}), "with a label below 10"),
])
def test_damaged_batch_is_refused(unpack, content, message):
    with pytest.raises(VimlearnError, match=message):
        unpack(unpack_batches, cifar(data_batch_2=content))


ARCHIVE = tar_of(tree())


@pytest.mark.parametrize("content", [
    b"no archive", ARCHIVE[:100_000], gzip.compress(gzip.decompress(ARCHIVE)[:100_000]) + b"no gzip"])
@pytest.mark.parametrize("function", [unpack_tree, unpack_batches])
def test_damaged_archive_is_refused(unpack, function, content):
    with pytest.raises(VimlearnError, match=r"archive.tgz is damaged or no tar archive"):
        unpack(function, content)


def test_damage_within_an_image_is_refused(unpack):
    archive = tar_of({f"{INSIDE}/large.JPEG": np.random.default_rng(0).bytes(300_000)})
    with pytest.raises(VimlearnError, match=r"archive.tgz is damaged or no tar archive"):
        unpack(unpack_tree, archive[:100_000] + b"\xff" * 100_000 + archive[200_000:])


def test_old_python_is_refused(unpack, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(VimlearnError, match=r"needs release 3.11.4"):
        unpack(unpack_tree, tree())
