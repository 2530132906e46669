"""Images from where users have them: folders, tar shards, Hugging Face datasets, and the sets built in.

    digits          scikit-learn's handwritten digits, in memory
    scenes          scenes of drawn shapes, 64 pixels, by the class of the main shape
    PATH            a tree train/CLASS/IMAGE and val/CLASS/IMAGE, as ImageNet-1K is laid out
    wds:PATH        tar shards (WebDataset) with their _info.json
    hf:NAME         a Hugging Face dataset with a column of images and a column of classes

The readers are timm's, but for shards (shards.py). What is checked before a run starts is checked here, and said in one
line.
"""

__all__ = ["Images", "Shards", "Source", "open_source"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from timm.data.readers import create_reader
from timm.data.readers.img_extensions import get_img_extensions
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.utils.misc import natural_key

from .classes import as_wnids
from .data import DATASETS, ImageSet, load_dataset
from .errors import VimlearnError, nearest
from .scenes import CLASSES, PARTS, SceneReader
from .shards import Shards, describe_shards

SCENES = "scenes"
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
                decoded = image.convert("RGB")
        except Exception as error:  # whatever a decoder stumbles over in bytes that a stranger wrote
            raise Unreadable(f"{self.name(i)}: {' '.join(str(error).split())[:200]}") from error
        if self.numbers is None:
            return decoded, int(label)
        if not 0 <= label < len(self.numbers):
            raise VimlearnError(f"{self.name(i)} has label {label}; expected 0 to {len(self.numbers) - 1}")
        return decoded, self.numbers[label]

    def name(self, i: int) -> str:
        """Return what image i is called: its file."""
        try:
            return str(self.reader.filename(i, absolute=True))
        except (TypeError, KeyError, AttributeError):
            return f"image {i}"


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
    elif name == SCENES:
        source = _source(f"{name}: ", [Images(SceneReader(*part), CLASSES) for part in PARTS[-len(parts):]])
    elif Path(name).is_dir():
        source = _open_folders(Path(name), parts)
    else:
        built_in = (*DATASETS, SCENES)
        raise VimlearnError(f"unknown dataset {name!r}{nearest(name, built_in)}, and there is no such folder"
                            f"{_fetch_hint(name)}; expected {', '.join(built_in)}, the path of a folder with train/ "
                            "and val/, wds:PATH or hf:NAME")
    if num_classes is not None and len(source.classes) != num_classes:
        raise VimlearnError(f"{name} has {len(source.classes)} classes and num_classes is {num_classes}; "
                            "choose the data that the recipe is for, or another --num-classes")
    return source


def _fetch_hint(name: str) -> str:
    # It brings the parser of the command line, which training from Python does without.
    from .fetch import SETS
    known = Path(name).name
    return f" (`vimlearn fetch {known}` makes datasets/{known})" if known in SETS else ""


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
    # timm's order; where that has ties, such as a and A, by name.
    classes.sort(key=natural_key)
    parts = [Images(_folder_reader(folder, classes), tuple(classes)) for folder in folders]
    if len(classes) != 1000 or classes[0] != "n01440764":
        return _source(f"{root}: ", parts)
    whole = IMAGENET_IMAGES[-len(parts):]
    notes = () if tuple(map(len, parts)) == whole else (
        f"the whole ImageNet-1K has {' and '.join(f'{count:,}' for count in whole)} images",)
    return _source(f"{root}: ImageNet-1K, ", parts, notes)


def _folder_reader(folder: Path, classes: list[str]) -> ReaderImageFolder:
    """Return a reader of folder/CLASS/IMAGE, its labels the positions in `classes`."""
    try:
        reader = ReaderImageFolder(str(folder))
    except RuntimeError:
        # No image at all
        found = set()
    else:
        found = set(reader.class_to_idx)
    for name in sorted(found - set(classes)):
        raise VimlearnError(f"{folder} has images in a folder {name!r} below those of the classes, or in none; "
                            f"expected {folder}/CLASS/IMAGE alone")
    for name in sorted(set(classes) - found):
        raise VimlearnError(f"{folder / name} holds no image; expected at least one file ending in "
                            f"{', '.join(get_img_extensions())}, or remove the class from both parts")
    order = {name: i for i, name in enumerate(classes)}
    return reader if reader.class_to_idx == order else ReaderImageFolder(str(folder), class_map=order)


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
    root = Path(path)
    found = describe_shards(root)
    if num_classes is None:
        raise VimlearnError("tar shards do not say how many classes they hold; pass --num-classes")
    names = [_split_name(found, names, root) for names in wanted]
    for name in names:
        gone = [file for file, _ in found[name] if not (root / file).is_file()]
        if gone:
            raise VimlearnError(f"{len(gone)} of {len(found[name])} shards of {name} are missing, such as "
                                f"{root / gone[0]}; fetch them again")
    classes = tuple(str(i) for i in range(num_classes))
    return _source(f"{root}: tar shards, ", [Shards(str(root), found[name], classes) for name in names])


def _open_hub(name: str, num_classes: int | None, wanted: Parts) -> Source:
    try:
        import datasets

        # A folder called datasets, where `vimlearn fetch` puts images, would pass for an empty package.
        from datasets import load_dataset_builder
    except ImportError as error:
        raise VimlearnError("Hugging Face datasets need the package datasets: pip install datasets") from error
    try:
        builder = load_dataset_builder(name)
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
