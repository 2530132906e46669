"""A trained network as a file that runs without vimlearn: ONNX (`.onnx`) and PyTorch's exported program (`.pt2`).

    differences = export_network(model, "vim.onnx")     # written, run, compared with the network, then renamed
    logits = open_exported("vim.onnx")(images)          # (b, classes), from onnxruntime

Both hold plain operations alone. The recurrence is one node for each direction of each block, a higher-order scan in a
`.pt2` and a Scan in ONNX, whatever the number of tokens (`vimlearn.scan_export`). A file takes any number of images, of
the one size that the network has. What is written is opened again and run beside the network before it gets its name.
"""

__all__ = ["FORMATS", "OPSET", "TOLERANCE", "Difference", "check_format", "export_network", "open_exported",
           "trace"]

import copy
import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import VimlearnError, nearest
from .files import write_aside
from .vim import VisionMamba

# What each format needs beside PyTorch.
FORMATS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "pt2": ()}
# The version of ONNX's operators in which PyTorch's translations are written; others are converted from it.
OPSET = 18
# Largest difference of the logits between file and network that is let through, as a share of the largest logit.
TOLERANCE = 1e-4
# Images in the example that a graph with a free batch is traced with: PyTorch takes a size of 1 for a constant.
TRACED = 2
NOTES_FILE = "vimlearn.json"


class Difference(NamedTuple):
    """How far the logits of a file are from those of the network, for a number of images (`batch`).

    absolute: the largest difference. relative: that, divided by the largest absolute logit of the network.
    """

    batch: int
    absolute: float
    relative: float


def export_network(model: VisionMamba, path: str | os.PathLike, *, batch: int | None = None, opset: int = OPSET,
                   notes: dict[str, str] | None = None, tolerance: float = TOLERANCE,
                   program: torch.export.ExportedProgram | None = None) -> list[Difference]:
    """Write a network as the format that the ending of `path` names, after a check against the network itself.

    Arguments
        model: in float32 or float64, on any device. It is compared in evaluation mode, with its own backend.
        path: a name ending in .onnx or .pt2. Folders are made.
        batch: images that the file takes at a time, a count; None: any.
        opset: version of ONNX's operators, 18 or higher.
        notes: strings to store in the file: ONNX's metadata, or `vimlearn.json` among the extra files of a .pt2.
        tolerance: what `Difference.relative` may be.
        program: what `trace(model, batch)` returned, where it is at hand.

    Returns the difference for the traced number of images and, with batch None, for two others. Raises VimlearnError
    where a package is missing, the file cannot be written, or it differs by more than the tolerance; then it is not
    kept.
    """
    path = Path(path)
    form = check_format(path.suffix.removeprefix("."))
    if form == "onnx":
        _check_opset(opset)
    program = trace(model, batch) if program is None else program
    found: list[Difference] = []
    notes = {"input_size": json.dumps(_image_shape(model)), **(notes or {})}

    def write(aside: Path) -> None:
        _write_onnx(program, aside, opset, notes) if form == "onnx" else _write_pt2(program, aside, notes)
        run = open_exported(aside, form)
        counts = (TRACED, 1, TRACED + 3) if batch is None else (batch,)
        found.extend(_compare(model, run, counts, tolerance, path))

    write_aside(path, write)
    return found


def check_format(name: str) -> str:
    """Return the format `name`. Raises VimlearnError on an unknown one, or where its packages are not installed."""
    if name not in FORMATS:
        raise VimlearnError(f"unknown format {name!r}{nearest(name, FORMATS)}; expected one of {', '.join(FORMATS)}")
    missing = [package for package in FORMATS[name] if importlib.util.find_spec(package) is None]
    if missing:
        raise VimlearnError(f"the format {name} needs {', '.join(missing)}: pip install {' '.join(missing)}")
    return name


def _check_opset(opset: int) -> None:
    import onnx

    if not OPSET <= opset <= onnx.defs.onnx_opset_version():
        raise VimlearnError(f"opset is {opset}; expected {OPSET} to {onnx.defs.onnx_opset_version()}")


def trace(model: VisionMamba, batch: int | None = None) -> torch.export.ExportedProgram:
    """Return the network as a graph of plain operations on the CPU, from images (b, in_chans, H, W) to logits.

    Arguments: batch, images that it takes at a time; None: any. Raises VimlearnError on what is not a network of ours
    in float32 or float64.
    """
    twin = _portable(model)
    images = torch.zeros(batch or TRACED, *_image_shape(model), dtype=twin.pos_embed.dtype)
    free = ({0: torch.export.Dim("batch", min=1)},) if batch is None else None
    with torch.no_grad(), _quiet():
        program = torch.export.export(twin, (images,), dynamic_shapes=free)
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            # Lines of source, with the folders of this machine.
            node.meta.pop("stack_trace", None)
    return program


def open_exported(path: str | os.PathLike, form: str | None = None) -> Callable[[Tensor], Tensor]:
    """Return a function from images (b, in_chans, H, W) to logits (b, classes) that runs an exported file on the CPU.

    Arguments: form, "onnx" or "pt2" where the ending of `path` does not say. onnxruntime gets as many threads as
    PyTorch has. Raises VimlearnError where the file cannot be read.
    """
    path = Path(path)
    form = check_format(form or path.suffix.removeprefix("."))
    try:
        return _open_onnx(path) if form == "onnx" else _open_pt2(path)
    except Exception as error:  # each reader has errors of its own
        raise VimlearnError(f"{path} cannot be opened as {form}: {_first_line(error)}") from error


def _portable(model: VisionMamba) -> VisionMamba:
    """Return a copy for tracing: plain operations, on the CPU, without gradients."""
    if not isinstance(model, VisionMamba):
        raise VimlearnError(f"the network is a {type(model).__name__}; expected a vimlearn.VisionMamba")
    if model.pos_embed.dtype not in (torch.float32, torch.float64):
        raise VimlearnError(f"the network has dtype {model.pos_embed.dtype}; expected float32: call .float()")
    twin = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    for module in twin.modules():
        if hasattr(module, "backend"):
            module.backend = "export"
    return twin


def _image_shape(model: VisionMamba) -> tuple[int, int, int]:
    return model.patch_embed.in_chans, *model.patch_embed.img_size


def _write_onnx(program: torch.export.ExportedProgram, path: Path, opset: int, notes: dict[str, str]) -> None:
    free = ({0: "batch"},) if program.range_constraints else None
    try:
        with torch.no_grad(), _quiet():
            exported = torch.onnx.export(program, dynamo=True, opset_version=opset, verbose=False, dynamic_shapes=free,
                                         input_names=["images"], output_names=["logits"])
    except Exception as error:  # the exporter's own, and those of the packages below it
        raise VimlearnError(f"PyTorch cannot write this network as ONNX: {_first_line(error)}") from error
    model = exported.model
    if model.opset_imports[""] != opset:
        raise VimlearnError(f"opset is {opset}, and the graph could only be written in {model.opset_imports['']}; "
                            f"expected a version that PyTorch can write, such as {OPSET}")
    for node in model.graph.all_nodes():
        # Half the size of a small file: where in the source each node comes from.
        node.metadata_props.clear()
    model.metadata_props.update(notes)
    exported.save(path, external_data=False)


def _write_pt2(program: torch.export.ExportedProgram, path: Path, notes: dict[str, str]) -> None:
    with open(path, "wb") as file, _quiet():
        torch.export.save(program, file, extra_files={NOTES_FILE: json.dumps(notes)})


def _open_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _open_pt2(path: Path) -> Callable[[Tensor], Tensor]:
    with open(path, "rb") as file, _quiet():
        return torch.export.load(file).module()


@torch.no_grad()
def _compare(model: VisionMamba, run: Callable[[Tensor], Tensor], counts: Iterable[int], tolerance: float,
             path: Path) -> list[Difference]:
    """Return how far `run` is from the network on random images. Raises VimlearnError beyond the tolerance."""
    was_training, generator, found = model.training, torch.Generator().manual_seed(0), []
    model.eval()
    try:
        for count in counts:
            # Normalised images have about this spread.
            images = torch.randn(count, *_image_shape(model), generator=generator).to(model.pos_embed.dtype)
            expected = model(images.to(model.pos_embed.device)).cpu()
            found.append(_difference(count, run(images), expected))
            # `not <=` and not `>`: NaN must fail.
            if not found[-1].relative <= tolerance:
                raise VimlearnError(f"{path} is not kept: with {count} images its logits differ from those of the "
                                    f"network by {found[-1].relative:.1e} of the largest; expected at most "
                                    f"{tolerance:.0e}")
    finally:
        model.train(was_training)
    return found


def _difference(count: int, logits: Tensor, expected: Tensor) -> Difference:
    if logits.shape != expected.shape:
        return Difference(count, float("nan"), float("nan"))
    absolute = (logits.double() - expected.double()).abs().max().item()
    return Difference(count, absolute, absolute / max(expected.abs().max().item(), 1e-30))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _quiet():
    """Return a context without the warnings that PyTorch's exporters give of themselves."""
    return warnings.catch_warnings(action="ignore")
