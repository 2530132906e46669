"""From a stored image to what the network sees, in training and in evaluation. The parts are timm's and torchvision's.

    training    shift or random part, mirror, RandAugment, to numbers, normalise, random erasing
    evaluation  resize the shorter side to img_size / crop_pct, cut out the centre, to numbers, normalise

Colours are normalised by the mean and standard deviation of ImageNet. Images in memory (the digits) are numbers
already: they are only shifted.
"""

__all__ = ["evaluation_transform", "mixer_of_images", "training_transform"]

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, Mixup, create_transform
from torch import Tensor, nn
from torchvision import transforms

from ..errors import VimlearnError
from .options import Augment, Options

INTERPOLATION = "bicubic"


def training_transform(augment: Augment, img_size: int, in_memory: bool = False) -> Callable[[object], Tensor]:
    """Return what turns a PIL image into (3, img_size, img_size), float32, with the random changes of `augment`.

    With `in_memory` it takes and returns tensors (in_chans, H, W). Random numbers come from the global generators.
    Raises VimlearnError where the changes do not fit the images or each other.
    """
    if not 0 <= augment.shift < img_size:
        raise VimlearnError(f"shift is {augment.shift} and the images are {img_size} pixels wide; expected 0 to "
                            f"{img_size - 1}")
    if in_memory:
        _refuse_decoded(augment)
        return RandomShift(augment.shift)
    if augment.shift and augment.crop_scale is not None:
        raise VimlearnError("shift and crop_scale are both set; expected one of them: --shift 0, or no --crop-scale")
    try:
        chain = create_transform(
            img_size, is_training=True, scale=(augment.crop_scale or 1.0, 1.0), hflip=augment.flip, color_jitter=0.0,
            auto_augment=augment.auto_augment, interpolation=INTERPOLATION, mean=IMAGENET_DEFAULT_MEAN,
            std=IMAGENET_DEFAULT_STD, re_prob=augment.erase, re_mode="pixel", re_count=1)
    except (AssertionError, KeyError, ValueError, AttributeError) as error:
        raise VimlearnError(f"auto_augment is {augment.auto_augment!r}, which timm cannot read ({error}); expected "
                            "something like rand-m9-mstd0.5-inc1") from error
    if augment.crop_scale is None:
        # The first step is the random part.
        chain.transforms[:1] = [*_whole_image(img_size), transforms.RandomCrop(img_size, padding=augment.shift)]
    return chain


def evaluation_transform(img_size: int | tuple[int, int], crop_pct: float) -> Callable[[object], Tensor]:
    """Return what turns a PIL image into (3, img_size, img_size), float32, always the same way (reference: DeiT's).

    img_size may be (H, W).
    """
    return create_transform(img_size, is_training=False, crop_pct=crop_pct, interpolation=INTERPOLATION,
                            mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD)


def mixer_of_images(options: Options, num_classes: int, part_size: int) -> Mixup | None:
    """Return timm's Mixup and CutMix as the options say, or None where neither is on.

    It takes a batch of images and labels and returns both mixed, the labels as smoothed shares (b, num_classes).
    Raises VimlearnError where a part of a batch, of `part_size` images, cannot be paired.
    """
    augment = options.augment
    if not augment.mixup and not augment.cutmix:
        return None
    if part_size % 2:
        raise VimlearnError(f"Mixup and CutMix pair images, and a part of a batch has {part_size}; expected an even "
                            "number: change --batch-size or --accumulate")
    return Mixup(mixup_alpha=augment.mixup, cutmix_alpha=augment.cutmix, prob=1.0, switch_prob=0.5, mode="batch",
                 label_smoothing=options.recipe.smoothing, num_classes=num_classes)


class RandomShift(nn.Module):
    """Move an image (in_chans, H, W) by a random whole number of pixels, up to `largest` each way; zeros move in."""

    def __init__(self, largest: int):
        super().__init__()
        self.largest = largest

    def forward(self, image: Tensor) -> Tensor:
        """Return the moved image, of the same shape."""
        if self.largest == 0:
            return image
        height, width = image.shape[-2:]
        padded = F.pad(image, [self.largest] * 4)
        top, left = torch.randint(0, 2 * self.largest + 1, (2,)).tolist()
        return padded[:, top:top + height, left:left + width]


def _whole_image(img_size: int) -> list:
    """Resize so that the whole image is seen: the shorter side to img_size, then the centre."""
    mode = transforms.InterpolationMode(INTERPOLATION)
    return [transforms.Resize(img_size, mode), transforms.CenterCrop(img_size)]


def _refuse_decoded(augment: Augment) -> None:
    given = [name for name in ("crop_scale", "flip", "auto_augment", "erase") if getattr(augment, name)]
    if given:
        raise VimlearnError(f"{given[0]} is set, and these images are numbers in memory; expected shift, mixup or "
                            "cutmix alone, or images from files")
