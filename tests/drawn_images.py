"""Sets of images for the tests, drawn here and tiny, as a tree of files, tar shards or Parquet; and runs over them."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from vimlearn.training import Options
from vimlearn.training.options import GROUPS, known_options

CLASSES = ("ape", "bee", "cat")
# Every kind of draw that a run knows.
RANDOM = {"crop_scale": 0.3, "shift": 0, "flip": 0.5, "auto_augment": "rand-m9-mstd0.5-inc1", "erase": 0.5,
          "mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1, "drop_path_rate": 0.3, "ema": 0.9, "clip_grad": 1.0}
TIMINGS = ("seconds", "images_per_second")


def picture(label: int, number: int, size: int = 20) -> Image.Image:
    """Draw a bright stripe whose place tells the class, on a ground that tells the images of a class apart."""
    pixels = np.random.default_rng([label, number]).integers(0, 90, (size, size, 3), dtype=np.uint8)
    pixels[:, 4 * label:4 * label + 4, label % 3] += 150
    return Image.fromarray(pixels)


def make_tree(root: Path, training: int = 8, heldout: int = 3, classes=CLASSES) -> Path:
    """Write root/train/CLASS/NUMBER.png and root/val/CLASS/NUMBER.png, that many of each class; return root."""
    for part, count, first in (("train", training, 0), ("val", heldout, 1000)):
        for label, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                picture(label, first + number).save(folder / f"{number}.png")
    return root


def files_of(root: Path, part: str) -> list[tuple[Path, int]]:
    """Return (file, label) of a part of a tree, in order."""
    names = sorted(folder.name for folder in (root / part).iterdir())
    return [(path, label) for label, name in enumerate(names) for path in sorted((root / part / name).iterdir())]


def make_shards(root: Path, tree: Path, training: int = 4, heldout: int = 3) -> Path:
    """Write the images of a tree as that many tar shards a part, dealt in turn, with their _info.json; return root."""
    root.mkdir(parents=True)
    splits = {}
    for part, split, count in (("train", "train", training), ("val", "validation", heldout)):
        files = files_of(tree, part)
        names = [f"set-{split}-{i}.tar" for i in range(count)]
        for i, name in enumerate(names):
            with tarfile.open(root / name, "w") as tar:
                for path, label in files[i::count]:
                    add_to_tar(tar, f"{path.parent.name}-{path.stem}", path.read_bytes(), label)
        splits[split] = {"name": split, "filenames": names, "num_samples": len(files),
                         "shard_lengths": [len(files[i::count]) for i in range(count)]}
    (root / "_info.json").write_text(json.dumps({"splits": splits}))
    return root


def add_to_tar(tar: tarfile.TarFile, key: str, image: bytes, label: int) -> None:
    """Add one sample as WebDataset has it."""
    for ending, content in (("png", image), ("cls", str(label).encode())):
        member = tarfile.TarInfo(f"{key}.{ending}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))


def make_parquet(root: Path, tree: Path) -> Path:
    """Write the images of a tree as a folder of Parquet files that the package datasets opens; return root."""
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    (root / "data").mkdir(parents=True)
    for part, split in (("train", "train"), ("val", "validation")):
        files = files_of(tree, part)
        rows = {"image": [{"bytes": path.read_bytes(), "path": path.name} for path, _ in files],
                "label": [label for _, label in files]}
        datasets.Dataset.from_dict(rows, features).to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
    return root


def settings(dataset, **changes) -> dict:
    """Return the options of a run of a fraction of a second, by name; `changes` go over them."""
    return {"dataset": str(dataset), "img_size": 16, "batch_size": 8, "patch_size": 8, "stride": None, "embed_dim": 16,
            "depth": 2, "d_state": 2, "epochs": 2, "shift": 1, "output": None, "tensorboard": False, "device": "cpu",
            "quiet": True, **changes}


def options(dataset, **changes) -> Options:
    """Return them as Options."""
    given, homes = settings(dataset, **changes), known_options()
    return Options(**{name: group(**{key: value for key, value in given.items() if homes[key] == name})
                      for name, group in GROUPS.items()})


def command_line(dataset, **changes) -> list[str]:
    """Return them as arguments of `vimlearn`."""
    args = ["train"]
    for name, value in settings(dataset, **changes).items():
        flag = name.replace("_", "-")
        args += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return args


def plain(log: list[dict]) -> list[dict]:
    """Return the rows of a log without what the machine decides."""
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in log]
