"""`vimlearn export`: a trained network as files that run elsewhere, what was checked, and how fast they are."""

__all__ = ["ExportOptions", "report", "speed_rows"]

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .cli_network import NetworkOptions, Trained, check_ranges, load_trained

MODEL_FILE = "model"


@dataclass(frozen=True, kw_only=True)
class ExportOptions(NetworkOptions):
    """Options of `vimlearn export`."""

    img_size: int | None = None
    """Side of the square that the network sees, pixels; positions are resized. None: as the network was built. A file
    takes images of this size alone."""
    format: Literal["both", "onnx", "pt2"] = "both"
    """What to write. onnx: for onnxruntime and other programs. pt2: for torch.export.load, with PyTorch alone."""
    output: str = "exported"
    """Folder of the files. It is made; files of an earlier export are replaced."""
    batch_dynamic: bool = True
    """Whether the files take any number of images at a time, or just --batch-size."""
    batch_size: int = 2
    """Images at a time when the speed is measured, a count."""
    opset: int = 18
    """Version of ONNX's operators, at least 18. A higher one is converted from it, where PyTorch can."""
    tolerance: float = 1e-4
    """Largest difference of the logits that is let through, as a share of the largest logit."""
    rounds: int = 5
    """Turns that network and files take in measuring the speed, a count. 0: it is not measured."""


def report(options: ExportOptions) -> Iterator[str]:
    """Export as the options say and yield the lines to print. Raises VimlearnError on all that does not fit."""
    from .export import FORMATS, check_format, export_network, trace
    from .files import check_folder

    check_ranges(options)
    forms = list(FORMATS) if options.format == "both" else [options.format]
    paths = {check_format(form): Path(options.output) / f"{MODEL_FILE}.{form}" for form in forms}
    check_folder(Path(options.output))
    trained = load_trained(options)
    model, batch = trained.network, None if options.batch_dynamic else options.batch_size
    program = trace(model, batch)
    yield from (trained.origin, _describe(model, batch))
    for path in paths.values():
        found = export_network(model, path, batch=batch, opset=options.opset, notes=_notes(trained),
                               tolerance=options.tolerance, program=program)
        yield from ("", f"{path}: {path.stat().st_size / 1e6:.1f} MB, compared with the network on random images")
        yield from (f"  {d.batch:4} at a time: logits differ by {d.absolute:.1e} at most, {d.relative:.1e} of the "
                    "largest" for d in found)
    if options.rounds:
        yield from _speed(speed_rows(model, paths, options.batch_size, options.rounds), options)


def speed_rows(model, paths: dict[str, Path], batch: int, rounds: int) -> list[dict]:
    """Let the network and its files take turns on `batch` random images; return rows as `benchmark.contest` does."""
    import torch

    from .benchmark import Contestant, contest
    from .export import open_exported

    images = torch.randn(batch, model.patch_embed.in_chans, *model.patch_embed.img_size)

    @torch.no_grad()
    def run(function):
        return function(images)

    runs = {"network": model, **{path.name: open_exported(path) for path in paths.values()}}
    return contest("speed", [Contestant(name, lambda f=f: run(f)) for name, f in runs.items()], "network", rounds)


def _speed(rows: list[dict], options: ExportOptions) -> Iterator[str]:
    from .benchmark import environment

    where = environment()
    yield from ("", f"speed on {where['machine']}, threads: {where['threads']}",
                f"  images at a time: {options.batch_size}; median of {options.rounds} rounds, in turns")
    for row in rows:
        milliseconds = float(row["median_ms"])
        rate = 1e3 * options.batch_size / milliseconds
        yield (f"  {row['contestant']:12} {milliseconds:9.2f} ms  {rate:8.1f} images a second  "
               f"{row['times_network']} times the network's time")


def _describe(model, batch: int | None) -> str:
    count, shape = sum(p.numel() for p in model.parameters()), (model.patch_embed.in_chans, *model.patch_embed.img_size)
    return (f"{count:,} parameters; images ({batch or 'any'}, {', '.join(map(str, shape))}) to logits "
            f"({batch or 'any'}, {model.num_classes})")


def _notes(trained: Trained) -> dict[str, str]:
    """Return what whoever runs the file must know: the names of the classes, and what is done to an image before."""
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    from . import __version__
    from .data import DATASETS
    from .training.transforms import INTERPOLATION

    notes = {"vimlearn_version": __version__, "weights": trained.origin}
    if trained.classes is not None:
        notes["classes"] = json.dumps(trained.classes)
    if trained.notes.get("dataset", "") in DATASETS:
        # Numbers in memory, which nothing is done to.
        return notes
    return {**notes, "mean": json.dumps(IMAGENET_DEFAULT_MEAN), "std": json.dumps(IMAGENET_DEFAULT_STD),
            "crop_pct": str(trained.crop_pct), "interpolation": INTERPOLATION}
