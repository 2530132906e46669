"""How good a classifier is on labelled images: accuracy, the table of each class, confusion, and a simple rival."""

__all__ = ["Evaluation", "evaluate", "nearest_neighbour"]

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import ImageSet
from .errors import VimlearnError


@dataclass(frozen=True)
class Evaluation:
    """What a network says about a set of images.

    logits: (b, classes), on the CPU. labels: (b,), the true classes. classes: their names.
    """

    logits: Tensor
    labels: Tensor
    classes: tuple[str, ...]

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
def evaluate(model: nn.Module, data: ImageSet, batch_size: int = 256) -> Evaluation:
    """Run `model` over `data` in evaluation mode, on the device of its parameters; its mode is put back afterwards.

    Raises VimlearnError where the set is empty, or where the number of classes or the images do not fit the model.
    """
    if not len(data):
        raise VimlearnError("there are no images to evaluate; expected at least one")
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    try:
        logits = torch.cat([model(images.to(device)).float().cpu() for images in data.images.split(batch_size)])
    finally:
        model.train(was_training)
    if logits.shape[1] != len(data.classes):
        raise VimlearnError(f"the model tells {logits.shape[1]} classes apart and the data has {len(data.classes)}; "
                            "evaluate on the data it was trained for, or call reset_classifier and train")
    return Evaluation(logits, data.labels, data.classes)


def nearest_neighbour(training: ImageSet, heldout: ImageSet) -> float:
    """Return the accuracy, 0 to 1, of naming each held-out image after the training image nearest in its pixels."""
    from sklearn.neighbors import KNeighborsClassifier

    neighbours = KNeighborsClassifier(n_neighbors=1).fit(training.images.flatten(1).numpy(), training.labels.numpy())
    return float(neighbours.score(heldout.images.flatten(1).numpy(), heldout.labels.numpy()))
