"""Make torchvision importable beside a PyTorch build that its compiled operators do not fit.

The torchvision wheel on the public index is built for CUDA. Beside a CPU build of PyTorch its compiled operators do not
load. torchvision then leaves them undeclared, attaches a shape rule to `torchvision::nms` all the same, and every
`import torchvision` or `import timm` stops with "operator torchvision::nms does not exist".

`declare_missing_ops` runs first thing in `import vimlearn`. It asks for the operators the way torchvision does, by
loading the compiled library, which is cheap and harmless when repeated. Only where that fails does it declare what the
import needs: `nms`, with an implementation for the CPU, and `qnms` (quantised boxes), with none. For `roi_align`
torchvision itself falls back to Python; its other compiled operators stay absent and say so when called.
"""

__all__ = ["declare_missing_ops", "nms"]

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

import torch
from torch import Tensor

from .errors import VimlearnError

SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_libraries: list[torch.library.Library] = []  # a declaration lasts as long as its Library object


def declare_missing_ops() -> tuple[str, ...]:
    """Declare the torchvision operators that `import torchvision` needs and cannot load.

    Returns:
        The names declared by this call: empty where torchvision is absent, was imported already, or loads its own.
    """
    if "torchvision" in sys.modules or _load_compiled_ops():
        return ()
    missing = tuple(name for name in SCHEMAS if not hasattr(torch.ops.torchvision, name))
    if not missing:
        return ()
    # FRAGMENT and not DEF: it declares the same, and allows for another package that owns the namespace.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in missing:
        library.define(SCHEMAS[name])
    if "nms" in missing:
        library.impl("nms", nms, "CPU")
    _libraries.append(library)
    _lift_guard()
    return missing


def _load_compiled_ops() -> bool:
    """Return False where torchvision is installed and its compiled operators do not load, True otherwise."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return True
    details = importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES
    for folder in spec.submodule_search_locations:
        compiled = importlib.machinery.FileFinder(str(Path(folder)), details).find_spec("_C")
        if compiled is None:
            continue
        try:
            torch.ops.load_library(compiled.origin)
        except OSError:
            continue
        return True
    return False


def _lift_guard() -> None:
    """Let `torchvision.ops.nms` and `batched_nms` reach the operator declared here.

    They ask first whether the compiled library was loaded, and would stop although `nms` now exists.
    """
    from torchvision.ops import boxes

    boxes._assert_has_ops = lambda: None


def nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression: keep the best box, drop those that overlap it, repeat with what is left.

    Equal scores keep their order. Two boxes without area have no defined overlap, and both stay, as in torchvision.

    Args:
        dets: boxes (m, 4) as x1, y1, x2, y2 with x1 <= x2 and y1 <= y2.
        scores: (m,), higher is better.
        iou_threshold: a box goes when its intersection over union with a kept box is larger than this.

    Returns:
        The indices of the kept boxes, int64, best first.

    Raises:
        VimlearnError: where the shapes do not fit.
    """
    if dets.dim() != 2 or dets.shape[1] != 4 or scores.shape != dets.shape[:1]:
        raise VimlearnError(f"nms got boxes of shape {tuple(dets.shape)} and scores of shape {tuple(scores.shape)}; "
                            "expected (m, 4) and (m,)")
    boxes = dets if dets.dtype == torch.float64 else dets.float()
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    rest = scores.argsort(descending=True, stable=True)
    kept = []
    while rest.numel():
        best, rest = rest[0], rest[1:]
        kept.append(best)
        low = torch.maximum(boxes[best, :2], boxes[rest, :2])
        high = torch.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = (high - low).clamp(min=0).prod(dim=1)
        overlap = shared / (areas[best] + areas[rest] - shared)
        rest = rest[~(overlap > iou_threshold)]
    return torch.stack(kept) if kept else rest
