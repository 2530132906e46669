"""The pyramid of feature maps: shapes, parameters, and what each level sees."""

import pytest
import torch

from vimlearn import VimlearnError, VisionMamba
from vimlearn.pyramid import LEVELS, PyramidBackbone, SimplePyramid


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters_are_those_of_the_published_detector():
    assert count(SimplePyramid(192)) == 2_664_880


def test_parameters_by_hand():
    # d 8, width 6: p2 doubles to 4 and to 2 channels, p3 to 4; convolutions of one and of nine pixels, a norm each.
    to_width = 6 * (2 + 4 + 8 + 8) + 4 * (2 * 6 + 9 * 6 * 6 + 2 * 6)
    assert count(SimplePyramid(8, 6)) == (8 * 4 * 4 + 4) + 2 * 4 + (4 * 2 * 4 + 2) + (8 * 4 * 4 + 4) + to_width


@pytest.mark.parametrize("height, width", [(4, 4), (5, 7), (14, 14)])
def test_shapes(height, width):
    levels = SimplePyramid(8, 6)(torch.randn(2, 8, height, width))
    assert tuple(levels) == LEVELS
    half = (height // 2, width // 2)
    sides = [(4 * height, 4 * width), (2 * height, 2 * width), (height, width), half,
             ((half[0] + 1) // 2, (half[1] + 1) // 2)]
    assert [tuple(level.shape) for level in levels.values()] == [(2, 6, *side) for side in sides]


def test_p6_is_every_second_pixel_of_p5():
    levels = SimplePyramid(8, 6)(torch.randn(1, 8, 8, 8))
    torch.testing.assert_close(levels["p6"], levels["p5"][:, :, ::2, ::2], rtol=0, atol=0)


def test_it_stands_on_the_map_behind_the_last_block_without_the_final_norm():
    vim = VisionMamba(64, embed_dim=16, depth=2, d_state=4, num_classes=0).eval()
    backbone = PyramidBackbone(vim, 6).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        h, residual = vim.embed(images), None
        for layer in vim.layers:
            h, residual = layer(h, residual)
        last = vim.patch_tokens(residual + h).transpose(1, 2).unflatten(2, (4, 4))
        expected, found = backbone.pyramid(last), backbone(images)
    for name in LEVELS:
        torch.testing.assert_close(found[name], expected[name])


def test_every_parameter_of_the_pyramid_has_a_gradient():
    pyramid = SimplePyramid(8, 6)
    sum(level.square().sum() for level in pyramid(torch.randn(1, 8, 4, 4)).values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pyramid.parameters())


@pytest.mark.parametrize("channels", [0, 2, 6])
def test_widths_that_cannot_be_quartered_are_refused(channels):
    with pytest.raises(VimlearnError, match="expected a multiple of 4"):
        SimplePyramid(channels)


@pytest.mark.parametrize("shape", [(8, 4, 4), (1, 8, 3, 4)])
def test_maps_that_are_too_small_are_refused(shape):
    with pytest.raises(VimlearnError, match=r"expected .b, d, H, W. with sides of at least 4"):
        SimplePyramid(8)(torch.randn(shape))
