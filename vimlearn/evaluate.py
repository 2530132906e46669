"""How good a classifier is on labelled images: accuracy, the table of each class, confusion, and a simple rival."""

__all__ = ["Evaluation", "evaluate", "nearest_neighbour", "relabelled"]

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from .classes import positions
from .data import ImageSet
from .errors import VimlearnError
from .sources import Images, Shards, Unreadable
from .workers import leave_signals, one_line


@dataclass(frozen=True)
class Evaluation:
    """What a network says about a set of images.

    logits: (b, classes), on the CPU. labels: (b,), the true classes. classes: their names. unreadable: a line for each
    image that could not be decoded and is left out.
    """

    logits: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    unreadable: tuple[str, ...] = ()

    @property
    def predictions(self) -> Tensor:
        """The class with the highest logit, (b,)."""
        return self.logits.argmax(1)

    @property
    def accuracy(self) -> float:
        """Share of images whose highest logit is the right one (top-1), 0 to 1."""
        return self.topk_accuracy(1)

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats, without label smoothing."""
        return F.cross_entropy(self.logits.double(), self.labels).item()

    @property
    def confusion(self) -> Tensor:
        """Counts (classes, classes), int64: a row for each true class, a column for each predicted one."""
        count = len(self.classes)
        return torch.bincount(self.labels * count + self.predictions, minlength=count * count).view(count, count)

    def topk_accuracy(self, k: int) -> float:
        """Share of images whose label is among the k highest logits, 0 to 1; 1 where there are at most k classes."""
        best = self.logits.topk(min(k, self.logits.shape[1]), dim=1).indices
        return (best == self.labels.unsqueeze(1)).any(1).double().mean().item()


@torch.no_grad()
def evaluate(model: nn.Module, data: ImageSet | Images | Shards, batch_size: int = 256, *,
             transform: Callable | None = None, workers: int = 0, rank: int = 0, processes: int = 1) -> Evaluation:
    """Run `model` over `data` in evaluation mode, on the device of its parameters; its mode is put back afterwards.

    Arguments
        data: images in memory, by number, or from shards.
        transform: from a stored image to (in_chans, H, W); None where the images are that already.
        workers: processes that read images; 0 reads them here.
        rank, processes: where several processes share the work, this one and how many; each gets the whole result.

    Raises VimlearnError where the set is empty, or where the number of classes or the images do not fit the model.
    """
    if not len(data):
        raise VimlearnError("there are no images to evaluate; expected at least one")
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    found = []
    try:
        for images, labels, unreadable in _batches(data, transform, batch_size, workers, rank, processes):
            logits = model(images.to(device)).float().cpu() if len(labels) else None
            found.append((logits, labels, unreadable))
    finally:
        model.train(was_training)
    if processes > 1:
        from accelerate.utils import gather_object
        found = gather_object(found)
    unreadable = tuple(itertools.chain.from_iterable(part[2] for part in found))
    found = [part for part in found if part[0] is not None]
    if not found:
        raise VimlearnError(f"none of the {len(data)} images can be read; the first: {unreadable[0]}")
    logits, labels = (torch.cat([part[i] for part in found]) for i in (0, 1))
    if logits.shape[1] != len(data.classes):
        raise VimlearnError(f"the model tells {logits.shape[1]} classes apart and the data has {len(data.classes)}; "
                            "evaluate on the data it was trained for, or call reset_classifier and train")
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(data.classes):
        raise VimlearnError(f"the labels run from {labels.min()} to {labels.max()} and there are {len(data.classes)} "
                            "classes; expected labels from 0")
    return Evaluation(logits, labels, data.classes, unreadable)


def _batches(data, transform, batch_size, workers, rank, processes) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
    """Yield (images, labels, what was unreadable) of the share of one process."""
    if isinstance(data, Shards):
        chosen = data.share(rank, processes)
        chosen.transform = transform
    else:
        chosen = _Chosen(data, range(rank * len(data) // processes, (rank + 1) * len(data) // processes), transform)
    loader = DataLoader(chosen, batch_size, num_workers=workers, collate_fn=list, generator=torch.Generator(),
                        worker_init_fn=leave_signals)
    for items in one_line(loader):
        good = [item for item in items if not isinstance(item, str)]
        images = torch.stack([image for image, _ in good]) if good else None
        yield images, torch.tensor([int(label) for _, label in good]), [item for item in items if isinstance(item, str)]


class _Chosen(Dataset):
    """Some images of a set: (image, label), or a line of text for one that cannot be read."""

    def __init__(self, data, numbers: range, transform: Callable | None):
        self.data, self.numbers, self.transform = data, numbers, transform

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int):
        try:
            image, label = self.data[self.numbers[i]]
        except Unreadable as error:
            return str(error)
        return image if self.transform is None else self.transform(image), label


def relabelled(data: ImageSet | Images | Shards, classes: Sequence[str]) -> ImageSet | Images | Shards:
    """Return the same images with their labels as positions in `classes`, the classes that a network knows.

    They may be more than those of the images, and in another order. Shards know no names, and keep their labels.
    Raises VimlearnError where a class of the images is not among them.
    """
    classes = tuple(classes)
    if isinstance(data, Shards):
        return replace(data, classes=classes) if len(classes) == len(data.classes) else data
    numbers = positions(data.classes, classes)
    if isinstance(data, ImageSet):
        return replace(data, labels=torch.tensor(numbers)[data.labels], classes=classes)
    own = data.numbers or range(len(data.classes))
    return replace(data, numbers=tuple(numbers[i] for i in own), classes=classes)


def nearest_neighbour(training: ImageSet, heldout: ImageSet) -> float:
    """Return the accuracy, 0 to 1, of naming each held-out image after the training image nearest in its pixels."""
    from sklearn.neighbors import KNeighborsClassifier

    neighbours = KNeighborsClassifier(n_neighbors=1).fit(training.images.flatten(1).numpy(), training.labels.numpy())
    return float(neighbours.score(heldout.images.flatten(1).numpy(), heldout.labels.numpy()))
