"""`vimlearn explain`: maps of what a Vim looks at, drawn over images, with their numbers and a text for each."""

__all__ = ["ExplainOptions", "report"]

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from .cli_network import NetworkOptions, Trained, check_ranges, load_trained, pick_device
from .errors import VimlearnError
from .files import check_folder, write_aside, write_text


@dataclass(frozen=True, kw_only=True)
class ExplainOptions(NetworkOptions):
    """Options of `vimlearn explain`."""

    images: tyro.conf.Positional[tuple[str, ...]]
    """Image files: JPEG, PNG or another format of Pillow."""
    output: str
    """Folder for the results, made where it is missing. For each image IMAGE_METHOD_QUESTION.png with the map over the
    image, .npy with its numbers, and .json with class, probability and alt text."""
    method: str = "hidden"
    """How the map is made. hidden: what each patch adds to the query in one layer. rollout: what flows to the query
    through all layers. attribution: what of it speaks for a class. delta: how strongly each patch is written into the
    states. grad-cam: what behind one layer speaks for a class. input-gradient, integrated-gradients: pixels and the
    logit of a class. receptive-field: pixels and the query."""
    layer: int | Literal["all"] | None = None
    """Number of the layer from 0, negative from the end; or all. None: the last one, for grad-cam the one before."""
    query: str | None = None
    """Token that is asked about: ROW,COLUMN of a patch from 0, class, or its number in the sequence. None: the class
    token; for receptive-field the patch in the middle."""
    direction: Literal["both", "forward", "backward"] | None = None
    """Which of the two scans: for hidden their sum, for delta their mean. None: both."""
    target: str | None = None
    """Class that is asked about: its number from 0, its name, or top. None: top, the likeliest one."""
    size_mismatch: Literal["resize", "error"] = "resize"
    """What happens to an image that is not of the network's size. resize: it goes through the evaluation transform, and
    a notice says so. error: the command stops; images of the right size are taken as they are."""
    crop_pct: float | None = None
    """Images are resized to img_size / crop_pct and their centre is cut out. None: as the checkpoint was trained, or
    0.875."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute. auto: the GPU if there is one."""


def report(options: ExplainOptions) -> Iterator[str]:
    """Explain the images one after the other and yield the lines to print. Raises VimlearnError on all that does not
    fit.
    """
    from tqdm import tqdm

    from .explain.photos import open_image
    from .explain.records import check_layers

    if not options.images:
        raise VimlearnError("no image is named; expected vimlearn explain IMAGE ... --output FOLDER")
    check_ranges(options, "layer")
    trained = load_trained(options)
    check_layers(trained.network, None)
    colours = trained.network.patch_embed.in_chans
    if colours != 3:
        raise VimlearnError(f"the network is built for images of {colours} colours; expected one for 3, trained on "
                            "image files")
    trained.network.to(pick_device(options.device))
    chosen = _chosen(options, trained)
    names = _names(options)
    check_folder(Path(options.output))
    yield trained.origin
    for path, name in zip(tqdm(options.images, unit="image", leave=False, disable=None), names, strict=True):
        yield from _explain_one(path, open_image(path), Path(options.output) / name, options, trained, chosen)


def _explain_one(path, image, stem: Path, options, trained: Trained, chosen: dict) -> Iterator[str]:
    """Write the files of one image and yield what to say of it."""
    import numpy as np
    import torch

    from .classes import in_words
    from .explain import draw_method, explain
    from .explain.photos import look_at

    network, method = trained.network, options.method
    try:
        seen = look_at(image, network.patch_embed.img_size, options.crop_pct or trained.crop_pct, options.size_mismatch)
    except VimlearnError as error:
        raise VimlearnError(f"{path}: {error}") from None
    pixels = seen.pixels[None].to(next(network.parameters()).device)
    with torch.no_grad():
        top = network(pixels).softmax(1)[0]
    # (rows, columns) or (H, W), with all layers in front
    maps = explain(network, pixels, method, **chosen).select(-3, 0).float().cpu()
    number = chosen.get("target", "top")
    number = top.argmax().item() if number == "top" else number
    name = str(number) if trained.classes is None else in_words(trained.classes)[number]
    figure = draw_method(network, seen.image, maps, method, layer=chosen.get("layer"), query=chosen.get("query"),
                         direction=chosen.get("direction"),
                         about=f"image {Path(path).name}, class {name} ({top[number].item():.0%})")
    facts = {"image": str(path), "method": method, **chosen, "class": name, "class_number": number,
             "probability": round(top[number].item(), 6), "shape": list(maps.shape), "notice": seen.notice,
             "alt": figure.get_label(), "weights": trained.origin}
    _write(stem, figure, maps.numpy().astype(np.float32), facts)
    yield f"{path}: {name}, {top[number].item():.1%}; written to {stem}.png, .npy and .json"
    if seen.notice:
        yield f"  {seen.notice}"
    if not maps.any():
        yield "  the map is 0 everywhere: nothing in it bears on the question" + (
            "; ask for an earlier layer" if "layer" in chosen else "")


def _write(stem: Path, figure, maps, facts: dict) -> None:
    import numpy as np

    def array(aside: Path) -> None:
        with aside.open("wb") as file:
            np.save(file, maps)

    about = {"Description": facts["alt"]}
    write_aside(_with(stem, ".npy"), array)
    write_aside(_with(stem, ".png"), lambda aside: figure.savefig(aside, format="png", dpi="figure", metadata=about))
    write_text(_with(stem, ".json"), json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def _with(stem: Path, ending: str) -> Path:
    # Not `with_suffix`: the name of an image may have points in it.
    return stem.with_name(stem.name + ending)


def _chosen(options: ExplainOptions, trained: Trained) -> dict:
    """Return the options of the method that were given, as `explain` takes them; refuse the others before any work."""
    from .classes import class_number
    from .explain.methods import check_options

    given = {"layer": options.layer, "query": _query(options.query), "target": options.target,
             "direction": options.direction}
    given = {name: value for name, value in given.items() if value is not None}
    check_options(trained.network, options.method, given)
    if given.get("target", "top") != "top":
        given["target"] = class_number(given["target"], trained.classes, trained.network.num_classes)
    return given


def _query(text: str | None) -> int | str | tuple[int, int] | None:
    """Return what stands in `text`: a number, (row, column), or the word itself."""
    numbers = [] if text is None else text.split(",")
    if not numbers or not all(number.strip().removeprefix("-").isdigit() for number in numbers) or len(numbers) > 2:
        return text
    return int(numbers[0]) if len(numbers) == 1 else (int(numbers[0]), int(numbers[1]))


def _names(options: ExplainOptions) -> list[str]:
    """Return a name for the files of each image: its own, with a number where an earlier one has it already, and what
    was asked, so that another question does not write over the answer.
    """
    asked = [f"{name}-{getattr(options, name)}" for name in ("layer", "query", "direction", "target")
             if getattr(options, name) is not None]
    ending = re.sub(r"[^\w+-]", "-", "_".join([options.method, *asked]))
    names = []
    for path in options.images:
        stem, number = Path(path).stem, 1
        while f"{stem}_{ending}" in names:
            number += 1
            stem = f"{Path(path).stem}_{number}"
        names.append(f"{stem}_{ending}")
    return names
