"""One register of the methods: a name, and a map on the grid of patches or on the pixels, all with one signature.

| method                 | a number for each | says                                                         | signed |
|------------------------|-------------------|--------------------------------------------------------------|--------|
| `hidden`               | patch             | what it adds to the query in one layer                       | yes    |
| `rollout`              | patch             | what flows from it to the query through all layers           |        |
| `attribution`          | patch             | what flows of it through all layers and speaks for a class   |        |
| `delta`                | patch             | how strongly it is written into the states of one layer      |        |
| `input-gradient`       | pixel             | how much the logit of a class hangs on it                    |        |
| `integrated-gradients` | pixel             | what it adds to the logit, from the mean colour on           | yes    |
| `grad-cam`             | patch             | what behind one layer speaks for a class                     |        |
| `receptive-field`      | pixel             | how much the query behind one layer hangs on it              |        |
"""

__all__ = ["METHODS", "OPTIONS", "Method", "check_options", "default_layer", "explain"]

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import VimlearnError, nearest
from ..vim import VisionMamba
from .attention import attribution, delta_maps_of_layers, hidden_attentions, on_grid, rollout
from .field import receptive_fields
from .gradients import grad_cam, input_gradient, integrated_gradients
from .records import Query, check_layers, query_token

OPTIONS = ("layer", "query", "target", "direction")


@dataclass(frozen=True)
class Method:
    """A way to make maps.

    title: its name in words. unit: what a value of the map is. run: (model, images, **options) -> (b, rows, columns) or
    (b, H, W); with the option `layer` it takes `layers`, a list, and puts them in front. options: those of OPTIONS that
    it takes. signed: whether values below 0 have a meaning. from_zero: whether 0 means nothing, so that colours begin
    there. of_pixels: whether the map has the size of the image.
    """

    title: str
    unit: str
    run: Callable[..., Tensor]
    options: tuple[str, ...]
    signed: bool = False
    from_zero: bool = True
    of_pixels: bool = False


def explain(model: VisionMamba, images: Tensor, method: str = "hidden", *, layer: int | str | None = None,
            query: Query = None, target: Tensor | int | str | None = None, direction: str | None = None) -> Tensor:
    """Return the map of each image by one of METHODS: (b, rows, columns) of patches, or (b, H, W) of pixels.

    Arguments
        images: (b, in_chans, H, W), as the network takes them.
        layer: number of the block from 0, negative from the end; "all" puts an axis of all layers in front. None: the
            last one, and for grad-cam the one before, because behind the last only the class token reaches the head.
        query: the token that is asked about: its number, (row, column) of a patch, or "class". None: the class token;
            for receptive-field the patch in the middle.
        target: class that is asked about: a number, one for each image (b,), or "top", the likeliest (None as well).
        direction: "forward", "backward" or "both" (None as well).

    Raises VimlearnError where the method is unknown, does not take an option, or the option does not fit the model.
    """
    values = (layer, query, target, direction)
    given = {name: value for name, value in zip(OPTIONS, values, strict=True) if value is not None}
    check_options(model, method, given)
    run = METHODS[method].run
    if "layer" not in METHODS[method].options:
        return run(model, images, **given)
    given.pop("layer", None)
    maps = run(model, images, _layers(model, default_layer(model, method) if layer is None else layer), **given)
    return maps if layer == "all" else maps[0]


def check_options(model: VisionMamba, method: str, given: Mapping[str, object]) -> None:
    """Raise VimlearnError unless the model is a Vim and the method is known and takes the options that are given.

    A layer and a query must exist; what a direction and a target can be shows in the run.
    """
    check_layers(model, None)
    if method not in METHODS:
        raise VimlearnError(f"unknown method {method!r}{nearest(str(method), METHODS)}; expected one of "
                            f"{', '.join(METHODS)}")
    known = METHODS[method].options
    strange = [name for name in given if name not in known]
    if strange:
        raise VimlearnError(f"{method} takes no {strange[0]}; it takes {', '.join(known)}")
    if "layer" in given:
        _layers(model, given["layer"])
    if "query" in given:
        query_token(model, given["query"])


def default_layer(model: VisionMamba, method: str) -> int:
    """Return the layer that a method takes where none is named."""
    depth = len(check_layers(model, None))
    behind_the_last_is_nothing = method == "grad-cam" and model.global_pool == "token" and depth > 1
    return depth - 2 if behind_the_last_is_nothing else depth - 1


def _layers(model: VisionMamba, layer: int | str) -> list[int]:
    if isinstance(layer, str) and layer != "all":
        raise VimlearnError(f"unknown layer {layer!r}; expected a number, or 'all'")
    return check_layers(model, None if layer == "all" else [layer])


def _hidden(model, images, layers, **options):
    return on_grid(model, hidden_attentions(model, images, layers, **options))


def _delta(model, images, layers, **options):
    return on_grid(model, delta_maps_of_layers(model, images, layers, **options))


def _rollout(model, images, **options):
    return on_grid(model, rollout(model, images, **options))


def _attribution(model, images, **options):
    return on_grid(model, attribution(model, images, **options))


def _grad_cam(model, images, layers, **options):
    return torch.stack([grad_cam(model, images, layer, **options) for layer in layers])


def _receptive_field(model, images, layers, query=None):
    return torch.stack([receptive_fields(model, images, layer, query) for layer in layers])


METHODS = {
    "hidden": Method("hidden attention", "mean matrix entry", _hidden, ("layer", "query", "direction"), signed=True),
    "rollout": Method("rollout of hidden attention", "share", _rollout, ("query",)),
    "attribution": Method("attribution", "gradient × matrix × input", _attribution, ("query", "target")),
    "delta": Method("delta map", "mean step", _delta, ("layer", "direction"), from_zero=False),
    "input-gradient": Method("input gradient", "|d logit / d pixel|", input_gradient, ("target",), of_pixels=True),
    "integrated-gradients": Method("integrated gradients", "part of the logit", integrated_gradients, ("target",),
                                   signed=True, of_pixels=True),
    "grad-cam": Method("Grad-CAM", "weighted channels", _grad_cam, ("layer", "target")),
    "receptive-field": Method("receptive field", "|d token / d pixel|", _receptive_field, ("layer", "query"),
                              of_pixels=True),
}
