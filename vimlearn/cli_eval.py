"""`vimlearn eval`: how well trained weights do on held-out images, and what exactly was measured."""

__all__ = ["EvalOptions", "Trained", "accuracy_line", "load_trained", "pick_device", "report"]

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from .errors import VimlearnError, nearest

# Classes that a table on a screen can have, and unreadable images that are named.
LONGEST = 20
# Crop of the published evaluation, where a file does not say its own.
CROP_PCT = 0.875


@dataclass(frozen=True)
class EvalOptions:
    """Options of `vimlearn eval`."""

    checkpoint: str | None = None
    """Weights of a run with their settings, as `vimlearn train` writes them: FOLDER/model.safetensors, or
    FOLDER/ema.safetensors for the moving average. None, and no model either: the network that comes along."""
    model: str | None = None
    """Instead of a checkpoint: name of a released network, such as vim_tiny_patch16_224."""
    weights: str | None = None
    """Weights for the model: a file, a URL, hub:OWNER/NAME or hub:OWNER/NAME/FILE. None: those published for it."""
    ema: bool = False
    """Whether to take the averaged weights out of a published file, which holds both."""
    dataset: str | None = None
    """The set of images, as for `vimlearn train`: digits, scenes, a folder, wds:FOLDER or hf:NAME. Its held-out part is
    used and the other one need not be there. None: the set that the checkpoint was trained on."""
    num_classes: int | None = None
    """Classes of the model, a count, where they are not 1000; and of tar shards, where they are not the network's."""
    img_size: int | None = None
    """Side of the square that the network sees, pixels; positions are resized. None: as the network was built."""
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


@dataclass(frozen=True)
class Trained:
    """A network in evaluation mode; where its weights come from, in words; what its file says of training."""

    network: object
    origin: str
    notes: dict[str, str]

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes in order; None where nobody says. A file that does not say with 1000 is ImageNet's."""
        from .classes import imagenet_wnids, stored_names

        count, names = self.network.num_classes, stored_names(self.notes)
        if names is None:
            return imagenet_wnids() if count == 1000 else None
        if len(names) != count:
            raise VimlearnError(f"the file names {len(names)} classes and its network tells {count} apart; expected a "
                                "file as vimlearn train writes it")
        return names

    @property
    def crop_pct(self) -> float:
        """Share of the resized image that the network was trained to see."""
        try:
            return float(self.notes.get("crop_pct", CROP_PCT))
        except ValueError:
            return CROP_PCT


def report(options: EvalOptions) -> list[str]:
    """Evaluate as the options say and return the lines to print. Raises VimlearnError on all that does not fit."""
    from .evaluate import evaluate, relabelled
    from .sources import open_source
    from .training.options import check_range

    for option in fields(options):
        value = getattr(options, option.name)
        if type(value) in (int, float):
            check_range(option.name, value)
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


def load_trained(options) -> Trained:
    """Return the network that `checkpoint`, or `model`, `weights`, `ema` and `num_classes` name, at `img_size`.

    `options` has these fields as EvalOptions has. Raises VimlearnError where they do not fit, or the file does not.
    """
    return _from_checkpoint(options) if _has_checkpoint(options) else _from_release(options)


def _has_checkpoint(options) -> bool:
    others = [f"--{name}" for name in ("model", "weights", "ema") if getattr(options, name)]
    if options.checkpoint is not None and others:
        raise VimlearnError(f"--checkpoint and {others[0]} are both given; expected --checkpoint alone, with "
                            "FOLDER/ema.safetensors for averaged weights, or --model and --weights")
    if options.model is None and (options.weights is not None or options.ema):
        raise VimlearnError("--weights and --ema go with --model NAME; a file of a run is named by --checkpoint FILE")
    return options.model is None


def _from_checkpoint(options) -> Trained:
    from .checkpoint import read_notes
    from .download import fetch
    from .shipped import DEFAULT, MARK
    from .training.networks import load_network

    source = options.checkpoint or DEFAULT
    path = fetch(source) if source.startswith(MARK) else Path(source)
    if not path.is_file():
        raise VimlearnError(f"there is no file {path}; expected the model.safetensors of a run, or {DEFAULT}")
    network, notes = load_network(path, options.img_size), read_notes(path)
    return Trained(network, _origin(notes.get("weights"), notes, source), notes)


def _from_release(options) -> Trained:
    import timm

    from .checkpoint import load_checkpoint, read_notes
    from .download import fetch
    from .registry import RELEASED, published_file

    if options.model not in RELEASED:
        raise VimlearnError(f"unknown model {options.model!r}{nearest(options.model, RELEASED)}; expected one of "
                            f"{', '.join(RELEASED)}")
    source = published_file(options.model, options.weights)
    path = fetch(source)
    size = {} if options.img_size is None else {"img_size": (options.img_size, options.img_size)}
    network = timm.create_model(options.model, num_classes=options.num_classes or 1000, **size)
    load_checkpoint(network, path, weights="ema" if options.ema else "model")
    notes = read_notes(path)
    # Of PyTorch's files only those of a training run know their epoch, and hold both kinds.
    kind = "ema" if options.ema else notes.get("weights", "raw" if "epoch" in notes else None)
    return Trained(network.eval(), _origin(kind, notes, source), notes)


def _origin(kind: str | None, notes: dict[str, str], source) -> str:
    """Say which weights these are."""
    words = {"raw": "raw weights", "ema": "averaged weights (EMA)"}.get(kind, "weights, not known whether averaged,")
    epoch = f"of epoch {notes['epoch']}" if "epoch" in notes else "of an unknown epoch"
    return f"{words} {epoch}, from {source}"


def pick_device(name: str):
    """Return the torch.device for "cpu", "cuda" or "auto". Raises VimlearnError where there is no GPU."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise VimlearnError("device is cuda and PyTorch sees no GPU; expected --device cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


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
