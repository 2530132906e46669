"""From a path, URL, hub id or the name of a network that comes along to a checked local file."""

__all__ = ["fetch"]

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

import torch

from .errors import VimlearnError
from .shipped import DEFAULT, MARK, shipped_file

# Files whose hashes are known: published ones, and those that come along.
KNOWN_SHA256 = {
    "vim_t_midclstok_76p1acc.pth": "fedb1e60267f3bc7b2a8443f2ddead8d39e019d10247a87252162b3789801fd5",
    "vim_t_midclstok_ft_78p3acc.pth": "9847490c5c3ca36cc38caf8be537b726f326a1b5b15764b0bde650934ac35b54",
    "vim_cifar10.safetensors": "e5e13a9144d5267ca2813c106e6e05e96c17bb38891abbabb0fa7c3b5212d4a8",
    "vim_scenes.safetensors": "b790fe4caf028e9179ed31a07ed6a641e83d3446b150ecd3553e2104d1595720",
}
HUB = "hub:"
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def fetch(source: str | os.PathLike, sha256: str | None = None) -> Path:
    """Return a local file for `source`: a path, an http(s) URL, a hub id "owner/name" or "owner/name/file", or
    "shipped:NAME".

    With "hub:" before it, a hub id is never taken for a path. Downloads go to the caches of PyTorch and of the hub, are
    written aside first, and are used again. With `sha256`, and for published files whose hash is known, a download
    that differs is refused.
    Raises VimlearnError where there is no such file, or where it is not what it should be.
    """
    text = os.fspath(source)
    if text.startswith(("http://", "https://")):
        path = _from_url(text)
        check_sha256(path, sha256 or KNOWN_SHA256.get(path.name), remove=True)
    elif text.startswith(MARK):
        path = shipped_file(text.removeprefix(MARK))
        check_sha256(path, sha256 or KNOWN_SHA256[path.name])
    elif Path(text).exists() and not text.startswith(HUB):
        path = Path(text)
        check_sha256(path, sha256)
    elif _looks_like_hub_id(text):
        path = _from_hub(text.removeprefix(HUB))
        check_sha256(path, sha256 or KNOWN_SHA256.get(path.name))
    else:
        raise VimlearnError(f"there is no file {text}; expected a path, a URL, {DEFAULT}, or a hub id such as "
                            "hub:hustvl/Vim-tiny-midclstok/vim_t_midclstok_76p1acc.pth")
    return path


def check_sha256(path: Path, expected: str | None, remove: bool = False) -> None:
    """Raise VimlearnError unless the file hashes to `expected` (None: no check); with `remove`, delete it then."""
    if expected is None:
        return
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected.lower():
        if remove:
            path.unlink()
        raise VimlearnError(f"{path.name} hashes to {found[:16]}..., expected {expected[:16]}...; it is damaged or was "
                            "replaced; fetch it again from its source")


def _from_url(url: str) -> Path:
    # One folder an address: two files of one name do not meet.
    folder = Path(torch.hub.get_dir()) / "checkpoints" / hashlib.sha256(url.encode()).hexdigest()[:12]
    path = folder / (url.split("?")[0].rstrip("/").rsplit("/", 1)[-1] or "weights")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Written to a temporary file, then moved
            torch.hub.download_url_to_file(url, str(path))
            _check_length(url, path)
        except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
            path.unlink(missing_ok=True)
            raise VimlearnError(f"cannot download {url}: {error}; check the address and the connection") from error
    return path


def _check_length(url: str, path: Path) -> None:
    """Raise OSError where the file is shorter or longer than its server says: a connection that broke off."""
    with urllib.request.urlopen(urllib.request.Request(url, method="HEAD")) as answer:
        expected = answer.headers.get("Content-Length")
    if expected is not None and int(expected) != path.stat().st_size:
        raise OSError(f"{path.stat().st_size} of {expected} bytes arrived")


def _looks_like_hub_id(text: str) -> bool:
    is_marked, text = text.startswith(HUB), text.removeprefix(HUB)
    parts = text.split("/")
    if len(parts) not in (2, 3) or not all(parts) or text.startswith((".", "~")) or ":" in text or "\\" in text:
        return False
    # A local folder of that name: meant as a path, and the file is missing.
    return is_marked or (not Path(parts[0]).is_dir() and (len(parts) == 3 or not text.endswith(WEIGHT_SUFFIXES)))


def _from_hub(text: str) -> Path:
    from huggingface_hub import hf_hub_download, list_repo_files

    repo, name = "/".join(text.split("/")[:2]), "/".join(text.split("/")[2:])
    try:
        if not name:
            files = [f for f in list_repo_files(repo) if f.endswith(WEIGHT_SUFFIXES)]
            if len(files) != 1:
                raise VimlearnError(f"{repo} holds {len(files)} files of weights ({', '.join(files)}); "
                                    f"name one, as in {repo}/{files[0] if files else 'FILE'}")
            name = files[0]
        return Path(hf_hub_download(repo, name))
    except VimlearnError:
        raise
    except Exception as error:  # the hub's own and its HTTP library's, which change with its version
        raise VimlearnError(f"cannot fetch {text} from the hub, and there is no such file here: "
                            f"{str(error).splitlines()[0]}") from error
