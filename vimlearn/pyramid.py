"""A pyramid of feature maps from the one map of a plain backbone, for detection.

    map (b, d, H, W), stride 16  ->  p2, p3, p4, p5, p6: (b, 256, ...), strides 4, 8, 16, 32, 64

A plain backbone has one resolution. Each level of the pyramid is made from its last map alone: transposed convolutions
for the finer levels, max-pooling for the coarser ones, then two convolutions to a common width. No level sees another.
Source: Li and others, "Exploring plain vision transformer backbones for object detection" (ViTDet), section 3; Vim's
detector and the paper's Figures 3 and 4 use it.
"""

__all__ = ["LEVELS", "PyramidBackbone", "SimplePyramid"]

import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from .errors import VimlearnError

LEVELS = ("p2", "p3", "p4", "p5", "p6")


class SimplePyramid(nn.Module):
    """Turn a map (b, d, H, W) into maps of `out_channels`, by name: p2 (4 H, 4 W), p3, p4 (H, W), p5, p6.

    Arguments: in_channels, d, a multiple of 4; out_channels, the width of every level.
    Maps with an odd side are rounded down by each pooling. Raises VimlearnError on widths that cannot be quartered and
    on maps without room for p6, which needs 4 x 4.
    """

    def __init__(self, in_channels: int, out_channels: int = 256):
        super().__init__()
        d = in_channels
        if d < 4 or d % 4:
            raise VimlearnError(f"in_channels is {d}; expected a multiple of 4, because p2 has a quarter of them")
        self.p2 = nn.Sequential(_double(d, d // 2), LayerNorm2d(d // 2), nn.GELU(), _double(d // 2, d // 4),
                                *_to_width(d // 4, out_channels))
        self.p3 = nn.Sequential(_double(d, d // 2), *_to_width(d // 2, out_channels))
        self.p4 = nn.Sequential(*_to_width(d, out_channels))
        self.p5 = nn.Sequential(nn.MaxPool2d(2), *_to_width(d, out_channels))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the five levels for the map x, (b, d, H, W)."""
        if x.dim() != 4 or min(x.shape[2:]) < 4:
            raise VimlearnError(f"the map has shape {tuple(x.shape)}; expected (b, d, H, W) with sides of at least 4")
        levels = {"p2": self.p2(x), "p3": self.p3(x), "p4": self.p4(x), "p5": self.p5(x)}
        # Every second pixel: a window of one, as in the published detector.
        levels["p6"] = F.max_pool2d(levels["p5"], kernel_size=1, stride=2)
        return levels


class PyramidBackbone(nn.Module):
    """A backbone with `forward_intermediates`, as Vim and timm's vision transformers have it, and a pyramid on its end.

    Images (b, 3, H, W) -> the levels of `SimplePyramid`. The map is the one behind the last block, before the final
    norm, as in the published detector.
    """

    def __init__(self, backbone: nn.Module, out_channels: int = 256):
        super().__init__()
        self.backbone, self.pyramid = backbone, SimplePyramid(backbone.embed_dim, out_channels)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the five levels for images (b, 3, H, W)."""
        last = self.backbone.forward_intermediates(images, indices=1, norm=False, intermediates_only=True)[0]
        return self.pyramid(last)


def _double(channels: int, out_channels: int) -> nn.Module:
    return nn.ConvTranspose2d(channels, out_channels, kernel_size=2, stride=2)


def _to_width(channels: int, out_channels: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, out_channels, 1, bias=False), LayerNorm2d(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False), LayerNorm2d(out_channels)]
