"""Every option of a training run, once: the command line, the YAML file and the argument of `train` are this dataclass.

A YAML file has the groups as its keys, and may leave out what stays at its default:

    recipe:
      lr: 1e-3
      epochs: 20

On the command line an option is `--lr 1e-3`, without its group; so no name may occur in two groups. The text under a
field is what `vimlearn train --help` prints.
"""

__all__ = ["GROUPS", "Data", "Network", "Options", "Recipe", "Run", "known_options", "read_yaml", "write_yaml"]

import dataclasses
import math
import os
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml

from ..errors import VimlearnError, nearest


@dataclass(frozen=True)
class Network:
    """The network. Image size, colours and classes come from the data."""

    model: str = "vim"
    """Name of the network: vim, a VisionMamba with the settings below."""
    patch_size: int = 4
    """Side of a patch, pixels."""
    stride: int | None = 2
    """Step from patch to patch, pixels. Less than a side lets patches overlap. None: the side."""
    embed_dim: int = 64
    """Width d: numbers a token."""
    depth: int = 2
    """Blocks, a count."""
    d_state: int = 4
    """States n, a count for each inner channel."""
    class_token: Literal["middle", "first"] | None = "middle"
    """Where the class token stands. None: there is none."""
    global_pool: Literal["token", "avg"] = "token"
    """What the head reads: the class token, or the mean over the patches."""
    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm or LayerNorm."""
    bidirectional: bool = True
    """Whether each block also scans from the last token to the first."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block, probability; it grows linearly from 0 in the first."""
    backend: str = "auto"
    """How the scan is computed: auto, loop, parallel. It changes speed, not results beyond rounding."""


@dataclass(frozen=True)
class Data:
    """The images."""

    dataset: str = "digits"
    """Name of the set of images: digits, 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn."""
    batch_size: int = 32
    """Images a step, a count."""
    shift: int = 1
    """Each training image is moved by up to this many pixels in each direction, anew each time. 0: never."""


@dataclass(frozen=True)
class Recipe:
    """How the network learns: AdamW, a learning rate that warms up linearly and then falls along a cosine."""

    epochs: int = 40
    """Passes over the training images, a count."""
    lr: float = 5e-3
    """Learning rate after the warm-up, its highest value."""
    min_lr: float = 5e-5
    """Learning rate that the cosine ends at."""
    warmup_lr: float = 2.5e-4
    """Learning rate of the first epoch of the warm-up."""
    warmup_epochs: int = 1
    """Length of the warm-up, epochs."""
    weight_decay: float = 0.05
    """Decay of matrices, a share of the learning rate each step. Vectors, positions and class token do not decay."""
    smoothing: float = 0.0
    """Label smoothing: the share of the target that is spread over all classes, 0 to below 1."""
    clip_grad: float | None = None
    """Largest norm of the gradient; a longer one is scaled down to it. None: no limit."""


@dataclass(frozen=True)
class Run:
    """This one run: where, from which seed, on what."""

    output: str | None = "auto"
    """Folder for log, options and weights. auto: runs/NAME-1, or the next free number. None: nothing is written."""
    seed: int = 0
    """Seed of weights, order and augmentation. The same seed on the same machine gives the same log."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute. auto: the GPU if there is one."""
    threads: int | None = 1
    """Processor threads, a count. More suit larger images, and are slow on a busy machine. None: as PyTorch chooses."""
    quiet: bool = False
    """Whether to leave out the progress bar."""


@dataclass(frozen=True)
class Options:
    """All options of a training run, in groups. Raises VimlearnError on values that make no sense."""

    network: Network = field(default_factory=Network)
    data: Data = field(default_factory=Data)
    recipe: Recipe = field(default_factory=Recipe)
    run: Run = field(default_factory=Run)

    def __post_init__(self):
        _check_values(self)


GROUPS = {"network": Network, "data": Data, "recipe": Recipe, "run": Run}
# The lowest value that makes sense; the network checks its own settings.
AT_LEAST = {"batch_size": 1, "shift": 0, "epochs": 1, "min_lr": 0, "warmup_lr": 0, "warmup_epochs": 0,
            "weight_decay": 0, "smoothing": 0, "seed": 0, "threads": 1}
ABOVE_ZERO = ("lr", "clip_grad")
BELOW = {"smoothing": 1, "seed": 2**32}


def known_options() -> dict[str, str]:
    """Return the group of each option: `{"lr": "recipe", ...}`."""
    return {option.name: name for name, group in GROUPS.items() for option in dataclasses.fields(group)}


def read_yaml(path: str | os.PathLike) -> Options:
    """Return the options that a YAML file sets, and the defaults for all it leaves out.

    Raises VimlearnError where the file cannot be read, is no mapping of groups, has an unknown key (the nearest known
    one is named), or a value of the wrong type. It is read by the safe loader, which builds no Python objects.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise VimlearnError(f"cannot read {path}: {error.strerror}; expected a YAML file of options") from error
    except UnicodeDecodeError as error:
        raise VimlearnError(f"{path} is no text in UTF-8; expected a YAML file of options") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise VimlearnError(f"{path} is no plain YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise VimlearnError(f"{path} holds {_kind(content)}; expected a mapping with the keys {', '.join(GROUPS)}")
    return Options(**{name: _read_group(path, name, values) for name, values in content.items()})


def write_yaml(options: Options, path: str | os.PathLike) -> None:
    """Write all options, defaults included, so that `read_yaml` gives equal ones. Raises OSError."""
    Path(path).write_text(yaml.safe_dump(dataclasses.asdict(options), sort_keys=False), encoding="utf-8")


def _read_group(path, name, values):
    if name not in GROUPS:
        home = known_options().get(name)
        hint = f"; it belongs under '{home}:'" if home else nearest(str(name), GROUPS)
        raise VimlearnError(f"{path}: unknown key {name!r}{hint}; expected one of {', '.join(GROUPS)}")
    if not isinstance(values, dict):
        raise VimlearnError(f"{path}: {name} holds {_kind(values)}; expected a mapping of options")
    hints = typing.get_type_hints(GROUPS[name])
    for key in values:
        if key not in hints:
            home = known_options().get(key)
            hint = f"; it belongs under '{home}:'" if home else nearest(str(key), hints)
            raise VimlearnError(f"{path}: unknown key {key!r} under {name}{hint}; expected one of {', '.join(hints)}")
    return GROUPS[name](**{key: _fit(f"{path}: {name}.{key}", value, hints[key]) for key, value in values.items()})


def _fit(place: str, value, hint):
    """Return `value` as the type `hint` asks for, or raise VimlearnError."""
    choices = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for choice in choices:
        if typing.get_origin(choice) is Literal and isinstance(value, str) and value in typing.get_args(choice):
            return value
        if choice is float and type(value) in (int, float) and abs(value) < 1e300:
            return float(value)
        # YAML 1.1 reads 1e-3, without a point, as text.
        if choice is float and isinstance(value, str) and _is_number(value):
            return float(value)
        if type(value) is choice:
            return value
    names = ", ".join(", ".join(typing.get_args(c)) if typing.get_origin(c) is Literal else
                      "null" if c is type(None) else c.__name__ for c in choices)
    raise VimlearnError(f"{place} is {value!r}, {_kind(value)}; expected {names}")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _kind(value) -> str:
    names = {type(None): "nothing", str: "text", dict: "a mapping", list: "a list", bool: "true or false"}
    return names.get(type(value), f"one {type(value).__name__}")


def _check_values(options: Options) -> None:
    for group, form in GROUPS.items():
        settings = getattr(options, group)
        if type(settings) is not form:
            raise VimlearnError(f"{group} is {_kind(settings)}; expected {form.__name__}(...)")
        for name, hint in typing.get_type_hints(form).items():
            value = getattr(settings, name)
            if type(value) in (int, float):
                _check_range(name, value)
            if _fit(name, value, hint) != value:
                # Text that reads as a number is for YAML alone.
                raise VimlearnError(f"{name} is {value!r}, {_kind(value)}; expected a number")


def _check_range(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise VimlearnError(f"{name} is {value}; expected a finite number")
    if name in AT_LEAST and value < AT_LEAST[name]:
        raise VimlearnError(f"{name} is {value}; expected at least {AT_LEAST[name]}")
    if name in ABOVE_ZERO and value <= 0:
        raise VimlearnError(f"{name} is {value}; expected more than 0")
    if name in BELOW and value >= BELOW[name]:
        raise VimlearnError(f"{name} is {value}; expected less than {BELOW[name]}")
