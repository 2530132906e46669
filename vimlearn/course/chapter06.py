"""Checks of chapter 06: patches, class token, positions, counts, and the resize of positions."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vimlearn.course.exercise import Wrong, call, exercise, gradients, match
from vimlearn.position import resize_position_embedding


def _uneven(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return numbers without any pattern, the same ones every time."""
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(6))


@exercise("6.1", "Patches without a loop")
def patchify(answer):
    """Patches in row-major order, inside a patch colour, row, column."""
    # Three colours first: of one, several mistakes give the same numbers.
    for images, p in ((_uneven(2, 3, 6, 12), 3), (_uneven(1, 1, 4, 6), 2)):
        b, c, height, width = images.shape
        # Axes: b, c, row, y, column, x
        six = images.reshape(b, c, height // p, p, width // p, p)
        size = (b, -1, c * p * p)
        match(
            call(answer, images, p),
            F.unfold(images, p, stride=p).transpose(1, 2),
            name="the tensor of patches",
            mistakes={
                "the patches come column by column (column-major); number them row by row":
                    six.permute(0, 4, 2, 1, 3, 5).reshape(size),
                "inside a patch the channels are last; put the colour first, then row and column":
                    six.permute(0, 2, 4, 3, 5, 1).reshape(size),
                "inside a patch rows and columns are exchanged": six.permute(0, 2, 4, 1, 5, 3).reshape(size),
                "the colours stay in front of all: a patch holds its c p p numbers together":
                    images.reshape(b, c, height // p, p, width // p, p).permute(0, 1, 2, 4, 3, 5).reshape(size),
                "a side is cut at the wrong place: the first part counts patches, H // p of them, the second pixels":
                    images.reshape(b, c, p, height // p, p, width // p).permute(0, 2, 4, 1, 3, 5).reshape(size),
                "the sides are not cut into pairs: reshape to (b, c, H // p, p, W // p, p) before you permute":
                    images.reshape(b, c, height // p, width // p, p, p).permute(0, 2, 3, 1, 4, 5).reshape(size),
                "a reshape alone moves no number: these are strips of rows, not squares; permute the six axes":
                    images.reshape(size),
                "the axes are those of unfold, (b, c p p, M); exchange the last two": F.unfold(images, p, stride=p),
            },
        )
    return "cut by two splits and one permute, row by row, colour first."


@exercise("6.2", "How many patches?")
def patch_counts(answer):
    """floor((side - p) / stride) + 1 on each side; the number of patches is the product."""
    if not isinstance(answer, Sequence) or len(answer) != 3:
        raise Wrong("answer with three numbers in a tuple")
    for got, (height, width, stride) in zip(answer, ((738, 738, 16), (427, 640, 16), (427, 640, 8)), strict=True):
        _one_count(got, height, width, stride)
    return "rounded down on each side, plus the first patch, then multiplied."


def _one_count(got: object, height: int, width: int, stride: int) -> None:
    name = f"{height} × {width}, stride {stride}"
    rows, columns = ((side - 16) // stride + 1 for side in (height, width))
    up = [math.ceil((side - 16) / stride) + 1 for side in (height, width)]
    match(
        got,
        rows * columns,
        name=f"the number for {name}",
        mistakes={
            f"{name}: rounded up; a patch that does not fit is dropped, so round down": up[0] * up[1],
            f"{name}: this counts the class token too (M + 1); the question is M": rows * columns + 1,
            f"{name}: off by one on each side; the first patch needs no step, so add 1": (rows - 1) * (columns - 1),
            f"{name}: side / stride counts windows that stick out; take 16 off first, then add 1":
                (height // stride) * (width // stride),
            f"{name}: the stride is {stride} here, not 16": ((height - 16) // 16 + 1) * ((width - 16) // 16 + 1),
            f"{name}: these are the rows alone; multiply rows and columns": rows,
            f"{name}: these are the columns alone; multiply rows and columns": columns,
        },
    )


@exercise("6.3", "Insert the class token")
def insert_class_token(answer):
    """The class token at index M // 2 of every sequence."""
    for b, M in ((1, 6), (3, 6), (2, 5)):
        patches, token = _uneven(b, M, 4), _uneven(1, 1, 4) + 10
        every = token.expand(b, -1, -1)

        def at(index, patches=patches, every=every):
            return torch.cat([patches[:, :index], every, patches[:, index:]], dim=1)

        match(
            call(answer, patches, token),
            at(M // 2),
            name="the sequence",
            mistakes={
                "the class token is at the start, as in most transformers; Vim wants it at M // 2": at(0),
                "the class token is at the end; Vim wants it at M // 2": at(M),
                f"with M = {M} the class token is at {M // 2 + 1}; M // 2 is {M // 2}, rounded down": at(M // 2 + 1),
                f"with M = {M} the class token is at {M // 2 - 1}, one too early; M // 2 is {M // 2}": at(M // 2 - 1),
                "the class token overwrites a patch; insert it, so that the sequence gets one longer":
                    lambda p=patches, e=every, m=M // 2: torch.cat([p[:, :m], e, p[:, m + 1:]], dim=1),
                "the class token was added to the patches; it is a token of its own": patches + token,
            },
        )
    patches, token = _uneven(2, 6, 4), _uneven(1, 1, 4) + 10
    match(
        gradients(answer, patches, token),
        gradients(lambda p, t: torch.cat([p[:, :3], t.expand(2, -1, -1), p[:, 3:]], dim=1), patches, token),
        name=("the gradient of the patches", "the gradient of the class token"),
    )
    return "M // 2 patches, the class token, the others, in every image of the batch."


@exercise("6.4", "Whose row is it?")
def position_rows(answer):
    """Patches before the class token keep their number, the others move up by one."""
    match(
        answer,
        (0, 98, 99, 196),
        name=("the row of patch (0, 0)", "the row of the class token", "the row of patch (7, 0)",
              "the row of the last patch"),
        mistakes={
            "these are the rows of a class token that stands first; it stands in the middle": (1, 0, 99, 196),
            "positions are added after the class token went in: it pushes the later patches down by one":
                (0, 98, 98, 195),
            "the class token stands at 196 // 2 = 98, directly before the patch of row 7, column 0":
                (0, 99, 98, 196),
            "the class token is not at the end; it stands at 196 // 2": (0, 196, 98, 195),
            "count from 0: the first row is row 0": (1, 99, 100, 197),
            "this is column-major order (14 × column + row); patches are numbered row by row": (0, 98, 7, 196),
        },
    )
    return "98 patches, the class token in row 98, and every later patch one row further down."


@exercise("6.5", "The rate of each block")
def drop_rates(answer):
    """rate * k / (depth - 1) for k = 0, ..., depth - 1."""
    for rate, depth in ((0.2, 5), (0.05, 24)):
        steps = depth - 1
        match(
            call(answer, rate, depth),
            [rate * k / steps for k in range(depth)],
            name="rates",
            rtol=1e-6,
            mistakes={
                "the last block does not reach the full rate; from 0 to rate there are depth - 1 steps, not depth":
                    [rate * k / depth for k in range(depth)],
                "the first block has a rate above 0; count k from 0 and divide by depth - 1":
                    [rate * (k + 1) / depth for k in range(depth)],
                "these grow to 1; multiply by the rate": [k / steps for k in range(depth)],
                "all blocks have the same rate; it grows linearly from 0 in the first": [rate] * depth,
                "the rates fall; the first block has 0 and the last the full rate":
                    [rate * (steps - k) / steps for k in range(depth)],
                "the rates are one block late; block 1 already has rate / (depth - 1)":
                    [0.0] + [rate * k / steps for k in range(steps)],
                "these are the probabilities to keep a block; the rate is the probability to drop it":
                    [1 - rate * k / steps for k in range(depth)],
            },
        )
    match(call(answer, 0.3, 1), [0.0], name="the rates of a single block", rtol=1e-6,
          mistakes={"a network of one block drops nothing": [0.3]})
    return "from 0 to the full rate in depth - 1 equal steps."


@exercise("6.6", "All parameters of a Vim")
def network_parameters(answer):
    """The parameter total of a network of 24 blocks, patch 16, 16 states."""
    # The second width is no multiple of 16, which shows how r is rounded.
    for d, tokens, classes in ((192, 197, 1000), (100, 50, 10)):
        e, n, r = 2 * d, 16, math.ceil(d / 16)
        direction = (4 * e + e) + (r + 2 * n) * e + (e * r + e) + e * n + e
        right = 769 * d + d + tokens * d + 24 * (3 * e * d + d + 2 * direction) + d + classes * (d + 1)
        match(
            call(answer, d, tokens, classes),
            right,
            name=f"the total for d = {d}",
            mistakes={
                "only one direction is counted; conv, x_proj, dt_proj, A_log and D exist twice": right - 24 * direction,
                "in_proj or out_proj is counted once a direction; both directions share them": right + 24 * 3 * e * d,
                "in_proj is counted with e outputs; it makes x and z, so 2 e": right - 24 * e * d,
                "in_proj and out_proj have no bias": right + 24 * (2 * e + d),
                "e numbers a direction are missing: the bias of the convolution, the bias of dt_proj, or D":
                    right - 24 * 2 * e,
                "r is d / 16 rounded up, not down": right - 24 * 2 * 2 * e * (r - d // 16),
                "the norms of the blocks are missing": right - 24 * d,
                "d numbers are missing: the bias of the patches, the class token, or the last norm": right - d,
                "the bias of the head is missing": right - classes,
                "2 n e numbers a block are missing: A_log (e n a direction), or C in x_proj, which makes r + 2 n":
                    right - 24 * 2 * n * e,
                "positions: the class token has a row too; tokens already counts it": right + d,
            },
        )
    return "patches, class token, positions, 24 blocks with two directions each, norm and head."


@exercise("6.7", "Resize positions")
def resize_positions(answer):
    """Class row out, patch rows resized as a picture, class row in at its new place."""
    for old_grid, new_grid in (((4, 4), (6, 6)), ((3, 4), (5, 7)), ((4, 6), (3, 4))):
        old, new = (grid[0] * grid[1] // 2 for grid in (old_grid, new_grid))
        rows = _uneven(1, old_grid[0] * old_grid[1] + 1, 3, dtype=torch.float32)
        right = resize_position_embedding(rows, old_grid, new_grid, old_class_index=old, new_class_index=new)
        match(
            call(answer, rows, old_grid, new_grid),
            right,
            name="the tensor of positions",
            mistakes=_resize_mistakes(rows, old_grid, new_grid, right),
        )
    return "only patches are interpolated; the class row moves unchanged to the new middle."


def _resize_mistakes(rows: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], right: Tensor) -> dict:
    old, new = (grid[0] * grid[1] // 2 for grid in (old_grid, new_grid))
    patches = torch.cat([rows[:, :old], rows[:, old + 1:]], dim=1)
    class_row = rows[:, old:old + 1]

    def resized(patches, **how):
        picture = patches.reshape(1, *old_grid, -1).permute(0, 3, 1, 2)
        return F.interpolate(picture, size=new_grid, **how).flatten(2).transpose(1, 2)

    def insert(patches, index=new, row=class_row):
        return torch.cat([patches[:, :index], row, patches[:, index:]], dim=1)

    def mixed():
        picture = patches.reshape(1, -1, *old_grid)
        return insert(F.interpolate(picture, size=new_grid, mode="bicubic").flatten(2).transpose(1, 2))

    def turned():
        picture = patches.reshape(1, old_grid[1], old_grid[0], -1).permute(0, 3, 2, 1)
        return insert(F.interpolate(picture, size=new_grid, mode="bicubic").flatten(2).transpose(1, 2))

    bicubic = resized(patches, mode="bicubic")
    return {
        "row 0 was taken for the class token's; it is patch 0, the class row is row M // 2":
            lambda: torch.cat([rows[:, :1], resized(rows[:, 1:], mode="bicubic")], dim=1),
        "row 0 was taken for the class token's and put in at the new middle; the class row is row M // 2":
            lambda: insert(resized(rows[:, 1:], mode="bicubic"), row=rows[:, :1]),
        "on the way back places and channels are mixed: flatten the grid, then move the channels to the end":
            lambda: insert(resized(patches, mode="bicubic").transpose(1, 2).reshape(1, -1, rows.shape[2])),
        "the class row went back in at its old index; its new place is the new M // 2": lambda: insert(bicubic, old),
        "the class row went back in at the start; its place is the new M // 2": lambda: insert(bicubic, 0),
        "the class row is missing; put it back in at the new M // 2": bicubic,
        "this is bilinear; use mode='bicubic'": lambda: insert(resized(patches, mode="bilinear")),
        "align_corners is True here; the rule has align_corners=False":
            lambda: insert(resized(patches, mode="bicubic", align_corners=True)),
        "this picks the nearest row (interpolate's default); use mode='bicubic'": lambda: insert(resized(patches)),
        "channels and places are mixed: reshape to (1, rows, columns, d) first, then permute": mixed,
        "the grid was filled column by column; positions run row by row": turned,
        "nothing was resized; the class row is right, the patch rows are to be interpolated":
            lambda: rows if rows.shape == right.shape else None,
    }
