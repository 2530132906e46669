"""Sliders over the rows of the hidden matrices of one image: layer, token and direction."""

__all__ = ["draw_row", "explorer"]

import io

import ipywidgets
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vimlearn.course.figures import COLORS, DIVERGING
from vimlearn.explain.attention import DIRECTIONS, hidden_attention, on_grid
from vimlearn.vim import VisionMamba


def draw_row(ax: Axes, values: Tensor, at: tuple[int, int] | None = None):
    """Draw a signed map (rows, columns) around 0, with a frame on patch `at`, and return the picture for a colour bar.

    The scale reaches the largest magnitude among the patches.
    """
    most = max(values.abs().max().item(), 1e-12)
    drawn = ax.imshow(values, cmap=DIVERGING, vmin=-most, vmax=most)
    ax.set(xticks=[], yticks=[])
    if at is not None:
        row, column = at
        ax.add_patch(plt.Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=COLORS["black"], linewidth=2))
    return drawn


def explorer(model: VisionMamba, image: Tensor, picture: Tensor) -> ipywidgets.Widget:
    """Return sliders for layer, row, column and direction, above the image and the row of that query.

    Arguments: image (in_chans, H, W), as the network takes it; picture (H, W, 3), the same to be drawn, 0 to 1.
    """
    rows, columns = model.patch_embed.grid_size
    layer = ipywidgets.IntSlider(len(model.layers) - 1, 0, len(model.layers) - 1, description="layer")
    row = ipywidgets.IntSlider(rows // 2, 0, rows - 1, description="row")
    column = ipywidgets.IntSlider(columns // 2, 0, columns - 1, description="column")
    whole = ipywidgets.Checkbox(True, description="ask the class token")
    direction = ipywidgets.Dropdown(options=DIRECTIONS, value="both", description="direction")
    drawn, said = ipywidgets.Image(format="png"), ipywidgets.Label()

    def draw(_=None) -> None:
        query = None if whole.value else (row.value, column.value)
        values = on_grid(model, hidden_attention(model, image[None], layer.value, query, direction.value))[0]
        name = "the class token" if query is None else f"the patch in row {query[0]}, column {query[1]}"
        said.value = f"What {name} takes in, layer {layer.value}, {direction.value}; largest {values.abs().max():.3g}."
        drawn.value = _png(_figure(picture, values, query))

    for control in (layer, row, column, whole, direction):
        control.observe(draw, "value")
    draw()
    return ipywidgets.VBox([layer, whole, row, column, direction, said, drawn])


def _figure(picture: Tensor, values: Tensor, query: tuple[int, int] | None) -> Figure:
    fig, (left, right) = plt.subplots(1, 2, figsize=(6, 2.7))
    left.imshow(picture)
    left.axis("off")
    fig.colorbar(draw_row(right, values, query), ax=right, label="mean matrix entry")
    return fig


def _png(fig: Figure) -> bytes:
    file = io.BytesIO()
    fig.savefig(file, format="png", dpi=90)
    plt.close(fig)
    return file.getvalue()
