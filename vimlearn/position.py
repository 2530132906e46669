"""Position embeddings: which row belongs to the class token, and how the rows follow a change of image size.

The class token of the released networks stands in the middle of the sequence, before patch M // 2 of M, and the
position embedding is added after it was inserted. So row M // 2 belongs to the class token, and the other rows to the
patches.
"""

__all__ = ["class_token_index", "resize_position_embedding"]

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import state_dtype
from .errors import VimlearnError, nearest

CLASS_TOKENS = ("middle", "first", None)
RULES = ("grid", "published")


def class_token_index(class_token: str | None, patches: int) -> int | None:
    """Return the index of the class token in the sequence: `patches // 2`, 0, or None where there is none."""
    if class_token not in CLASS_TOKENS:
        hint = nearest(str(class_token), ("middle", "first", "None"))
        raise VimlearnError(f"unknown class_token {class_token!r}{hint}; expected 'middle', 'first' or None")
    return {"middle": patches // 2, "first": 0, None: None}[class_token]


def resize_position_embedding(rows: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], *,
                              old_class_index: int | None, new_class_index: int | None, rule: str = "grid") -> Tensor:
    """Return the position embedding for another grid of patches, resized bicubically.

    Arguments
        rows: (1, l, d), the patches of `old_grid` in row-major order and, at `old_class_index`, the class token's row.
        old_grid, new_grid: (rows, columns) of patches.
        old_class_index, new_class_index: where the class token stands before and after; None where there is none.
        rule: "grid" takes the class row out, resizes the patch rows, and puts the class row in at its new place.
              "published" is what the published trainer does: it takes the first row for the class row, wherever the
              class token stands. That is wrong for a class token in the middle; the published long-sequence
              checkpoints started from it. Both grids must be square there.

    Returns (1, new l, d). Raises VimlearnError where the rows do not fill the grid.
    """
    if rule not in RULES:
        raise VimlearnError(f"unknown rule {rule!r}{nearest(str(rule), RULES)}; expected 'grid' or 'published'")
    patches = old_grid[0] * old_grid[1]
    tokens = patches + (old_class_index is not None)
    if rows.dim() != 3 or rows.shape[:2] != (1, tokens):
        raise VimlearnError(f"the position embedding has shape {tuple(rows.shape)}; expected (1, l, d) with "
                            f"l = {tokens} for a grid of {old_grid[0]} x {old_grid[1]}")
    if rule == "published":
        return _published(rows, old_grid, new_grid, old_class_index, new_class_index)
    if old_class_index is None:
        if new_class_index is not None:
            raise VimlearnError("the position embedding has no row for a class token, but the network has one; "
                                "expected both or neither")
        return _resize(rows, old_grid, new_grid)
    class_row = rows[:, old_class_index:old_class_index + 1]
    patch_rows = torch.cat([rows[:, :old_class_index], rows[:, old_class_index + 1:]], dim=1)
    patch_rows = _resize(patch_rows, old_grid, new_grid)
    if new_class_index is None:
        return patch_rows
    return torch.cat([patch_rows[:, :new_class_index], class_row, patch_rows[:, new_class_index:]], dim=1)


def _published(rows, old_grid, new_grid, old_class_index, new_class_index):
    if old_grid[0] != old_grid[1] or new_grid[0] != new_grid[1]:
        raise VimlearnError(f"the published rule knows square grids only, not {old_grid} to {new_grid}; "
                            "use rule='grid'")
    if (old_class_index is None) != (new_class_index is None):
        raise VimlearnError("the published rule needs a class token on both sides or on neither; use rule='grid'")
    extra = int(old_class_index is not None)
    return torch.cat([rows[:, :extra], _resize(rows[:, extra:], old_grid, new_grid)], dim=1)


def _resize(patch_rows: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Resize (1, rows * columns, d) from one grid to another; unchanged where the grids agree."""
    if tuple(old_grid) == tuple(new_grid):
        return patch_rows
    # (1, d, rows, columns)
    image = patch_rows.unflatten(1, old_grid).permute(0, 3, 1, 2)
    image = F.interpolate(image.to(state_dtype(image.dtype)), size=new_grid, mode="bicubic", align_corners=False)
    return image.to(patch_rows.dtype).flatten(2).transpose(1, 2)
