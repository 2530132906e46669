"""Batches: images are read, changed at random by their place in the run, and put together.

Every image draws from its place (see draws.py), so the same run gives the same images whether one process reads them or
sixteen, and wherever it is resumed. Shards give images in the order they lie in, so there a place is counted within a
worker's stream, and a run resumes at the start of an epoch.
"""

__all__ = ["Batch", "Batches"]

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from ..errors import VimlearnError
from ..sources import Shards, Unreadable
from ..workers import leave_signals
from .draws import IMAGE, draw_from, place_seed
from .order import Order, Place

# Images beside an unreadable one that are tried in its place.
NEIGHBOURS = 16


class Batch(NamedTuple):
    """images (b, in_chans, H, W), labels (b,), and a line for each image that could not be read.

    failure: what is wrong, where there is no batch. (An error that is raised in a worker comes with its traceback.)
    """

    images: Tensor | None
    labels: Tensor | None
    unreadable: tuple[str, ...]
    failure: str | None = None


class Drawn(Dataset):
    """Training images by Place; each draws its changes from there."""

    def __init__(self, images, transform: Callable, seed: int):
        self.images, self.transform, self.seed = images, transform, seed

    def __getitem__(self, place: Place) -> tuple[Tensor, int, list[str]] | str:
        """Return the image, its label, and what was unreadable on the way; or what is wrong. A damaged image's place
        goes to the next.
        """
        unreadable: list[str] = []
        for i in range(NEIGHBOURS):
            try:
                image, label = self.images[(place.index + i) % len(self.images)]
                break
            except Unreadable as error:
                unreadable.append(str(error))
        else:
            return f"{NEIGHBOURS} images in a row cannot be read; the first: {unreadable[0]}"
        draw_from(self.seed, IMAGE, place.epoch, place.position)
        return _wrong_label(label, self.images.classes) or (self.transform(image), int(label), unreadable)


class DrawnStream(IterableDataset):
    """Training images of one epoch from shards."""

    def __init__(self, stream, classes: tuple[str, ...], transform: Callable, seed: int, epoch: int, rank: int):
        self.stream, self.classes, self.transform = stream, classes, transform
        self.seed, self.epoch, self.rank = seed, epoch, rank

    def __iter__(self) -> Iterator[tuple[Tensor, int, list[str]] | str]:
        worker = get_worker_info()
        place = (self.epoch, self.rank, worker.id if worker else 0)
        for i, (image, label) in enumerate(self.stream):
            draw_from(self.seed, IMAGE, *place, i)
            yield _wrong_label(label, self.classes) or (self.transform(image), int(label), [])


class Batches:
    """The batches of a run for one process. `epoch(number, first_step)` goes through the parts of its batches.

    Arguments: images, the training part of a Source; transform; order, for images by number; seed and workers.
    """

    def __init__(self, images, transform: Callable, order: Order, seed: int, workers: int):
        self.images, self.transform, self.order, self.seed = images, transform, order, seed
        self.workers, self.loader, self.pin = workers, None, torch.cuda.is_available()

    def epoch(self, number: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the parts of the batches of an epoch, counted from 1, from a step on, counted from 0."""
        self.order.start(number, first_step)
        if isinstance(self.images, Shards):
            batches = itertools.islice(self._stream(number), self.order.steps * self.order.parts)
        else:
            batches = self._by_number()
        for batch in batches:
            if batch.failure:
                raise VimlearnError(batch.failure)
            yield batch

    def _by_number(self) -> Iterator[Batch]:
        if self.loader is None:
            self.loader = DataLoader(Drawn(self.images, self.transform, self.seed), batch_sampler=self.order,
                                     num_workers=self.workers, collate_fn=_collate, pin_memory=self.pin,
                                     persistent_workers=self.workers > 0, generator=torch.Generator(),
                                     worker_init_fn=leave_signals)
        return iter(self.loader)

    def _stream(self, number: int) -> Iterator[Batch]:
        seed = place_seed(self.seed, IMAGE, number)
        stream = self.images.shuffled(seed, self.order.part_size, self.workers)
        drawn = DrawnStream(stream, self.images.classes, self.transform, self.seed, number, self.order.rank)
        yield from DataLoader(drawn, self.order.part_size, num_workers=self.workers, collate_fn=_collate,
                              pin_memory=self.pin, drop_last=True, generator=torch.Generator().manual_seed(seed),
                              worker_init_fn=leave_signals)


def _wrong_label(label: int, classes: tuple[str, ...]) -> str | None:
    if 0 <= label < len(classes):
        return None
    return f"an image to train on has label {label} and there are {len(classes)} classes; expected labels from 0 to " \
           f"{len(classes) - 1}: change --num-classes, or mend the set"


def _collate(items: list[tuple[Tensor, int, list[str]] | str]) -> Batch:
    failure = next((item for item in items if isinstance(item, str)), None)
    if failure:
        return Batch(None, None, (), failure)
    images, labels, unreadable = zip(*items, strict=True)
    return Batch(torch.stack(images), torch.tensor(labels), tuple(itertools.chain(*unreadable)))
