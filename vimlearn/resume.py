"""One file over HTTP, continued where an earlier try broke off.

The file grows under a name of its own. Whoever asked for it checks its hash, then uses or renames it.
"""

__all__ = ["download"]

import http.client
import re
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from .errors import VimlearnError

BLOCK = 1 << 18
"""Bytes read at a time."""
TIMEOUT = 30
"""Seconds without a byte after which a connection counts as broken."""


class _BrokenError(Exception):
    """The network failed: what has arrived is kept, and another try may go on from there."""


def download(url: str, part: Path, size: int, quiet: bool = False) -> bool:
    """Bring the file `part` to `size` bytes from an http(s) URL, and return whether an earlier call had begun it.

    What `part` already holds is asked for no more (HTTP Range), nothing where it is long enough. A server that sends
    all the same, or refuses the range, makes it begin again. A broken connection is taken up again at once for as long
    as each try gets further. The hash is for the caller to check: the beginning may be that of another file.
    Raises VimlearnError where nothing more arrives (`part` stays for the next call), or where the file behind the URL
    has another size; OSError where `part` cannot be written.
    """
    furthest = begun = _length(part)
    with tqdm(total=size, desc="download", unit="B", unit_scale=True, initial=begun, dynamic_ncols=True,
              disable=quiet or begun >= size) as bar:
        while (have := _length(part)) < size:
            reason = "the connection closed early"
            try:
                _receive(url, part, have, size, bar)
            except _BrokenError as error:
                reason = str(error)
            have = _length(part)
            if have <= furthest and have < size:
                kept = f": {have:,} of {size:,} bytes are here and are kept" if have else ""
                raise VimlearnError(f"cannot download {url}: {reason}; check the address and the connection, then run "
                                    f"the same again{kept}")
            furthest = max(furthest, have)
    return begun > 0


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _receive(url: str, part: Path, offset: int, size: int, bar: tqdm) -> None:
    """Append to `part` what the server sends from `offset` on, or write it anew where the server sends all."""
    with _open(url, offset) as answer:
        start, length = _extent(answer, offset)
        if length not in (None, size):
            # Such as a page that says "not found", or another release of the set
            raise VimlearnError(f"{url} is a file of {length:,} bytes, the published one has {size:,}; "
                                "name another address")
        bar.reset()
        bar.update(start)
        with open(part, "ab" if start else "wb") as file:
            for block in _blocks(answer):
                if file.tell() + len(block) > size:
                    raise VimlearnError(f"{url} sends more than the {size:,} bytes of the published file; "
                                        "name another address")
                file.write(block)
                bar.update(len(block))


def _open(url: str, offset: int) -> http.client.HTTPResponse:
    headers = {"User-Agent": "vimlearn", **({"Range": f"bytes={offset}-"} if offset else {})}
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
            return _open(url, 0)
        raise _BrokenError(str(error)) from error
    except urllib.error.URLError as error:
        raise _BrokenError(str(error.reason)) from error
    except (http.client.HTTPException, OSError, ValueError) as error:
        raise _BrokenError(str(error) or type(error).__name__) from error


def _extent(answer: http.client.HTTPResponse, offset: int) -> tuple[int, int | None]:
    """Return where in the file the answer begins, and how long the file is if the server says so."""
    if answer.status != http.client.PARTIAL_CONTENT:
        length = answer.headers.get("Content-Length")
        return 0, int(length) if length else None
    found = re.match(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range") or "")
    if not found or int(found[1]) != offset:
        raise _BrokenError(f"the server was asked for the bytes from {offset:,} on and sent others")
    return int(found[1]), None if found[2] == "*" else int(found[2])


def _blocks(answer: http.client.HTTPResponse):
    while True:
        try:
            block = answer.read(BLOCK)
        except (http.client.HTTPException, OSError) as error:
            raise _BrokenError(str(error) or type(error).__name__) from error
        if not block:
            return
        yield block
