"""The order of the images: which process takes which image in which step.

One list of image numbers is drawn for an epoch. Step s takes the places s * batch_size to (s + 1) * batch_size of it,
however many processes there are; place i of a step goes to process i mod count, as in the published trainer. So a run
on eight GPUs takes the same batches as a run on one. What is left at the end, less than a batch, is not used.
"""

__all__ = ["Order", "Place"]

from collections.abc import Iterator
from typing import NamedTuple

import torch
from timm.data.distributed_sampler import RepeatAugSampler

from ..errors import VimlearnError
from .draws import ORDER, place_seed


class Place(NamedTuple):
    """One image of an epoch: where in the epoch, and which image."""

    epoch: int
    position: int
    index: int


class Order:
    """A batch sampler for a DataLoader: the parts of batches that one process takes, as lists of Place.

    Arguments
        length: images in the set, a count.
        batch_size: images a step, over all processes and parts.
        seed: of the run.
        parts: parts that a process cuts its share of a batch into.
        rank, processes: this process, and how many there are.
        repeats: times that an image occurs in an epoch (Hoffer et al. 2020; the published trainer uses 3). The epoch
            has as many places as without, so about 1 / repeats of the images are seen in it. The list is timm's.

    Raises VimlearnError where a batch cannot be dealt evenly, or where there are fewer images than a batch.
    """

    def __init__(self, length: int, batch_size: int, seed: int = 0, *, parts: int = 1, rank: int = 0,
                 processes: int = 1, repeats: int = 1):
        if batch_size % (processes * parts):
            raise VimlearnError(f"batch_size is {batch_size}, which {processes} processes with {parts} parts each "
                                f"cannot share evenly; expected a multiple of {processes * parts}")
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.parts, self.rank, self.processes, self.repeats = parts, rank, processes, repeats
        self.steps = self._places() // batch_size
        if not self.steps:
            raise VimlearnError(f"there are {length} images to train on and batch_size is {batch_size}; "
                                f"expected at most {self._places()}")
        # Images that a process takes at a time.
        self.part_size = batch_size // processes // parts
        self.start(1)

    def start(self, epoch: int, step: int = 0) -> None:
        """Go to a step, counted from 0, of an epoch, counted from 1."""
        self.epoch, self.first = epoch, step

    def __len__(self) -> int:
        return (self.steps - self.first) * self.parts

    def __iter__(self) -> Iterator[list[Place]]:
        images = self.images(self.epoch)
        for step in range(self.first, self.steps):
            places = range(step * self.batch_size + self.rank, (step + 1) * self.batch_size, self.processes)
            for first in range(0, len(places), self.part_size):
                yield [Place(self.epoch, i, images[i]) for i in places[first:first + self.part_size]]

    def images(self, epoch: int) -> list[int]:
        """Return the image numbers of an epoch, counted from 1, in order."""
        if self.repeats > 1:
            sampler = self._repeated()
            # The published trainer shuffles by the epoch, from 0, alone.
            sampler.set_epoch(epoch - 1 if self.seed == 0 else place_seed(self.seed, ORDER, epoch))
            return list(sampler)
        generator = torch.Generator().manual_seed(place_seed(self.seed, ORDER, epoch))
        return torch.randperm(self.length, generator=generator).tolist()

    def _places(self) -> int:
        return len(self._repeated()) if self.repeats > 1 else self.length

    def _repeated(self) -> RepeatAugSampler:
        # As for one process: dealing is done here.
        return RepeatAugSampler(range(self.length), num_replicas=1, rank=0, num_repeats=self.repeats)
