"""`vimlearn fetch` against a server of our own: what arrives, what is continued, what hostile archives cannot do."""

import dataclasses
import errno
import hashlib
import io
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torchvision
from filelock import FileLock
from PIL import Image
from published_archives import IMAGES, WNIDS, Server, batches, cifar, python2_pickle, tar_of, tree

from vimlearn import VimlearnError, cli, resume
from vimlearn.fetch import SETS, fetch_dataset


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def publish(server, monkeypatch, tmp_path):
    """Put an archive on the server and into the table of sets, in the place of `name`; work in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def publish(name: str, members: dict) -> bytes:
        server.content = content = tar_of(members)
        monkeypatch.setitem(SETS, name, dataclasses.replace(
            SETS[name], url=server.url, size=len(content), sha256=hashlib.sha256(content).hexdigest(), images=IMAGES))
        return content
    return publish


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def left() -> set[str]:
    """What lies in the folder of the sets, apart from the lock."""
    return {path.name for path in Path("datasets").glob("*") if path.suffix != ".lock"}


def test_cifar_becomes_png_files(publish, capsys):
    publish("cifar10", cifar())
    assert cli.main(["fetch", "cifar10"]) == 0
    out, err = capsys.readouterr()
    assert "170 MB" not in out and "Krizhevsky" in out and "about 450 MB" in out and "14 colour images" in out
    assert "written to datasets/cifar10: 10 train + 4 val images" in out and "download" in err and "unpack" in err
    expected = set()
    for name, (rows, labels) in batches().items():
        first = 0 if name == "test_batch" else 10_000 * (int(name[-1]) - 1)
        for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
            place = f"{'val' if name == 'test_batch' else 'train'}/{SETS['cifar10'].classes[label]}/{first + i:05d}.png"
            with Image.open(Path("datasets/cifar10", place)) as image:
                pixels = np.asarray(image)
            assert np.array_equal(pixels[..., 1].ravel(), row[1024:2048]) and pixels.shape == (32, 32, 3)
            assert np.array_equal(pixels[0, 5], row[5::1024])
            expected.add(place)
    assert files(Path("datasets/cifar10")) == expected and left() == {"cifar10"}
    assert len(torchvision.datasets.ImageFolder("datasets/cifar10/val", allow_empty=True).classes) == 10


def test_imagenette_is_a_tree_already_and_second_call_finds_it(publish, server, capsys):
    publish("imagenette", tree())
    assert fetch_dataset("imagenette", "set") == Path("set")
    wanted = {name.removeprefix("./imagenette2-320/"): content for name, content in tree().items() if name[0] == "."}
    assert files(Path("set")) == set(wanted)
    assert all(Path("set", name).read_bytes() == content for name, content in wanted.items())
    requests = len(server.log)
    Path("set/train", WNIDS[0], ".DS_Store").touch()
    fetch_dataset("imagenette", "set")
    assert len(server.log) == requests and "already there: set holds 10 train + 4 val" in capsys.readouterr().out


def test_broken_connection_is_taken_up_at_once(publish, server):
    content = publish("imagenette", tree())
    server.cuts = [100_000, 50_000]
    fetch_dataset("imagenette", quiet=True)
    assert [asked for asked, _ in server.log] == [None, "bytes=100000-", "bytes=150000-"]
    assert sum(sent for _, sent in server.log) == len(content) and left() == {"imagenette"}


def test_next_call_takes_up_a_download(publish, server):
    content = publish("imagenette", tree())
    server.cuts = [100_000, 0]
    with pytest.raises(VimlearnError, match=r"closed early; .*run the same again: 100,000 of [\d,]+ bytes are here"):
        fetch_dataset("imagenette", quiet=True)
    assert left() == {"imagenette.part"}
    fetch_dataset("imagenette", quiet=True)
    assert server.log[-1] == ("bytes=100000-", len(content) - 100_000) and left() == {"imagenette"}


def test_server_without_ranges_starts_again_and_ends(publish, server):
    content = publish("imagenette", tree())
    server.ranges, server.cuts = False, [100_000]
    fetch_dataset("imagenette", "a", quiet=True)
    assert server.log == [(None, 100_000), ("bytes=100000-", len(content))]
    server.cuts = [100_000] * 50
    with pytest.raises(VimlearnError, match="closed early"):
        fetch_dataset("imagenette", "b", quiet=True)
    assert len(server.log) == 4


@pytest.mark.parametrize("shift", [-10, 10])
def test_server_that_sends_another_range_is_not_believed(publish, server, shift):
    publish("imagenette", tree())
    server.shift, server.cuts = shift, [100_000]
    with pytest.raises(VimlearnError, match="was asked for the bytes from 100,000 on and sent others"):
        fetch_dataset("imagenette", quiet=True)


@pytest.mark.parametrize("length", [5_000, None, 10**6])
def test_beginning_of_another_file_is_thrown_away(publish, server, length):
    content = publish("imagenette", tree())
    Path("datasets").mkdir()
    Path("datasets/imagenette.part").write_bytes(b"x" * (length or len(content)))
    fetch_dataset("imagenette", quiet=True)
    assert left() == {"imagenette"} and server.log[-1] == (None, len(content))


@pytest.mark.parametrize("lengths", [True, False])
def test_another_file_behind_the_address_is_refused(publish, server, lengths):
    content, server.lengths = publish("imagenette", tree()), lengths
    server.content = content[:-1] + b"?"
    with pytest.raises(VimlearnError, match=r"hashes to .*; it is damaged or was replaced"):
        fetch_dataset("imagenette", quiet=True)
    assert not left()
    server.content = content + b"?"
    with pytest.raises(VimlearnError, match="the published one has" if lengths else "sends more than the"):
        fetch_dataset("imagenette", quiet=True)
    # Here less is on the server than has been fetched before: the range is refused.
    Path("datasets/imagenette.part").write_bytes(content[:-5])
    server.content = content[:100]
    with pytest.raises(VimlearnError, match="the published one has" if lengths else "closed early"):
        fetch_dataset("imagenette", quiet=True)
    assert "imagenette" not in left()


def test_no_network_is_one_line(publish, server, capsys):
    publish("imagenette", tree())
    server.content = b""
    for url, message in ((server.url, "404"), ("http://127.0.0.1:1/x", "refused"), ("http://[", "cannot download"),
                         ("ftp://host/x", "there is no file ftp://host/x; expected an http(s) address")):
        assert cli.main(["fetch", "imagenette", "--quiet", "--url", url]) == 2
        err = capsys.readouterr().err
        assert err.startswith("vimlearn: ") and err.count("\n") == 1 and message in err, err


@pytest.mark.parametrize("as_url", [True, False])
def test_archive_that_is_here_already(publish, server, tmp_path, as_url):
    content, archive = publish("imagenette", tree()), tmp_path / "my archive.tgz"
    archive.write_bytes(content[:-1])
    url = archive.as_uri() if as_url else str(archive)
    with pytest.raises(VimlearnError, match="hashes to"):
        fetch_dataset("imagenette", url=url, quiet=True)
    archive.write_bytes(content)
    fetch_dataset("imagenette", url=url, quiet=True)
    assert archive.read_bytes() == content and left() == {"imagenette"} and not server.log


HOSTILE = {"imagenette": {**tree(), "../owned": b"x"}, "cifar10": cifar(data_batch_2=pickle.dumps(Path(), 2))}


@pytest.mark.parametrize("name", HOSTILE)
def test_archive_that_is_refused_leaves_nothing(publish, tmp_path, name):
    publish(name, HOSTILE[name])
    with pytest.raises(VimlearnError, match="get the archive from another source"):
        fetch_dataset(name, "deep/down/set", quiet=True)
    assert files(tmp_path) - {"deep/down/set.lock"} == {"deep/down/set.part"}
    assert [path.name for path in Path("deep/down").iterdir() if path.is_dir()] == []


def test_archive_without_some_images_is_refused(publish):
    publish("cifar10", cifar(data_batch_2=python2_pickle({"data": np.zeros((1, 3072), np.uint8), "labels": [0]})))
    with pytest.raises(VimlearnError, match="not the whole set: train has 9 of 10 images"):
        fetch_dataset("cifar10", quiet=True)
    assert left() == {"cifar10.part"}


def failing(error: BaseException, after: int):
    """A way to save an image that fails after some."""
    save, calls = Image.Image.save, []

    def fail(self, path):
        calls.append(path)
        if len(calls) > after:
            raise error
        save(self, path)
    return fail


@pytest.mark.parametrize("error, message, raised", [
    (KeyboardInterrupt(), "stopped; the same command takes up", KeyboardInterrupt),
    (OSError(errno.ENOSPC, "No space"), "disk of datasets/cifar10 is full; CIFAR-10 needs about 450 MB", VimlearnError),
    (PermissionError(errno.EACCES, "Denied", "p"), "no permission for p", VimlearnError)])
def test_interrupted_unpacking_leaves_no_half_tree(publish, server, monkeypatch, error, message, raised):
    publish("cifar10", cifar())
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", failing(error, 3))
        with pytest.raises(raised, match=message):
            fetch_dataset("cifar10", quiet=True)
    assert left() == {"cifar10.part"}
    # As a process that was killed leaves it
    Path("datasets/cifar10.unpacking/train/old").mkdir(parents=True)
    requests = len(server.log)
    fetch_dataset("cifar10", quiet=True)
    assert left() == {"cifar10"} and len(server.log) == requests and not Path("datasets/cifar10/train/old").exists()


@pytest.mark.parametrize("error, message", [
    (OSError(errno.ENOSPC, "No space"), "is full; .* What was downloaded is kept"),
    (PermissionError(errno.EACCES, "Denied", "here"), "no permission for here; ask for it, or choose another --output"),
    (OSError(errno.EIO, "Input/output error"), "cannot write datasets/imagenette: .*Input/output error")])
def test_disk_that_refuses_the_download(publish, monkeypatch, error, message):
    class Full(io.FileIO):
        def write(self, block):
            raise error
    publish("imagenette", tree())
    monkeypatch.setattr(resume, "open", Full, raising=False)
    with pytest.raises(VimlearnError, match=message):
        fetch_dataset("imagenette", quiet=True)


def test_other_content_is_never_overwritten(publish, server, tmp_path, monkeypatch):
    publish("cifar10", cifar())
    for place, output, message in (("mine/notes.txt", "mine", "mine is not empty and not the whole of CIFAR-10"),
                                   ("file", "file", "file is a file; expected a folder"),
                                   ("file", "file/set", "a file where a folder is needed"),
                                   ("file", "file/deep/set", "a file where a folder is needed")):
        tmp_path.joinpath(place).parent.mkdir(exist_ok=True)
        tmp_path.joinpath(place).write_text("precious")
        with pytest.raises(VimlearnError, match=message):
            fetch_dataset("cifar10", output, quiet=True)
        assert tmp_path.joinpath(place).read_text() == "precious"
    Path("empty").mkdir()
    Path("link").symlink_to("empty")
    fetch_dataset("cifar10", "link", quiet=True)
    assert Path("link").is_symlink() and Path("empty/train/cat").is_dir() and len(server.log) == 1
    Path("empty/val/truck/00002.png").unlink()
    with pytest.raises(VimlearnError, match=r"val has 3 of 4 images.; nothing in it is overwritten"):
        fetch_dataset("cifar10", "empty", quiet=True)
    Path("here").mkdir()
    monkeypatch.chdir("here")
    with pytest.raises(VimlearnError, match="is the folder you are in"):
        fetch_dataset("cifar10", ".", quiet=True)


def test_two_at_once_do_not_mix(publish):
    publish("cifar10", cifar())
    Path("datasets").mkdir()
    with FileLock("datasets/cifar10.lock"), pytest.raises(VimlearnError, match="another `vimlearn fetch` is writing"):
        fetch_dataset("cifar10", quiet=True)
    fetch_dataset("cifar10", quiet=True)


def test_command_line(publish, capsys, monkeypatch):
    publish("cifar10", cifar())
    assert cli.main(["fetch", "cifar10", "--quiet", "--output", "x"]) == 0 and capsys.readouterr() == ("", "")
    for args, message in ((["cifar"], "unknown set 'cifar', did you mean 'cifar10'?; expected one of cifar10, imagen"),
                          ([], "Missing from vimlearn fetch: NAME"), (["cifar10", "x"], "unexpected 'x'"),
                          (["cifar10", "--outptu", "x"], "unknown option --outptu, did you mean '--output'?")):
        assert cli.main(["fetch", *args]) == 2 and message in capsys.readouterr().err
    monkeypatch.undo()
    with pytest.raises(SystemExit):
        cli.main(["fetch", "--help"])
    shown = capsys.readouterr().out
    assert all(f"--{name}" in shown for name in ("output", "url", "quiet"))
    assert all(name in shown and f"{published.size / 1e6:.0f} MB" in shown for name, published in SETS.items())


def test_table_agrees_with_torchvision():
    assert SETS["cifar10"].url == torchvision.datasets.CIFAR10.url
    assert SETS["imagenette"].url == torchvision.datasets.Imagenette._ARCHIVES["320px"][0]
    assert set(WNIDS) == set(torchvision.datasets.Imagenette._WNID_TO_CLASS)
    for published in SETS.values():
        assert list(published.classes) == sorted(published.classes) and len(bytes.fromhex(published.sha256)) == 32
    assert "/datasets/" in Path(__file__).parents[1].joinpath(".gitignore").read_text().splitlines()
