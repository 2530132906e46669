"""Rows of the hidden matrices: one drawn on a plot, and sliders over layer, token and direction."""

__all__ = ["draw_row", "explorer"]

import io

import ipywidgets
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from torch import Tensor

from vimlearn.course.figures import COLORS, DIVERGING
from vimlearn.explain.attention import DIRECTIONS
from vimlearn.explain.figures import draw_method
from vimlearn.explain.methods import explain
from vimlearn.vim import VisionMamba


def draw_row(ax: Axes, values: Tensor, at: tuple[int, int] | None = None) -> AxesImage:
    """Draw a signed map (rows, columns) around 0, with a frame on patch `at`, and return the picture for a colour bar.

    The scale reaches the largest magnitude among the patches.
    """
    most = max(values.abs().max().item(), 1e-12)
    drawn = ax.imshow(values, cmap=DIVERGING, vmin=-most, vmax=most)
    ax.set(xticks=[], yticks=[])
    if at is not None:
        row, column = at
        ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=COLORS["black"], linewidth=2))
    return drawn


def explorer(model: VisionMamba, image: Tensor, picture: Tensor) -> ipywidgets.Widget:
    """Return sliders for layer, row, column and direction, above the image and the row of that query.

    Arguments: image (3, H, W), as the network takes it; picture (3, H, W), the same to be drawn, 0 to 1.
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
        values = explain(model, image[None], "hidden", layer=layer.value, query=query, direction=direction.value)[0]
        figure = draw_method(model, picture, values, "hidden", layer=layer.value, query=query)
        said.value, drawn.value = figure.get_label(), _png(figure)

    for control in (layer, row, column, whole, direction):
        control.observe(draw, "value")
    draw()
    return ipywidgets.VBox([layer, whole, row, column, direction, said, drawn])


def _png(fig: Figure) -> bytes:
    file = io.BytesIO()
    fig.savefig(file, format="png", dpi=90)
    return file.getvalue()
