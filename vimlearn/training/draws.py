"""Where random numbers come from in a run: from the place where they are used, and from nothing before it.

Before each use the generators of PyTorch, NumPy and Python are seeded by the seed of the run and the place: the epoch
and the position of an image in it, or the epoch and the step. So a run that is stopped and resumed draws what it would
have drawn, and no state of a generator has to be saved. How many processes read images, or train, changes no draw
either.
"""

__all__ = ["draw_from", "place_seed"]

import random

import numpy as np
import torch

# What draws: so that an image and a step with the same numbers do not share a stream.
IMAGE, STEP, ORDER, MODEL = range(4)


def place_seed(seed: int, *place: int) -> int:
    """Return a seed, 0 to 2**32 - 1, that depends on the seed of the run and on every number of the place."""
    return int(np.random.SeedSequence([seed, *place]).generate_state(1)[0])


def draw_from(seed: int, *place: int) -> None:
    """Seed the global generators of PyTorch (CPU and GPUs in use), NumPy and Python for one place of a run."""
    number = place_seed(seed, *place)
    # torch.manual_seed does the same, and takes 200 times as long where it finds no GPU: it notes the call for later.
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)
    # timm's Mixup and RandAugment draw from NumPy's global generator.
    np.random.seed(number)  # noqa: NPY002
    random.seed(number)
