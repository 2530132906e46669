"""The options by which a command is told which trained network to take, and what brings that network."""

__all__ = ["NetworkOptions", "Trained", "check_ranges", "load_trained", "pick_device"]

from dataclasses import dataclass, fields
from pathlib import Path

from .errors import VimlearnError, nearest

# Crop of the published evaluation, where a file does not say its own.
CROP_PCT = 0.875


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Options of every command that takes a trained network."""

    checkpoint: str | None = None
    """Weights of a run with their settings, as `vimlearn train` writes them: FOLDER/model.safetensors, or
    FOLDER/ema.safetensors for the moving average. None, and no model either: the network that comes along."""
    model: str | None = None
    """Instead of a checkpoint: name of a released network, such as vim_tiny_patch16_224."""
    weights: str | None = None
    """Weights for the model: a file, a URL, hub:OWNER/NAME or hub:OWNER/NAME/FILE. None: those published for it."""
    ema: bool = False
    """Whether to take the averaged weights out of a published file, which holds both."""
    num_classes: int | None = None
    """Classes of the model, a count, where they are not 1000."""
    img_size: int | None = None
    """Side of the square that the network sees, pixels; positions are resized. None: as the network was built."""


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


def check_ranges(options, *free: str) -> None:
    """Raise VimlearnError where a number is one that its option cannot be; options named in `free` may be any."""
    from .training.options import check_range

    for option in fields(options):
        value = getattr(options, option.name)
        if type(value) in (int, float) and option.name not in free:
            check_range(option.name, value)


def load_trained(options: NetworkOptions) -> Trained:
    """Return the network that `checkpoint`, or `model`, `weights`, `ema` and `num_classes` name, at `img_size`.

    Raises VimlearnError where the options do not fit together, or the file does not fit the network.
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
