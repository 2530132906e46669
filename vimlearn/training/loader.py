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
from ..workers import leave_signals, one_line, shut_down
from .draws import IMAGE, ORDER, draw_from, place_seed
from .order import Order, Place

# Images beside an unreadable one that are tried in its place.
NEIGHBOURS = 16


class Batch(NamedTuple):
    """images (b, in_chans, H, W), labels (b,), and a line for each image that could not be read."""

    images: Tensor
    labels: Tensor
    unreadable: tuple[str, ...]


class Drawn(Dataset):
    """Training images by Place; each draws its changes from there."""

    def __init__(self, images, transform: Callable, seed: int):
        self.images, self.transform, self.seed = images, transform, seed

    def __getitem__(self, place: Place) -> tuple[Tensor, int, list[str]]:
        """Return the image, its label, and what was unreadable on the way. A damaged image's place goes to the next.

        Raises VimlearnError where none nearby can be read, and on a label that is none.
        """
        unreadable: list[str] = []
        for i in range(NEIGHBOURS):
            try:
                image, label = self.images[(place.index + i) % len(self.images)]
                break
            except Unreadable as error:
                unreadable.append(str(error))
        else:
            raise _none_readable(unreadable)
        _check_label(label, self.images.classes)
        draw_from(self.seed, IMAGE, place.epoch, place.position)
        return self.transform(image), int(label), unreadable


class DrawnStream(IterableDataset):
    """Training images of one epoch from shards, as Drawn gives them."""

    def __init__(self, shards: Shards, transform: Callable, seed: int, epoch: int, order: Order):
        self.shards, self.transform, self.seed, self.epoch, self.order = shards, transform, seed, epoch, order

    def __iter__(self) -> Iterator[tuple[Tensor, int, list[str]]]:
        worker, unreadable, position = get_worker_info(), [], 0
        stream = self.shards.shuffled(place_seed(self.seed, ORDER, self.epoch), self.order.rank, self.order.processes)
        for item in stream:
            if isinstance(item, str):
                unreadable.append(item)
                if len(unreadable) == NEIGHBOURS:
                    raise _none_readable(unreadable)
                continue
            image, label = item
            _check_label(label, self.shards.classes)
            draw_from(self.seed, IMAGE, self.epoch, self.order.rank, worker.id if worker else 0, position)
            yield self.transform(image), label, unreadable
            unreadable, position = [], position + 1


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
            drawn = DrawnStream(self.images, self.transform, self.seed, number, self.order)
            loader = self._loader(drawn, batch_size=self.order.part_size)
        elif self.loader is None:
            loader = self.loader = self._loader(Drawn(self.images, self.transform, self.seed), batch_sampler=self.order,
                                                persistent_workers=self.workers > 0)
        else:
            loader = self.loader
        yield from itertools.islice(one_line(loader), len(self.order))

    def close(self) -> None:
        """End the workers."""
        # Where DataLoader keeps those that stay
        shut_down(getattr(self.loader, "_iterator", None))
        self.loader = None

    def _loader(self, dataset, **settings) -> DataLoader:
        # A generator of its own, so that none of the run's draws is taken.
        return DataLoader(dataset, num_workers=self.workers, collate_fn=_collate, pin_memory=self.pin,
                          generator=torch.Generator(), worker_init_fn=leave_signals, **settings)


def _none_readable(unreadable: list[str]) -> VimlearnError:
    return VimlearnError(f"{NEIGHBOURS} images in a row cannot be read; the first: {unreadable[0]}")


def _check_label(label: int, classes: tuple[str, ...]) -> None:
    if not 0 <= label < len(classes):
        raise VimlearnError(f"an image to train on has label {label} and there are {len(classes)} classes; expected "
                            f"labels from 0 to {len(classes) - 1}: change --num-classes, or mend the set")


def _collate(items: list[tuple[Tensor, int, list[str]]]) -> Batch:
    images, labels, unreadable = zip(*items, strict=True)
    return Batch(torch.stack(images), torch.tensor(labels), tuple(itertools.chain(*unreadable)))
