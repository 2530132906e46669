"""`vimlearn eval`: how well trained weights do on held-out images, and what exactly was measured."""

__all__ = ["EvalOptions", "accuracy_line", "report"]

from dataclasses import dataclass
from typing import Literal

from .cli_network import NetworkOptions, Trained, check_ranges, load_trained, pick_device
from .errors import VimlearnError

# Classes that a table on a screen can have, and unreadable images that are named.
LONGEST = 20


@dataclass(frozen=True, kw_only=True)
class EvalOptions(NetworkOptions):
    """Options of `vimlearn eval`."""

    dataset: str | None = None
    """The set of images, as for `vimlearn train`: digits, scenes, a folder, wds:FOLDER or hf:NAME. Its held-out part is
    used and the other one need not be there. None: the set that the checkpoint was trained on."""
    num_classes: int | None = None
    """Classes of the model, a count, where they are not 1000; and of tar shards, where they are not the network's."""
    crop_pct: float | None = None
    """Images are resized to img_size / crop_pct and their centre is cut out. None: as the checkpoint was trained, or
    0.875."""
    batch_size: int = 256
    """Images at a time, a count. It changes speed and memory, not results beyond rounding."""
    workers: int = 0
    """Processes that read images, a count. 0: they are read in turn with the computation."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute. auto: the GPU if there is one."""
    confusion: bool = False
    """Whether to print which class was taken for which as well, for 20 classes at most."""


def report(options: EvalOptions) -> list[str]:
    """Evaluate as the options say and return the lines to print. Raises VimlearnError on all that does not fit."""
    from .evaluate import evaluate, relabelled
    from .sources import open_source

    check_ranges(options)
    if options.model is not None and options.checkpoint is None and options.dataset is None:
        raise VimlearnError("--dataset is missing; expected a folder with val/CLASS/IMAGE, wds:FOLDER or hf:NAME")
    trained = load_trained(options)
    name = options.dataset or trained.notes.get("dataset", "digits")
    count = (options.num_classes or trained.network.num_classes) if name.startswith("wds:") else None
    source = open_source(name, count, heldout_only=True)
    data = source.heldout if trained.classes is None else relabelled(source.heldout, trained.classes)
    if options.confusion and len(data.classes) > LONGEST:
        raise VimlearnError(f"--confusion prints a table for at most {LONGEST} classes and there are "
                            f"{len(data.classes)}; leave it out")
    result = evaluate(trained.network.to(pick_device(options.device)), data, options.batch_size,
                      transform=_transform(options, trained, source), workers=options.workers)
    return [source.description, *source.notes, trained.origin, "", *_numbers(result), *_tables(result, options)]


def accuracy_line(result, what: str) -> str:
    """Return one line: the share of images that are right, what that is called, and the counts."""
    right = (result.predictions == result.labels).sum().item()
    return f"  {result.accuracy:8.2%}  {what} ({right} of {len(result.labels)} images)"


def _transform(options: EvalOptions, trained: Trained, source):
    """Return what turns a stored image into what the network sees, or None for images in memory."""
    from .training.transforms import evaluation_transform

    patches = trained.network.patch_embed
    if patches.proj.in_channels != source.in_chans:
        raise VimlearnError(f"the network is built for {patches.proj.in_channels} colours and the images have "
                            f"{source.in_chans}; expected images like those that it was trained on")
    if source.size is None:
        return evaluation_transform(min(patches.img_size), options.crop_pct or trained.crop_pct)
    if options.img_size not in (None, *source.size):
        raise VimlearnError(f"img_size is {options.img_size} and the images are {source.size[0]} x {source.size[1]} "
                            "pixels in memory; leave --img-size out")
    return None


def _numbers(result) -> list[str]:
    lines = [accuracy_line(result, "top-1 accuracy, held out"), f"  {result.topk_accuracy(5):8.2%}  top-5 accuracy",
             f"  {result.loss:8.4f}  cross-entropy, nats"]
    count = len(result.unreadable)
    if count:
        lines += ["", f"  {count} of {count + len(result.labels)} images could not be read and are not counted:"]
        lines += [f"    {line}" for line in result.unreadable[:LONGEST]]
        lines += [f"    and {count - LONGEST} more"] if count > LONGEST else []
    return lines


def _tables(result, options: EvalOptions) -> list[str]:
    images = result.confusion.sum(1)
    if (images > 0).sum() > LONGEST:
        return []
    lines = ["", *_class_table(result, len(result.classes) <= LONGEST)]
    return [*lines, "", *_confusion_table(result)] if options.confusion else lines


def _class_table(result, with_empty: bool) -> list[str]:
    """Return the rows: of the images of a class, how many were found; of what was named so, how much was right."""
    found, named = result.confusion.sum(1).tolist(), result.confusion.sum(0).tolist()
    right = result.confusion.diagonal().tolist()
    wide = max(5, *map(len, result.classes))
    rows = [f"  {'class':>{wide}}  images   right  recall  precision"]
    for name, images, calls, hits in zip(result.classes, found, named, right, strict=True):
        if images or with_empty:
            recall, precision = (f"{hits / count:.1%}" if count else "-" for count in (images, calls))
            rows.append(f"  {name:>{wide}}  {images:6}  {hits:6}  {recall:>6}  {precision:>9}")
    return rows


def _confusion_table(result) -> list[str]:
    wide = max(5, *map(len, result.classes)) + 1
    rows = ["  row: true class, column: predicted class",
            "  " + "".join(f"{name:>{wide}}" for name in ("", *result.classes))]
    for name, counts in zip(result.classes, result.confusion.tolist(), strict=True):
        rows.append("  " + "".join(f"{cell:>{wide}}" for cell in (name, *(count or "." for count in counts))))
    return rows
