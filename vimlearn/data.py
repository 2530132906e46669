"""Labelled images, split once and for all into a part to train on and a part held out.

`digits` is the set that needs no download: 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn (UCI
"Optical recognition of handwritten digits", Alpaydin and Kaynak 1998).

The rule of the split: a third of the images of each class is held out, drawn by `train_test_split(range(1797),
test_size=1/3, stratify=labels, random_state=0)`: 1,198 images to train on, 599 held out. The draw is part of the data
and has nothing to do with the seed of a run. The held-out part is for looking at results and not for choosing
settings or checkpoints. Settings were chosen by cross-validation within the 1,198 (data/runs/README.md names the one
look at the held-out part that came before).
"""

__all__ = ["DATASETS", "ImageSet", "digits", "load_dataset"]

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from .errors import VimlearnError, nearest

SPLIT_SEED = 0


@dataclass(frozen=True)
class ImageSet:
    """Images in memory with their labels.

    images: (b, in_chans, H, W), float32. labels: (b,), int64, positions in `classes`. classes: the names, in order.
    index: (b,), int64, where each image stands in the original file.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    index: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.images[i], self.labels[i]


@cache
def digits() -> tuple[ImageSet, ImageSet]:
    """Return (training part, held-out part) of scikit-learn's digits: images (b, 1, 8, 8), ink 1 on paper 0.

    The stored values are counts from 0 to 16 and are divided by 16; nothing else is done to them.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    stored = load_digits()
    everything = ImageSet(images=torch.from_numpy(stored.images / 16).float().unsqueeze(1),
                          labels=torch.from_numpy(stored.target).long(),
                          classes=tuple(str(name) for name in stored.target_names),
                          index=torch.arange(len(stored.target)))
    training, heldout = train_test_split(np.arange(len(everything)), test_size=1 / 3, stratify=stored.target,
                                         random_state=SPLIT_SEED)
    return _part(everything, training), _part(everything, heldout)


def _part(data: ImageSet, index: np.ndarray) -> ImageSet:
    chosen = torch.from_numpy(np.sort(index))
    return ImageSet(data.images[chosen], data.labels[chosen], data.classes, data.index[chosen])


DATASETS: dict[str, Callable[[], tuple[ImageSet, ImageSet]]] = {"digits": digits}


def load_dataset(name: str) -> tuple[ImageSet, ImageSet]:
    """Return (training part, held-out part) of the set called `name`. Raises VimlearnError on an unknown name."""
    if name not in DATASETS:
        raise VimlearnError(f"unknown dataset {name!r}{nearest(str(name), DATASETS)}; "
                            f"expected one of {', '.join(DATASETS)}")
    return DATASETS[name]()
