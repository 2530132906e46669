"""Every option of a training run, once: the command line, the YAML file and the argument of `train` are this dataclass.

A YAML file has the groups as its keys, and may leave out what stays at its default:

    recipe:
      lr: 1e-3
      epochs: 20

On the command line an option is `--lr 1e-3`, without its group; so no name may occur in two groups. The text under a
field is what `vimlearn train --help` prints.
"""

__all__ = ["GROUPS", "Augment", "Data", "Network", "Options", "Recipe", "Run", "check_range", "find_recipe",
           "known_options", "read_yaml", "recipe_names", "write_yaml"]

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
    """Name of the network. vim: a VisionMamba with the settings below. deit: timm's VisionTransformer of that width
    and depth, with the class token first and heads of 64 channels (32 where the width is below 192)."""
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
    """How the scan is computed: auto, or the name of a backend. It changes speed, not results beyond rounding."""
    weights: str | None = None
    """Weights to start from: a file, a URL or hub:OWNER/NAME/FILE. Positions are resized, and a head for other classes
    is left fresh. None: fresh weights."""
    position_rule: Literal["grid", "published"] = "grid"
    """How positions of weights are resized. grid: each patch keeps its place. published: as the published trainer does,
    which takes the first patch for the class token."""


@dataclass(frozen=True)
class Data:
    """The images."""

    dataset: str = "digits"
    """The set of images. digits: 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn. scenes: drawn
    shapes, 64 x 64 pixels, built in. A folder: a tree train/CLASS/IMAGE and val/CLASS/IMAGE. wds:FOLDER: tar shards
    with their _info.json. hf:NAME: a Hugging Face dataset. data/README.md has the layouts."""
    num_classes: int | None = None
    """Classes that the set must have, a count; shards need it. None: as many as there are."""
    img_size: int | None = None
    """Side of the square that the network sees, pixels. None: as the images are stored, for digits."""
    batch_size: int = 32
    """Images a step, a count, over all processes and accumulated parts together."""
    workers: int = 0
    """Processes that read images, a count for each training process. 0: it reads them itself."""
    max_unreadable: int = 10
    """Unreadable images that are replaced by the next one, a count, before the run stops."""
    crop_pct: float = 1.0
    """Held-out images are resized to img_size / crop_pct and their centre is cut out. The paper: 0.875."""


@dataclass(frozen=True)
class Augment:
    """What is done at random to training images, anew each time."""

    shift: int = 1
    """Each training image is moved by up to this many pixels in each direction. 0: never."""
    crop_scale: float | None = None
    """A training image is a random part, resized: the smallest part, a share of the area. The paper: 0.08. None: the
    whole image."""
    flip: float = 0.0
    """Probability that a training image is mirrored left to right."""
    auto_augment: str | None = None
    """Random changes of colour and form, in timm's notation. The paper: rand-m9-mstd0.5-inc1. None: none."""
    erase: float = 0.0
    """Probability that a rectangle of a training image is filled with noise."""
    mixup: float = 0.0
    """Alpha of Mixup: how evenly two images are blended. 0: never."""
    cutmix: float = 0.0
    """Alpha of CutMix: how large a rectangle comes from the other image. 0: never. With both, each batch takes one."""
    repeats: int = 1
    """Times that an image occurs in an epoch, each time changed anew; so fewer images are seen. The paper: 3."""


@dataclass(frozen=True)
class Recipe:
    """How the network learns: AdamW, a learning rate that warms up linearly and then falls along a cosine."""

    epochs: int = 40
    """Passes over the training images, a count."""
    lr: float = 5e-3
    """Learning rate after the warm-up, its highest value."""
    lr_batch: int | None = None
    """Batch size that lr is meant for: lr is scaled by batch_size / lr_batch. None: lr is used as it is."""
    min_lr: float = 5e-5
    """Learning rate that the cosine ends at."""
    warmup_lr: float = 2.5e-4
    """Learning rate of the first epoch of the warm-up."""
    warmup_epochs: int = 1
    """Length of the warm-up, epochs."""
    schedule_delay: int = 0
    """Epochs by which the learning rate comes late. The published trainer is 1 late: epochs 1 and 2 share a rate."""
    weight_decay: float = 0.05
    """Decay of matrices, a share of the learning rate each step. Vectors, positions and class token do not decay."""
    smoothing: float = 0.0
    """Label smoothing: the share of the target that is spread over all classes, 0 to below 1."""
    clip_grad: float | None = None
    """Largest norm of the gradient; a longer one is scaled down to it. None: no limit."""
    ema: float | None = None
    """Decay of a moving average of the weights, kept beside them. The paper: 0.99996. None: there is none."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of matrix products and activations; weights and scan states stay in float32."""
    accumulate: int = 1
    """Parts that a batch is cut into, a count, to save memory. Mixup and stochastic depth are drawn for each part;
    otherwise it changes no result beyond rounding."""


@dataclass(frozen=True)
class Run:
    """This one run: where, from which seed, on what."""

    output: str | None = "auto"
    """Folder for log, options and weights. auto: runs/NAME-1, or the next free number. None: nothing is written."""
    resume: Literal["auto"] | None = None
    """Whether to go on with a run. auto: with the one in the folder, from its last good state, or start it; with output
    auto, the newest run of that name. None: a folder with a run in it is refused."""
    save_steps: int = 500
    """Steps after which the whole state is saved, a count; it is also saved after each epoch."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What to do where loss or gradient is not finite. stop: keep the batch in a file and end the run. skip: leave out
    the step and count it; after 100 in a row, stop."""
    seed: int = 0
    """Seed of weights, order and augmentation. The same seed on the same machine gives the same log."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute. auto: the GPU if there is one."""
    threads: int | None = 1
    """Processor threads, a count. More suit larger images, and are slow on a busy machine. None: as PyTorch chooses."""
    tensorboard: bool = True
    """Whether to write the curves for TensorBoard as well."""
    quiet: bool = False
    """Whether to leave out the progress bar."""


@dataclass(frozen=True)
class Options:
    """All options of a training run, in groups. Raises VimlearnError on values that make no sense."""

    network: Network = field(default_factory=Network)
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    recipe: Recipe = field(default_factory=Recipe)
    run: Run = field(default_factory=Run)

    def __post_init__(self):
        _check_values(self)


GROUPS = {"network": Network, "data": Data, "augment": Augment, "recipe": Recipe, "run": Run}
RECIPES = Path(__file__).with_name("recipes")
# The lowest value that makes sense; the network checks its own settings.
AT_LEAST = {"batch_size": 1, "num_classes": 1, "img_size": 1, "workers": 0, "max_unreadable": 0, "shift": 0, "flip": 0,
            "erase": 0, "mixup": 0, "cutmix": 0, "repeats": 1, "epochs": 1, "lr_batch": 1, "min_lr": 0, "warmup_lr": 0,
            "warmup_epochs": 0, "schedule_delay": 0, "weight_decay": 0, "smoothing": 0, "accumulate": 1,
            "save_steps": 1, "seed": 0, "threads": 1, "rounds": 0}
ABOVE_ZERO = ("lr", "clip_grad", "crop_scale", "crop_pct", "ema", "tolerance")
AT_MOST = {"crop_scale": 1, "crop_pct": 1, "flip": 1, "erase": 1}
BELOW = {"smoothing": 1, "ema": 1, "seed": 2**32}


def known_options() -> dict[str, str]:
    """Return the group of each option: `{"lr": "recipe", ...}`."""
    return {option.name: name for name, group in GROUPS.items() for option in dataclasses.fields(group)}


def recipe_names() -> list[str]:
    """Return the names of the YAML files that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """Return the file of a recipe that comes with the package, or `name` as a path. Raises VimlearnError on neither."""
    if name in recipe_names():
        return RECIPES / f"{name}.yaml"
    if not Path(name).suffix and not Path(name).exists():
        raise VimlearnError(f"unknown recipe {name!r}{nearest(name, recipe_names())}; expected a YAML file, or one of "
                            f"{', '.join(recipe_names())}")
    return Path(name)


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
                check_range(name, value)
            if _fit(name, value, hint) != value:
                # Text that reads as a number is for YAML alone.
                raise VimlearnError(f"{name} is {value!r}, {_kind(value)}; expected a number")


def check_range(name: str, value: float) -> None:
    """Raise VimlearnError where the value of an option is out of bounds."""
    if not math.isfinite(value):
        raise VimlearnError(f"{name} is {value}; expected a finite number")
    if name in AT_LEAST and value < AT_LEAST[name]:
        raise VimlearnError(f"{name} is {value}; expected at least {AT_LEAST[name]}")
    if name in ABOVE_ZERO and value <= 0:
        raise VimlearnError(f"{name} is {value}; expected more than 0")
    if name in AT_MOST and value > AT_MOST[name]:
        raise VimlearnError(f"{name} is {value}; expected at most {AT_MOST[name]}")
    if name in BELOW and value >= BELOW[name]:
        raise VimlearnError(f"{name} is {value}; expected less than {BELOW[name]}")
