"""Small archives in the form of the published ones, and a server that can break off."""

import io
import pickle
import struct
import tarfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from vimlearn.fetch import SETS

IMAGES = {"train": 10, "val": 4}
WNIDS = SETS["imagenette"].classes


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes as Python 2 did, which wrote the files of CIFAR-10."""

    def save_string(self, value):
        data = value if isinstance(value, bytes) else value.encode()
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(value)
    dispatch = {**pickle._Pickler.dispatch, bytes: save_string, str: save_string}  # noqa: RUF012


def python2_pickle(value) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def tar_of(members: dict) -> bytes:
    """A compressed archive: name to content, or to a TarInfo whose name is filled in."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo()
            info.name = name
            info.size = 0 if content is info else len(content)
            tar.addfile(info, None if content is info else io.BytesIO(content))
    return file.getvalue()


def batches() -> dict[str, tuple[np.ndarray, list[int]]]:
    """Five batches of two images and one of four, in an order that is not theirs."""
    numbers = np.random.default_rng(0)
    names = ["data_batch_4", "test_batch", *(f"data_batch_{i}" for i in (3, 1, 2, 5))]
    return {name: (numbers.integers(0, 256, (4 if name == "test_batch" else 2, 3072), dtype=np.uint8),
                   [7, 0, 9, 9] if name == "test_batch" else [int(name[-1]), 0]) for name in names}


def cifar(**other) -> dict[str, bytes]:
    """The members of a small CIFAR-10, with other content in the batches that are named."""
    content = {name: python2_pickle({"batch_label": name, "labels": labels, "data": rows, "filenames": ["a.png"]})
               for name, (rows, labels) in batches().items()} | other
    return {"cifar-10-batches-py/readme.html": b"<html>", **{f"cifar-10-batches-py/{k}": v for k, v in content.items()}}


def tree() -> dict[str, bytes]:
    """The members of a small Imagenette. Its images are noise, so the archive is about as long as they are."""
    numbers = np.random.default_rng(1)
    images = {f"./imagenette2-320/{split}/{WNIDS[i]}/{split}_{i}.JPEG": numbers.bytes(20_000)
              for split, count in IMAGES.items() for i in range(count)}
    others = ("noisy_imagenette.csv", ".DS_Store", f"train/{WNIDS[0]}/._x.JPEG", "train/other/y.JPEG")
    return {**images, **{f"imagenette2-320/{name}": b"?" for name in others}}


class Server(ThreadingHTTPServer):
    """Serves `content`, and logs (range asked for, bytes sent).

    cuts: after how many bytes the next connections break. shift: how far the server starts from where it is asked to.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.content, self.cuts, self.log, self.ranges, self.lengths, self.shift = b"", [], [], True, True, 0
        self.url = f"http://127.0.0.1:{self.server_port}/archive.tgz"


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        asked, whole = self.headers["Range"], self.server.content
        start = int(asked.removeprefix("bytes=").rstrip("-")) + self.server.shift if asked and self.server.ranges else 0
        if start >= len(whole):
            self.send_error(416 if start else 404)
            return
        body = whole[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        if self.server.lengths:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        sent = body[:self.server.cuts.pop(0) if self.server.cuts else None]
        self.wfile.write(sent)
        self.server.log.append((asked, len(sent)))

    def log_message(self, *_):
        pass
