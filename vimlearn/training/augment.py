"""What is done to a batch of training images, as tensors."""

__all__ = ["random_shift"]

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import VimlearnError


def random_shift(images: Tensor, largest: int, generator: torch.Generator | None = None) -> Tensor:
    """Move each image by its own whole number of pixels, up to `largest` in each direction; zeros move in.

    Arguments: images (b, in_chans, H, W); largest, pixels; generator, where the draws come from (on the CPU).
    Returns the same shape. Raises VimlearnError where an image could be moved out of sight.
    """
    if largest == 0:
        return images
    b, _, height, width = images.shape
    if not 0 < largest < min(height, width):
        raise VimlearnError(f"shift is {largest} and the images are {height} x {width} pixels; "
                            f"expected 0 to {min(height, width) - 1}")
    # (b, in_chans, H + 2 largest, W + 2 largest)
    padded = F.pad(images, [largest] * 4)
    top, left = torch.randint(0, 2 * largest + 1, (2, b), generator=generator).to(images.device)
    rows = top.view(b, 1, 1) + torch.arange(height, device=images.device).view(1, height, 1)
    columns = left.view(b, 1, 1) + torch.arange(width, device=images.device).view(1, 1, width)
    which = torch.arange(b, device=images.device).view(b, 1, 1)
    # (b, H, W, in_chans) -> (b, in_chans, H, W)
    return padded[which, :, rows, columns].permute(0, 3, 1, 2)
