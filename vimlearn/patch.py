"""From an image to a sequence of patches."""

__all__ = ["PatchEmbed", "height_and_width"]

import torch
from torch import Tensor, nn

from .errors import VimlearnError


class PatchEmbed(nn.Module):
    """Cut an image into patches and map each to d numbers: one convolution, kernel p, step `stride`.

    (b, in_chans, H, W) -> (b, M, d) in row-major order, M = ((H - p) // stride + 1) ((W - p) // stride + 1). What is
    left over at the right and bottom edge is not seen.
    """

    def __init__(self, img_size: tuple[int, int], patch_size: int, stride: int, in_chans: int, embed_dim: int):
        super().__init__()
        self.patch_size, self.stride, self.in_chans = patch_size, stride, in_chans
        self.set_input_size(img_size)
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride)

    def set_input_size(self, img_size: tuple[int, int]) -> None:
        """Expect images of (H, W) from now on."""
        if min(img_size) < self.patch_size:
            raise VimlearnError(f"img_size {img_size} is smaller than one patch of {self.patch_size} pixels; "
                                "expected at least one patch a side")
        self.img_size = img_size
        self.grid_size = tuple((side - self.patch_size) // self.stride + 1 for side in img_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def forward(self, images: Tensor) -> Tensor:
        self._check(images)
        return self.proj(images).flatten(2).transpose(1, 2)

    def _check(self, images: Tensor) -> None:
        height, width = self.img_size
        found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        if not isinstance(found, tuple) or images.dim() != 4 or found[1] != self.in_chans or found[0] == 0:
            raise VimlearnError(f"images: found {found}; expected a tensor (b, {self.in_chans}, {height}, {width}) "
                                "with b at least 1")
        if tuple(images.shape[2:]) != self.img_size:
            size = tuple(images.shape[2:])
            raise VimlearnError(f"the images are {size[0]} x {size[1]} pixels but the network is built for "
                                f"{height} x {width}; resize them, or call set_input_size({size})")
        weight = self.proj.weight
        if images.device != weight.device:
            raise VimlearnError(f"the images are on {images.device} and the network on {weight.device}; "
                                "move both to one device")
        if not images.is_floating_point() or (images.dtype != weight.dtype
                                              and not torch.is_autocast_enabled(images.device.type)):
            raise VimlearnError(f"the images have dtype {images.dtype} and the network {weight.dtype}; "
                                f"convert them with .to({weight.dtype})")


def height_and_width(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return `size` as (H, W). Raises VimlearnError unless it is a positive int or a pair of them."""
    pair = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, (tuple, list)) else ()
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise VimlearnError(f"img_size is {size!r}; expected a positive int, or (height, width)")
    return pair
