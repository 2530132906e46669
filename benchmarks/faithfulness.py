"""Measure which maps of a Vim are true: deletion, insertion, overlap with known masks, and fresh weights.

    python benchmarks/faithfulness.py --cifar10 datasets/cifar10 --coco FOLDER

Writes benchmarks/faithfulness.csv after each method. Rows of a network and data that are measured again take the place
of the old ones; the others stay. Scenes need no data. Only images that the network gets right are taken.
"""

import argparse
import csv
from pathlib import Path

import torch
from tqdm import tqdm

import vimlearn
from vimlearn.benchmark import environment, write_rows
from vimlearn.benchmark.faithfulness import GRADIENT, all_maps, curves, fresh_weights, overlaps, row
from vimlearn.benchmark.masked_images import MaskedImages, coco_objects, folder_images, scene_images


class Table:
    """The rows of one network and set of images, beside all others in the file."""

    def __init__(self, path: Path, network: str, data: str):
        self.path, self.own = path, {"network": network, "data": data}
        before = list(csv.DictReader(path.open(newline=""))) if path.exists() else []
        self.rows = [old for old in before if any(old[key] != value for key, value in self.own.items())]
        where = environment("timm", "captum", "pillow")
        self.where = {key: where[key] for key in ("date", "versions")}
        self.gradient = {}

    def add(self, method: str, measure: str, values: torch.Tensor) -> None:
        """Add a row; those of the gradient come first."""
        if method == GRADIENT:
            self.gradient[measure] = values
        numbers = row(values, self.gradient[measure])
        self.rows.append({**self.own, "method": method, "measure": measure, **numbers, **self.where})

    def write(self) -> None:
        """Write all rows."""
        write_rows(self.path, self.rows)


def measure(table: Table, model: vimlearn.VisionMamba, data: MaskedImages, fresh: int) -> None:
    """Measure all methods on images that the network gets right, and their change with fresh weights on a few."""
    with torch.no_grad():
        right = torch.cat([model(some).argmax(1) for some in data.images.split(256)]) == data.labels
    print(f"{table.own['network']}, {table.own['data']}: {right.sum()} of {len(right)} images are right and are taken")
    data = data.pick(right)
    maps = all_maps(model, data.images, data.labels)
    names = sorted(maps, key=lambda name: name != GRADIENT)
    for name in tqdm(names, desc="methods", unit="method"):
        measures = [*curves(model, data, maps[name], data.labels)]
        measures += overlaps(data, maps[name]) if data.masks is not None else []
        for what, values in measures:
            table.add(name, what, values)
        table.write()
    if fresh:
        few = data.pick(torch.linspace(0, len(data.labels) - 1, min(fresh, len(data.labels))).long())
        found = tqdm(fresh_weights(model, few.images, few.labels), desc="fresh weights", unit="row")
        for name, what, values in sorted(found, key=lambda one: one[0] != GRADIENT):
            table.add(name, what, values)
        table.write()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cifar10", help="folder with val/CLASS/IMAGE, as `vimlearn fetch cifar10` makes it")
    parser.add_argument("--coco", help="folder with annotations/instances_PART.json and PART/IMAGE")
    parser.add_argument("--images", type=int, default=200, help="images of each set (default: %(default)s)")
    parser.add_argument("--fresh", type=int, default=32, help="images for fresh weights (default: %(default)s)")
    parser.add_argument("--no-scenes", action="store_true", help="leave the scenes out")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"), help="CSV to write")
    options = parser.parse_args()
    cifar = vimlearn.load_model("shipped:cifar10")
    names, size = vimlearn.class_names("shipped:cifar10"), min(cifar.patch_embed.img_size)
    if not options.no_scenes:
        scenes = vimlearn.load_model("shipped:scenes")
        data = scene_images(options.images, min(scenes.patch_embed.img_size))
        measure(Table(options.output, "shipped:scenes", "scenes"), scenes, data, options.fresh)
    if options.cifar10:
        data = folder_images(options.cifar10, names, options.images, size)
        measure(Table(options.output, "shipped:cifar10", "CIFAR-10"), cifar, data, options.fresh)
    if options.coco:
        # The same network, so its weights are not replaced again.
        measure(Table(options.output, "shipped:cifar10", "COCO objects"), cifar,
                coco_objects(options.coco, names, size), 0)


if __name__ == "__main__":
    main()
