"""Wrong answers to the exercises of chapter 06, each rejected with a message that names the mistake."""

import math

import pytest
import torch
import torch.nn.functional as F

from vimlearn.course.exercise import grade


def column_major(images, p):
    height, width = images.shape[2:]
    cut = [images[:, :, y:y + p, x:x + p].flatten(1) for x in range(0, width, p) for y in range(0, height, p)]
    return torch.stack(cut, dim=1)


def channels_last(images, p):
    images = images.permute(0, 2, 3, 1)
    height, width = images.shape[1:3]
    cut = [images[:, y:y + p, x:x + p].flatten(1) for y in range(0, height, p) for x in range(0, width, p)]
    return torch.stack(cut, dim=1)


def turned_patches(images, p):
    height, width = images.shape[2:]
    cut = [images[:, :, y:y + p, x:x + p].mT.flatten(1) for y in range(0, height, p) for x in range(0, width, p)]
    return torch.stack(cut, dim=1)


@pytest.mark.parametrize(("wrong", "word"), [
    (column_major, "column-major"),
    (channels_last, "channels are last"),
    (turned_patches, "rows and columns are exchanged"),
    (lambda images, p: images.reshape(len(images), -1, images.shape[1] * p * p), "strips"),
    (lambda images, p: F.unfold(images, p, stride=p), "last two"),
])
def test_patchify_names_its_mistakes(rejected, wrong, word):
    assert rejected("patchify", wrong, word)


def test_patchify_takes_the_loop():
    def loop(images, p):
        return torch.stack([cut.flatten(1) for row in images.split(p, 2) for cut in row.split(p, 3)], dim=1)

    assert grade("patchify", loop).status == "right"


def test_patch_counts_names_its_mistakes(rejected):
    assert rejected("patch_counts", (47 * 47, 1040, 4108), "738", "rounded up")
    assert rejected("patch_counts", (2116, 27 * 40, 4108), "427 × 640, stride 16", "rounded up")
    assert rejected("patch_counts", (2117, 1041, 4109), "class token")
    assert rejected("patch_counts", (45 * 45, 25 * 39, 51 * 78), "first patch")
    assert rejected("patch_counts", (2116, 1040, 53 * 80), "stride 8", "take 16 off")
    assert rejected("patch_counts", (2116, 1040, 1040), "stride is 8")
    assert rejected("patch_counts", (46, 26, 52), "multiply")
    assert rejected("patch_counts", (2116, 40, 4108), "columns alone")
    assert rejected("patch_counts", 2116, "three numbers")


def inserted(place):
    def wrong(patches, class_token):
        places = [*patches.unbind(1)]
        places.insert(place(len(places)), class_token[0, 0].expand(len(patches), -1))
        return torch.stack(places, dim=1)

    return wrong


@pytest.mark.parametrize(("wrong", "word"), [
    (inserted(lambda M: 0), "at the start"),
    (inserted(lambda M: M), "at the end"),
    (inserted(lambda M: math.ceil(M / 2)), "rounded down"),
    (inserted(lambda M: M // 2 - 1), "one too early"),
    (lambda patches, class_token: patches + class_token, "token of its own"),
    (lambda patches, class_token: torch.cat([patches[:, :3], class_token, patches[:, 3:]], dim=1), "stops with"),
])
def test_insert_class_token_names_its_mistakes(rejected, wrong, word):
    assert rejected("insert_class_token", wrong, word)


def test_insert_class_token_sees_an_overwritten_patch(rejected):
    def overwrites(patches, class_token):
        patches = patches.clone()
        patches[:, patches.shape[1] // 2] = class_token[0]
        return patches

    assert rejected("insert_class_token", overwrites, "overwrites")


def test_position_rows_names_its_mistakes(rejected):
    assert rejected("position_rows", (1, 0, 99, 196), "stands first")
    assert rejected("position_rows", (0, 98, 98, 195), "after the class token")
    assert rejected("position_rows", (0, 99, 98, 196), "196 // 2")
    assert rejected("position_rows", (0, 196, 98, 195), "not at the end")
    assert rejected("position_rows", (1, 99, 100, 197), "from 0")
    assert rejected("position_rows", (0, 98, 7, 196), "column-major")


@pytest.mark.parametrize(("wrong", "word"), [
    (lambda rate, depth: [rate / depth * k for k in range(depth)], "does not reach"),
    (lambda rate, depth: [rate / depth * k for k in range(1, depth + 1)], "first block"),
    (lambda rate, depth: [rate] * depth, "same rate"),
    (lambda rate, depth: torch.linspace(rate, 0, depth).tolist(), "fall"),
    (lambda rate, depth: [0.0, *torch.linspace(0, rate, depth).tolist()[:-1]], "one block late"),
    (lambda rate, depth: (1 - torch.linspace(0, rate, depth)).tolist(), "keep"),
    (lambda rate, depth: [rate * k / (depth - 1) for k in range(depth)], "ZeroDivisionError"),
    (lambda rate, depth: [rate] if depth == 1 else torch.linspace(0, rate, depth).tolist(), "drops nothing"),
])
def test_drop_rates_names_its_mistakes(rejected, wrong, word):
    assert rejected("drop_rates", wrong, word)


def test_drop_rates_takes_a_tensor():
    assert grade("drop_rates", lambda rate, depth: torch.linspace(0, rate, depth)).status == "right"


def total(directions=2, shared=1, inner=2, bias_in=0, bias_dt=1, rank=math.ceil, norms=24, last=1, bias_head=1,
          states=2, extra_row=0):
    """A parameter count with one knob for each mistake."""
    def count(d, tokens, classes):
        e, r = 2 * d, rank(d / 16)
        one = 5 * e + (r + states * 16) * e + e * r + bias_dt * e + e * 16 + e
        maps = shared * (inner * e * d + d * e) + bias_in * (2 * e + d)
        around = 3 * 256 * d + d + d + (tokens + extra_row) * d + last * d + classes * (d + bias_head)
        return around + 24 * (maps + directions * one) + norms * d

    return count


@pytest.mark.parametrize(("wrong", "word"), [
    (total(directions=1), "only one direction"),
    (total(shared=2), "share"),
    (total(inner=1), "2 e"),
    (total(bias_in=1), "no bias"),
    (total(bias_dt=0), "dt_proj"),
    (total(rank=math.floor), "rounded up"),
    (total(norms=0), "norms of the blocks"),
    (total(last=0), "last norm"),
    (total(bias_head=0), "bias of the head"),
    (total(states=1), "r + 2 n"),
    (total(extra_row=1), "already counts"),
])
def test_network_parameters_names_its_mistakes(rejected, wrong, word):
    assert rejected("network_parameters", wrong, word)


def test_network_parameters_of_the_released_network():
    assert total()(192, 197, 1000) == 7_148_008
    assert grade("network_parameters", total()).status == "right"


def resize(patches, old_grid, new_grid, **how):
    how = {"mode": "bicubic", **how}
    rows, columns = old_grid
    channels = [patches[..., i].view(1, 1, rows, columns) for i in range(patches.shape[-1])]
    return torch.stack([F.interpolate(c, size=new_grid, **how).flatten(1) for c in channels], dim=-1)


def split(rows, index):
    return rows[:, index:index + 1], rows[:, torch.arange(rows.shape[1]) != index]


def middle(grid):
    return math.prod(grid) // 2


def rule(place=lambda old, new: new, **how):
    def wrong(rows, old_grid, new_grid):
        old, new = middle(old_grid), middle(new_grid)
        class_row, patches = split(rows, old)
        patches = resize(patches, old_grid, new_grid, **how)
        index = place(old, new)
        return torch.cat([patches[:, :index], class_row, patches[:, index:]], dim=1)

    return wrong


def published(rows, old_grid, new_grid):
    first, others = split(rows, 0)
    return torch.cat([first, resize(others, old_grid, new_grid)], dim=1)


def forgets_the_class_row(rows, old_grid, new_grid):
    return resize(split(rows, middle(old_grid))[1], old_grid, new_grid)


def mixes_channels(rows, old_grid, new_grid):
    class_row, patches = split(rows, middle(old_grid))
    picture = patches.reshape(1, rows.shape[-1], *old_grid)
    patches = F.interpolate(picture, size=new_grid, mode="bicubic").flatten(2).transpose(1, 2)
    return torch.cat([patches[:, :middle(new_grid)], class_row, patches[:, middle(new_grid):]], dim=1)


def fills_columns_first(rows, old_grid, new_grid):
    class_row, patches = split(rows, middle(old_grid))
    height, width = old_grid
    turned = patches.reshape(1, width, height, -1).transpose(1, 2).flatten(1, 2)
    patches = resize(turned, old_grid, new_grid)
    return torch.cat([patches[:, :middle(new_grid)], class_row, patches[:, middle(new_grid):]], dim=1)


@pytest.mark.parametrize(("wrong", "word"), [
    (published, "row 0 was taken"),
    (rule(lambda old, new: old), "old index"),
    (rule(lambda old, new: 0), "at the start"),
    (forgets_the_class_row, "missing"),
    (rule(mode="bilinear"), "bilinear"),
    (rule(align_corners=True), "align_corners"),
    (rule(mode="nearest"), "nearest"),
    (mixes_channels, "mixed"),
    (fills_columns_first, "column by column"),
])
def test_resize_positions_names_its_mistakes(rejected, wrong, word):
    assert rejected("resize_positions", wrong, word)


def test_resize_positions_takes_another_way_of_writing_it():
    assert grade("resize_positions", rule()).status == "right"
