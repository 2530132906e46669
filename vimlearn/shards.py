"""Labelled images in tar shards, as WebDataset lays them out.

A shard holds KEY.jpg (or .jpeg, .png, .webp) and KEY.cls, a number in text, one after the other. `_info.json` beside
the shards says which of them make up a part and how many images each holds. They are read from front to back: fast from
a disk that is far away, and no image can be asked for by number.

timm reads shards too, but leaves out in silence what it cannot decode, and what is missing from a shard.
"""

__all__ = ["Shards", "describe_shards"]

import io
import itertools
import json
import random
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from .errors import VimlearnError

IMAGES = ("jpg", "jpeg", "png", "webp")
# Images that wait, undecoded, for their turn in training; each worker holds as many.
WAITING = 4096
BLOCK = 1 << 20


@dataclass(frozen=True)
class Shards:
    """Tar shards. root: their folder. files: (name, images in it) of each. classes: the names."""

    root: str
    files: tuple[tuple[str, int], ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return sum(count for _, count in self.files)

    def shuffled(self, seed: int, rank: int, processes: int) -> IterableDataset:
        """Return an endless stream of (image, label) for training, or a line of text for an image that cannot be read.

        The shards are shuffled by `seed`, and dealt to the workers of all processes. Each worker goes round its own
        again and again, in another order each time, and shuffles the images among WAITING.
        """
        return _Stream(self, seed, rank, processes)

    def share(self, rank: int, processes: int) -> IterableDataset:
        """Return the (image, label) of every `processes`-th shard, or a line of text as above; each image once, in the
        order they lie in.
        """
        return _Stream(self, None, rank, processes)


def describe_shards(root: Path) -> dict[str, tuple[tuple[str, int], ...]]:
    """Return (name, images in it) of the shards of each part. Raises VimlearnError where they are not said."""
    info = next((root / name for name in ("_info.json", "info.json") if (root / name).is_file()), None)
    if info is None:
        raise VimlearnError(f"{root} has no _info.json; expected a folder of tar shards with one, such as the hub's "
                            "timm/imagenet-1k-wds (data/README.md has the layout)")
    try:
        parts = {}
        for name, part in json.loads(info.read_text(encoding="utf-8"))["splits"].items():
            names, counts, whole = map(str, part["filenames"]), map(int, part["shard_lengths"]), part["num_samples"]
            parts[name] = tuple(zip(names, counts, strict=True))
            if sum(count for _, count in parts[name]) != whole:
                raise ValueError(f"the shard_lengths of {name} add up to "
                                 f"{sum(count for _, count in parts[name])} and its num_samples is {whole}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise VimlearnError(f"{info} is no description of shards: {reason}; expected splits, each with filenames, "
                            "shard_lengths and num_samples") from error
    return parts


class _Stream(IterableDataset):
    """What one process reads of some shards; `seed` is None where they are read once, in order."""

    def __init__(self, shards: Shards, seed: int | None, rank: int, processes: int):
        self.shards, self.seed, self.rank, self.processes = shards, seed, rank, processes
        # What is done to a decoded image, if anything.
        self.transform = None

    def __iter__(self) -> Iterator[tuple[Image.Image, int] | str]:
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        readers = self.processes * count
        number += self.rank * count
        files = list(self.shards.files)
        if self.seed is None:
            samples = self._samples(files[number::readers])
        elif readers > len(files):
            raise VimlearnError(f"{readers} processes read and there are {len(files)} shards; expected one shard each "
                                "at least: lower --workers")
        else:
            random.Random(self.seed).shuffle(files)
            samples = self._endless(files[number::readers], random.Random(f"{self.seed} {number}"))
        for name, image, label in samples:
            try:
                with Image.open(io.BytesIO(image)) as opened:
                    decoded = opened.convert("RGB")
            except Exception as error:  # whatever a decoder stumbles over in bytes that a stranger wrote
                yield f"{name}: {' '.join(str(error).split())[:200]}"
            else:
                yield decoded if self.transform is None else self.transform(decoded), label

    def _endless(self, files: list[tuple[str, int]], draw: random.Random) -> Iterator[tuple[str, bytes, int]]:
        for _ in itertools.count():
            draw.shuffle(files)
            waiting = []
            for sample in self._samples(files):
                waiting.append(sample)
                if len(waiting) == WAITING:
                    i = draw.randrange(WAITING)
                    waiting[i], waiting[-1] = waiting[-1], waiting[i]
                    yield waiting.pop()
            draw.shuffle(waiting)
            yield from waiting

    def _samples(self, files: list[tuple[str, int]]) -> Iterator[tuple[str, bytes, int]]:
        """Yield (name, image as it is stored, label). Raises VimlearnError where a shard is not what was said."""
        for name, expected in files:
            path, found = Path(self.shards.root) / name, 0
            try:
                for key, parts in _groups(path):
                    image = next((parts[ending] for ending in IMAGES if ending in parts), None)
                    if image is not None:
                        yield f"{path}/{key}", image, int(parts["cls"])
                        found += 1
            except (OSError, tarfile.TarError, ValueError, KeyError) as error:
                reason = f"{key} has no label" if isinstance(error, KeyError) else error
                raise VimlearnError(f"{path} is damaged or no shard: {reason}; fetch it again") from error
            if found != expected:
                raise VimlearnError(f"{path} holds {found} images and _info.json says {expected}; fetch it again, or "
                                    "mend its shard_lengths")


def _groups(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield (key, content by ending) of the files in a shard that stand together and are called alike."""
    key, parts = None, {}
    with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r|", bufsize=BLOCK) as tar:
        for member in tar:
            if not member.isfile():
                continue
            folder, _, base = member.name.rpartition("/")
            stem, _, ending = base.partition(".")
            if (folder, stem) != key:
                if parts:
                    yield key[1], parts
                key, parts = (folder, stem), {}
            parts[ending.lower()] = tar.extractfile(member).read()
    if parts:
        yield key[1], parts
