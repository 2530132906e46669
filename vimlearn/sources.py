"""Images from where users have them: folders, tar shards, Hugging Face datasets, and the set built in.

    digits          scikit-learn's handwritten digits, in memory
    PATH            a tree train/CLASS/IMAGE and val/CLASS/IMAGE, as ImageNet-1K is laid out
    wds:PATH        tar shards (WebDataset) with their _info.json
    hf:NAME         a Hugging Face dataset with a column of images and a column of classes

The readers are timm's. What is checked before a run starts is checked here, and said in one line.
"""

__all__ = ["Images", "Shards", "Source", "open_source"]

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from timm.data import IterableImageDataset
from timm.data.readers import create_reader
from timm.data.readers.img_extensions import get_img_extensions
from torch.utils.data import IterableDataset

from .classes import as_wnids
from .data import DATASETS, ImageSet, load_dataset
from .errors import VimlearnError, nearest

IMAGENET_IMAGES = (1_281_167, 50_000)
HELDOUT_NAMES = ("val", "validation", "valid", "test")
# What the parts of a set may be called.
Parts = tuple[tuple[str, ...], ...]
BOTH_PARTS: Parts = (("train",), HELDOUT_NAMES)
HELDOUT_PART: Parts = (HELDOUT_NAMES,)


class Unreadable(Exception):
    """An image that cannot be decoded. Its text names it and says why."""


@dataclass(frozen=True)
class Images:
    """Labelled images that are decoded when asked for; images[i] is (a PIL image in RGB, label).

    reader: timm's. classes: the names, in order. numbers: for each label of the reader, its position in `classes`; None
    where they are the same.
    """

    reader: object
    classes: tuple[str, ...]
    numbers: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        """Return image i and its label. Raises Unreadable where the file is damaged or gone."""
        try:
            file, label = self.reader[i]
            with file, Image.open(file) as image:
                return image.convert("RGB"), int(label) if self.numbers is None else self.numbers[label]
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise Unreadable(f"{self.name(i)}: {' '.join(str(error).split())[:200]}") from error

    def name(self, i: int) -> str:
        """Return what image i is called: its file."""
        try:
            return str(self.reader.filename(i, absolute=True))
        except (TypeError, KeyError, AttributeError):
            return f"image {i}"


@dataclass(frozen=True)
class Shards:
    """Tar shards, read one after the other. root: their folder. split: as _info.json calls it. count: images."""

    root: str
    split: str
    count: int
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return self.count

    def shuffled(self, seed: int, batch_size: int, workers: int) -> IterableDataset:
        """Return the (image, label) of one epoch of training, in an order drawn from `seed`, dealt to all processes and
        their workers; at least as many as there are, filled up to whole batches.
        """
        dataset = self._open(is_training=True, batch_size=batch_size, seed=seed % 2**31)
        dataset.set_epoch(0)
        dataset.set_loader_cfg(num_workers=workers)
        return dataset

    def share(self, rank: int, processes: int) -> IterableDataset:
        """Return the (image, label) of every `processes`-th shard, each image once, in the order they lie in."""
        dataset = self._open()
        reader = dataset.reader
        reader.split_info = replace(reader.split_info, filenames=reader.split_info.filenames[rank::processes])
        # Dealt above: shard by shard, so that none is read twice or cut off.
        reader.dist_rank, reader.dist_num_replicas = 0, 1
        return dataset

    def _open(self, **settings) -> IterableImageDataset:
        return IterableImageDataset(self.root, reader="wds/", split=self.split, input_key=SHARD_KEYS, **settings)


SHARD_KEYS = "jpg;jpeg;png;webp"


@dataclass(frozen=True)
class Source:
    """A set of images, opened: its two parts, the names of its classes, and what it is, in words.

    training is None where only the held-out part was asked for.
    """

    training: ImageSet | Images | Shards | None
    heldout: ImageSet | Images | Shards
    classes: tuple[str, ...]
    description: str
    notes: tuple[str, ...] = field(default=())

    @property
    def is_stream(self) -> bool:
        """Whether the images come one after the other and cannot be asked for by number."""
        return isinstance(self.heldout, Shards)

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) of images in memory; None where they are decoded and may differ in size."""
        return tuple(self.heldout.images.shape[-2:]) if isinstance(self.heldout, ImageSet) else None

    @property
    def in_chans(self) -> int:
        """Colours of an image, a count."""
        return self.heldout.images.shape[1] if isinstance(self.heldout, ImageSet) else 3


def open_source(name: str, num_classes: int | None = None, heldout_only: bool = False) -> Source:
    """Open the set of images called `name`, as above, and check it.

    Arguments
        num_classes: how many classes it must have; shards need it, since they do not say.
        heldout_only: open the held-out part alone. The other one need not be there.

    Raises VimlearnError where there is no such set, where a part is missing, where a class folder is empty or stands in
    one part only, or where the number of classes differs.
    """
    kind, _, rest = name.partition(":")
    parts = HELDOUT_PART if heldout_only else BOTH_PARTS
    if kind in READERS and rest:
        source = READERS[kind](rest, num_classes, parts)
    elif name in DATASETS:
        source = _source(f"{name}: ", load_dataset(name)[-len(parts):])
    elif Path(name).is_dir():
        source = _open_folders(Path(name), parts)
    else:
        raise VimlearnError(f"unknown dataset {name!r}{nearest(name, DATASETS)}, and there is no such folder; expected "
                            f"{', '.join(DATASETS)}, the path of a folder with train/ and val/, wds:PATH or hf:NAME")
    if num_classes is not None and len(source.classes) != num_classes:
        raise VimlearnError(f"{name} has {len(source.classes)} classes and num_classes is {num_classes}; "
                            "choose the data that the recipe is for, or another --num-classes")
    return source


def _source(what: str, parts: Sequence, notes: tuple[str, ...] = ()) -> Source:
    """Return the Source of both parts, or of the held-out part alone."""
    training, heldout = (None, *parts) if len(parts) == 1 else parts
    counts = f"{len(heldout):,} images held out" if training is None else \
        f"{len(training):,} images to train on, {len(heldout):,} held out"
    return Source(training, heldout, heldout.classes, f"{what}{counts}, {len(heldout.classes):,} classes", notes)


def _open_folders(root: Path, wanted: Parts) -> Source:
    folders = [_part(root, names) for names in wanted]
    classes, *others = map(_class_folders, folders)
    for other in others:
        alone = sorted(set(classes) ^ set(other))
        if alone:
            raise VimlearnError(f"{folders[0]} has {len(classes)} class folders and {folders[1]} has {len(other)}; "
                                f"{alone[0]} is in one of them only. Expected the same classes in both")
    parts = []
    for folder in folders:
        reader = create_reader("", root=str(folder))
        empty = sorted(set(classes) - set(reader.class_to_idx))
        if empty:
            raise VimlearnError(f"{folder / empty[0]} holds no image; expected at least one file ending in "
                                f"{', '.join(get_img_extensions())}, or remove the class from both parts")
        parts.append(Images(reader, tuple(sorted(reader.class_to_idx, key=reader.class_to_idx.get))))
    if len(classes) != 1000 or classes[0] != "n01440764":
        return _source(f"{root}: ", parts)
    whole = IMAGENET_IMAGES[-len(parts):]
    notes = () if tuple(map(len, parts)) == whole else (
        f"the whole ImageNet-1K has {' and '.join(f'{count:,}' for count in whole)} images",)
    return _source(f"{root}: ImageNet-1K, ", parts, notes)


def _part(root: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise VimlearnError(f"{root} has no folder {names[0]}; expected {root}/train/CLASS/IMAGE and "
                        f"{root}/val/CLASS/IMAGE (data/README.md has the layouts)")


def _class_folders(part: Path) -> list[str]:
    folders = sorted(entry.name for entry in part.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise VimlearnError(f"{part} has no class folders; expected {part}/CLASS/IMAGE"
                            + _flat_hint(part))
    return folders


def _flat_hint(part: Path) -> str:
    flat = next((entry for entry in part.iterdir() if entry.suffix.lower() in get_img_extensions(as_set=True)), None)
    return f"; {flat.name} lies there without a class (data/README.md says how to sort ImageNet's)" if flat else ""


def _open_shards(path: str, num_classes: int | None, wanted: Parts) -> Source:
    try:
        import webdataset  # noqa: F401
    except ImportError as error:
        raise VimlearnError("tar shards need the package webdataset: pip install webdataset") from error
    root = Path(path)
    info = next((root / name for name in ("_info.json", "info.json") if (root / name).is_file()), None)
    if info is None:
        raise VimlearnError(f"{root} has no _info.json; expected a folder of tar shards with one, such as the hub's "
                            "timm/imagenet-1k-wds (data/README.md has the layout)")
    if num_classes is None:
        raise VimlearnError("tar shards do not say how many classes they hold; pass --num-classes")
    try:
        splits = json.loads(info.read_text(encoding="utf-8"))["splits"]
        found = {name: (int(split["num_samples"]), list(split["filenames"])) for name, split in splits.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VimlearnError(f"{info} is no description of shards: {error}; expected splits with num_samples and "
                            "filenames") from error
    names = [_split_name(found, names, root) for names in wanted]
    for name in names:
        gone = [file for file in found[name][1] if not (root / file).is_file()]
        if gone:
            raise VimlearnError(f"{len(gone)} of {len(found[name][1])} shards of {name} are missing, such as "
                                f"{root / gone[0]}; fetch them again")
    classes = tuple(str(i) for i in range(num_classes))
    parts = [Shards(str(root), name, found[name][0], classes) for name in names]
    return _source(f"{root}: tar shards, ", parts)


def _open_hub(name: str, num_classes: int | None, wanted: Parts) -> Source:
    try:
        import datasets
    except ImportError as error:
        raise VimlearnError("Hugging Face datasets need the package datasets: pip install datasets") from error
    try:
        builder = datasets.load_dataset_builder(name)
        features = dict(builder.info.features or {})
        splits = list(builder.info.splits or datasets.get_dataset_split_names(name))
        if not features:
            features = dict(datasets.load_dataset(name, split=splits[0]).features)
        image = _column(name, features, datasets.Image)
        label = _column(name, features, datasets.ClassLabel)
        classes = as_wnids(features[label].names)
        parts = [Images(create_reader(f"hfds/{name}", split=_split_name(splits, names, name), input_key=image,
                                      target_key=label), classes) for names in wanted]
    except VimlearnError:
        raise
    except Exception as error:  # the library's own, and those of its HTTP library, which change with its version
        reason = " ".join(str(error).split())[:300]
        raise VimlearnError(f"cannot open the Hugging Face dataset {name}: {reason}") from error
    return _source(f"{name}: ", parts)


def _column(name: str, features: dict, kind: type) -> str:
    for column, feature in features.items():
        if isinstance(feature, kind):
            return column
    raise VimlearnError(f"{name} has no column of type {kind.__name__}; its columns are {', '.join(features)}")


def _split_name(splits, wanted: tuple[str, ...], where) -> str:
    for name in wanted:
        if name in splits:
            return name
    raise VimlearnError(f"{where} has no part called {wanted[0]}; it has {', '.join(splits) or 'none'}")


READERS: dict[str, Callable[[str, int | None, Parts], Source]] = {"wds": _open_shards, "hf": _open_hub}
