"""Maps drawn over their image: the picture in grey below, the map in colour above, a colour bar, marks, alt text.

The colours are perceptually uniform and safe for the colour-blind: viridis for maps from 0 on, PuOr (orange above 0,
purple below) for maps with signs. A map has one number a patch and is drawn in squares, at the resolution of the image:
nothing is smoothed that the network did not compute.
"""

__all__ = ["Mark", "alt_text", "class_token_mark", "draw", "draw_method", "patch_area", "query_mark"]

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from ..errors import VimlearnError
from ..vim import VisionMamba
from .methods import METHODS, default_layer
from .records import Query, check_layers, query_token

SEQUENTIAL, DIVERGING = "viridis", "PuOr_r"
# How much of the colour comes from the map; the rest is the picture in grey, from GREY upwards.
OPACITY, GREY = 0.65, 0.15
# Inches: side of a picture where there are two, and where there are many.
LARGE, SMALL = 2.9, 1.55
# Of a file, so that it shows every pixel of the image, within reason.
DPI = (200, 400)
# Pixels whose gradients are larger than those of so many percent of all have the strongest colour.
PERCENT_OF_PIXELS = 99
Area = tuple[float, float, float, float]
WHOLE: Area = (0, 0, 1, 1)


@dataclass(frozen=True)
class Mark:
    """A place in the picture, in shares of its width and height. With a width and height it is a frame around a patch,
    without them a diamond at a point. text stands in the legend.
    """

    text: str
    x: float
    y: float
    width: float = 0
    height: float = 0


def draw(image: Image.Image | np.ndarray | Tensor, maps: Tensor, *, titles: Sequence[str] = (), unit: str = "",
         signed: bool = False, from_zero: bool = True, area: Area = WHOLE, marks: Sequence[Mark] = (),
         percentile: float = 100, columns: int = 6, alt: str = "") -> Figure:
    """Return a figure with the picture and each map over it. Its alt text is its label: `figure.get_label()`.

    Arguments
        image: what the network saw, at any resolution: a PIL image, an array (H, W, 3) or a tensor (3, H, W), uint8 or
            from 0 to 1.
        maps: (rows, columns), or several of them, (maps, rows, columns), of patches or pixels.
        titles: one for each map.
        unit: what stands at the colour bar, for one map. Several have one bar, from 0 to the largest absolute value of
            each, because layers differ by orders of magnitude.
        signed: whether values below 0 have a meaning. Then 0 is in the middle of the colours.
        from_zero: whether the colours begin at 0, where there are no signs; else at the smallest value.
        area: where the map lies on the picture: left, top, right, bottom, in shares; see `patch_area`.
        marks: places to show.
        percentile: of the absolute values, from which on all have the strongest colour; 100 is the largest.
        columns: pictures in a row, at most.
        alt: alt text; without one it is `alt_text`.

    Raises VimlearnError where image, maps and titles do not fit. It needs no notebook and no screen.
    """
    picture, maps = _picture(image), _maps(maps)
    if len(titles) not in (0, len(maps)):
        raise VimlearnError(f"there are {len(titles)} titles for {len(maps)} maps; expected one for each, or none")
    norms = [_norm(one, signed, from_zero, percentile) for one in maps]
    figure, panels = _panels(picture, len(maps) + 1, columns)
    _show(panels[0], picture, "image")
    colours = colormaps[DIVERGING if signed else SEQUENTIAL]
    for axes, one, norm, title in zip(panels[1:], maps, norms, titles or [""] * len(maps), strict=True):
        _show(axes, _grey(picture), title)
        _lay_over(axes, one, norm, colours, area, picture.shape)
    for mark in marks:
        for axes in panels:
            _mark(axes, mark, picture.shape)
    _colour_bar(figure, panels, norms, colours, unit, percentile < 100)
    _legend(figure, panels[-1], marks)
    figure.set_label(alt or alt_text(maps, signed=signed))
    return figure


def draw_method(model: VisionMamba, image: Image.Image | np.ndarray | Tensor, maps: Tensor, method: str, *,
                layer: int | str | None = None, query: Query = None, direction: str | None = None, about: str = "",
                columns: int = 6) -> Figure:
    """Return `draw` of what `explain` gave for one image, with titles, marks and alt text that fit the method.

    Arguments
        maps: for this image alone: (rows, columns), or with layer="all" (layers, rows, columns).
        method, layer, query, direction: as they were given to `explain`.
        about: what the alt text says of the image as well, such as its name and class.
    """
    known, titles = METHODS[method], _titles(model, method, layer, direction)
    marks = _asked(model, method, query)
    what = titles[0] if len(titles) == 1 else known.title
    words = ", ".join([what[0].upper() + what[1:], *(mark.text for mark in marks), *filter(None, [about])])
    if marks and marks[0].width and model.class_token_index is not None:
        marks.append(class_token_mark(model))
    return draw(image, maps, titles=titles, unit=known.unit, signed=known.signed, from_zero=known.from_zero,
                marks=marks, columns=columns, area=WHOLE if known.of_pixels else patch_area(model),
                alt=alt_text(maps, words, known.signed),
                percentile=PERCENT_OF_PIXELS if known.of_pixels else 100)


def _titles(model: VisionMamba, method: str, layer: int | str | None, direction: str | None) -> list[str]:
    known = METHODS[method]
    if "layer" not in known.options:
        return [known.title]
    way = "" if direction in (None, "both") else f", {direction}"
    if layer == "all":
        return [f"layer {i}{way}" for i in check_layers(model, None)]
    (number,) = check_layers(model, [default_layer(model, method) if layer is None else layer])
    return [f"{known.title}, layer {number}{way}"]


def _asked(model: VisionMamba, method: str, query: Query) -> list[Mark]:
    if "query" not in METHODS[method].options:
        return []
    middle = tuple(n // 2 for n in model.patch_embed.grid_size)
    return [query_mark(model, middle if query is None and method == "receptive-field" else query)]


def alt_text(maps: Tensor | np.ndarray, what: str = "A map", signed: bool = False) -> str:
    """Return a text of some 30 words for those who do not see the picture: where the map is largest, how spread it is.

    maps: (rows, columns), or several, of which the first and the last are described.
    """
    maps = _maps(maps)
    if len(maps) == 1:
        return f"{what} over the image in grey. {_in_words(maps[0], signed)}."
    return (f"{what}, {len(maps)} maps over the image in grey. First: {_in_words(maps[0], signed, short=True)}. "
            f"Last: {_in_words(maps[-1], signed, short=True)}.")


def patch_area(model: VisionMamba) -> Area:
    """Return where the patches lie on the image, as `draw` takes it: left, top, right, bottom, in shares.

    Each patch is drawn as wide as the step to the next one, around its middle. Without overlap that is the patch.
    """
    patches = model.patch_embed
    (height, width), (rows, columns) = patches.img_size, patches.grid_size
    left = top = (patches.patch_size - patches.stride) / 2
    return left / width, top / height, (left + columns * patches.stride) / width, \
        (top + rows * patches.stride) / height


def query_mark(model: VisionMamba, query: Query = None, text: str = "query") -> Mark:
    """Return a frame around the patch that is asked about, or the place of the class token."""
    token, at = query_token(model, query), model.class_token_index
    if token == at:
        return class_token_mark(model, f"{text}: class token")
    left, top, width, height = _cell(model, token - (at is not None and at < token))
    return Mark(text, left, top, width, height)


def class_token_mark(model: VisionMamba, text: str = "class token") -> Mark:
    """Return where the class token stands: in front of the patch that follows it in the sequence."""
    at = query_token(model, "class")
    left, top, _, height = _cell(model, at)
    return Mark(text, left, top + height / 2)


def _cell(model: VisionMamba, patch: int) -> Area:
    """Return left, top, width and height of a patch, in shares."""
    left, top, right, bottom = patch_area(model)
    rows, columns = model.patch_embed.grid_size
    width, height = (right - left) / columns, (bottom - top) / rows
    return left + patch % columns * width, top + patch // columns * height, width, height


def _picture(image) -> np.ndarray:
    """Return (H, W, 3) from 0 to 1."""
    array = image.permute(1, 2, 0).cpu().numpy() if isinstance(image, Tensor) and image.dim() == 3 else \
        np.asarray(image)
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise VimlearnError(f"the image has shape {tuple(array.shape)}; expected a PIL image in RGB, (H, W, 3) or a "
                            "tensor (3, H, W)")
    array = array / 255 if array.dtype == np.uint8 else array.astype(float)
    if not (array.min() >= 0 and array.max() <= 1):
        raise VimlearnError(f"the image runs from {array.min():.3g} to {array.max():.3g}; expected uint8, or 0 to 1; "
                            "normalised images have to be turned back")
    return array


def _maps(maps) -> np.ndarray:
    """Return (maps, rows, columns), float64."""
    array = torch.as_tensor(maps).detach().double().cpu().numpy()
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or 0 in array.shape or not np.isfinite(array).all():
        raise VimlearnError(f"the maps have shape {tuple(array.shape)}; expected (rows, columns) or (maps, rows, "
                            "columns), not empty and all finite")
    return array


def _norm(one: np.ndarray, signed: bool, from_zero: bool, percentile: float) -> Normalize:
    largest = np.percentile(np.abs(one), percentile) or np.abs(one).max() or 1.0
    if signed:
        return Normalize(-largest, largest)
    return Normalize(0 if from_zero or one.min() == largest else one.min(), largest)


def _panels(picture: np.ndarray, count: int, columns: int) -> tuple[Figure, list[Axes]]:
    rows = -(-count // columns)
    # Rows of about the same length.
    columns = -(-count // rows)
    side = LARGE if count == 2 else SMALL
    # A wide picture is as wide as a square one, and lower.
    height, width = (side * n / max(picture.shape[:2]) for n in picture.shape[:2])
    figure = Figure(figsize=(columns * width + 0.9, rows * (height + 0.22) + 0.3), layout="constrained",
                    dpi=min(max(DPI[0], max(picture.shape) / side), DPI[1]))
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[count:]:
        axes.remove()
    return figure, panels[:count]


def _show(axes: Axes, picture: np.ndarray, title: str) -> None:
    axes.imshow(picture, vmin=0, vmax=1, cmap="gray", interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=8, pad=3)


def _grey(picture: np.ndarray) -> np.ndarray:
    """Return the brightness (H, W), without its darkest part, so that colours over it stay what they are."""
    return GREY + (1 - GREY) * (picture @ np.array([0.299, 0.587, 0.114]))


def _lay_over(axes: Axes, one: np.ndarray, norm: Normalize, colours: Colormap, area: Area, shape) -> None:
    height, width = shape[:2]
    left, top, right, bottom = area
    # Edges of a pixel lie half a pixel before and behind its number.
    extent = (left * width - 0.5, right * width - 0.5, bottom * height - 0.5, top * height - 0.5)
    axes.imshow(one, norm=norm, cmap=colours, alpha=OPACITY, extent=extent, interpolation="nearest")
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _mark(axes: Axes, mark: Mark, shape) -> None:
    height, width = shape[:2]
    x, y = mark.x * width - 0.5, mark.y * height - 0.5
    if not mark.width:
        axes.plot(x, y, "D", color="white", markeredgecolor="black", markersize=5, clip_on=False, zorder=5)
        return
    for color, line in (("black", 2.6), ("white", 1.2)):
        axes.add_patch(Rectangle((x, y), mark.width * width, mark.height * height, fill=False, edgecolor=color,
                                 linewidth=line, zorder=5, clip_on=False))


def _colour_bar(figure: Figure, panels: list[Axes], norms: list[Normalize], colours: Colormap, unit: str,
                cut: bool) -> None:
    signed = norms[0].vmin < 0
    # The colours as they look over a medium grey.
    seen = OPACITY * colours(np.linspace(0, 1, 256))[:, :3] + (1 - OPACITY) * (GREY + 1) / 2
    extend = {(True, True): "both", (True, False): "max"}.get((cut, signed), "neither")
    norm = norms[0] if len(norms) == 1 else Normalize(-1 if signed else 0, 1)
    bar = figure.colorbar(ScalarMappable(norm, ListedColormap(seen)), ax=panels, fraction=0.05, aspect=25, pad=0.02,
                          extend=extend)
    if len(norms) == 1:
        bar.locator = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])
        bar.formatter.set_powerlimits((-2, 3))
        bar.update_ticks()
        bar.set_label(unit, fontsize=8)
    else:
        bar.set_ticks([-1, 0, 1] if signed else [0, 1], labels=_ends(norms, signed))
    bar.ax.tick_params(labelsize=7)
    bar.ax.yaxis.get_offset_text().set_fontsize(7)


def _ends(norms: list[Normalize], signed: bool) -> list[str]:
    """Return what stands at the colour bar that several maps share."""
    if signed:
        return ["−largest\n|value|\nof each", "0", "largest\n|value|\nof each"]
    return ["smallest\nof each" if norms[0].vmin else "0", "largest\nof each"]


def _legend(figure: Figure, axes: Axes, marks: Sequence[Mark]) -> None:
    if not marks:
        return
    handles = [axes.plot([], [], "s" if mark.width else "D", linestyle="none", markersize=6, color="white",
                         markeredgecolor="black")[0] for mark in marks]
    figure.legend(handles, [mark.text for mark in marks], loc="outside lower center", ncols=len(marks), fontsize=8,
                  frameon=False, borderpad=0, handletextpad=0.3)


def _in_words(one: np.ndarray, signed: bool, short: bool = False) -> str:
    size = np.abs(one)
    total = size.sum()
    if not total:
        return "it is 0 everywhere"
    row, column = np.unravel_index(size.argmax(), one.shape)
    rows, columns = one.shape
    at = f"largest{' in size' if signed else ''}, {one[row, column]:.2g}, in row {row}, column {column}"
    if short:
        return at
    falling = np.sort(size.ravel())[::-1].cumsum()
    half = int(np.searchsorted(falling, total / 2)) + 1
    below = f"; {(one < 0).mean():.0%} of the values are below 0" if signed else ""
    return f"It is {at} of {rows} x {columns}; half of the total lies in {half} of {one.size} places{below}"
