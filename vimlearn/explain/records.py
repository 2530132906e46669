"""What the mixers of a Vim computed with for given images, taken down on the way; the model stays as it is."""

__all__ = ["Query", "Record", "check_layers", "pick_score", "query_token", "record"]

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import VimlearnError
from ..kernels.layout import Scan
from ..mixer import BidirectionalMixer
from ..vim import VisionMamba

# A token: its number, (row, column) of its patch, "class", or None for what the function says.
Query = int | tuple[int, int] | str | None


@dataclass(frozen=True)
class Record:
    """One layer. scans: the inputs of its directions, forward first; z: the gate (b, l, e); scale: of the sum.

    grad: the gradient of the score with respect to the gated sum, (b, l, e), where a score was asked for.
    """

    layer: int
    scans: tuple[Scan, ...]
    z: Tensor
    scale: float
    grad: Tensor | None = None

    @property
    def grad_y(self) -> Tensor:
        """Return the gradient of the score with respect to the output of each scan, (b, l, e)."""
        if self.grad is None:
            raise VimlearnError("the record holds no gradient; pass `target` to `record`")
        return self.grad * F.silu(self.z) * self.scale


def record(model: VisionMamba, images: Tensor, layers: Sequence[int] | None = None,
           target: Tensor | int | str | None = None) -> list[Record]:
    """Run the model on images (b, in_chans, H, W) and return a Record for each of the layers, in order.

    Arguments
        layers: numbers of blocks, counted from 0; negative ones from the end. None: all.
        target: class whose logit is the score: a number, one for each image (b,), or "top" for the likeliest. None: no
            score and no gradients.

    The weights get no gradients, and training mode stays as it was. Raises VimlearnError where the model is no Vim,
    the layer or class does not exist, or the images do not fit.
    """
    layers = check_layers(model, layers)
    kept, outputs = {}, {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(target is not None))
        for i in layers:
            mixer = model.layers[i].mixer
            stack.enter_context(_inputs_kept(mixer, kept, i))
            if target is not None:
                stack.enter_context(_hooked(mixer.out_proj.register_forward_pre_hook(_keep_output(outputs, i))))
        logits = model(images)
        grads = dict.fromkeys(layers)
        if target is not None:
            score = pick_score(logits, target)
            grads = dict(zip(layers, torch.autograd.grad(score, [outputs[i] for i in layers]), strict=True))
    return [Record(i, *kept[i], model.layers[i].mixer.scale, grads[i]) for i in layers]


def query_token(model: VisionMamba, query: Query) -> int:
    """Return the number of the token that is asked about: None and "class" are the class token.

    Raises VimlearnError where there is no such token.
    """
    check_layers(model, None)
    at = model.class_token_index
    if query is None or query == "class":
        if at is None:
            raise VimlearnError("the model has no class token; name the token that is asked about, "
                                f"query=0 to {model.num_tokens - 1}")
        return at
    if isinstance(query, tuple):
        return _patch_token(model, *query)
    if not isinstance(query, int):
        raise VimlearnError(f"unknown query {query!r}; expected the number of a token, (row, column) or 'class'")
    if not 0 <= query < model.num_tokens:
        raise VimlearnError(f"there is no token {query}; expected 0 to {model.num_tokens - 1}")
    return query


def _patch_token(model: VisionMamba, row: int, column: int) -> int:
    rows, columns = model.patch_embed.grid_size
    if not (0 <= row < rows and 0 <= column < columns):
        raise VimlearnError(f"there is no patch in row {row}, column {column}; expected rows 0 to {rows - 1} and "
                            f"columns 0 to {columns - 1}")
    patch, at = row * columns + column, model.class_token_index
    # The class token stands between patches.
    return patch + (at is not None and at <= patch)


def check_layers(model: VisionMamba, layers: Sequence[int] | None) -> list[int]:
    """Return the numbers of the blocks, counted from 0 and not negative; None means all."""
    if not isinstance(model, VisionMamba):
        raise VimlearnError(f"the model is a {type(model).__name__}; expected a vimlearn.VisionMamba")
    depth = len(model.layers)
    for layer in layers or ():
        if not -depth <= layer < depth:
            raise VimlearnError(f"there is no layer {layer}; expected 0 to {depth - 1}, or -{depth} to -1 from the end")
    return list(range(depth)) if layers is None else [layer % depth for layer in layers]


def pick_score(logits: Tensor, target: Tensor | int | str) -> Tensor:
    """Return the sum over the images of the logit of the target, as `record` takes it."""
    b, classes = logits.shape
    if isinstance(target, str):
        if target != "top":
            raise VimlearnError(f"unknown target {target!r}; expected the number of a class, or 'top'")
        target = logits.argmax(1)
    target = torch.as_tensor(target, device=logits.device).expand(b)
    if target.min() < 0 or target.max() >= classes:
        raise VimlearnError(f"there is no class {target.max().item()}; expected 0 to {classes - 1}")
    return logits.gather(1, target[:, None]).sum()


@contextlib.contextmanager
def _inputs_kept(mixer: BidirectionalMixer, kept: dict, i: int) -> Iterator[None]:
    """Let the mixer put what it computes for its scans into kept[i] as well, in place of computing it a second time."""
    compute = mixer.inputs

    def inputs(h):
        scans, z = compute(h)
        # Some of the tensors are the parameters themselves, which would ask for gradients of all that follows.
        plain = (Scan(*(x.detach() if isinstance(x, Tensor) else x for x in scan)) for scan in scans)
        kept[i] = tuple(plain), z.detach()
        return scans, z

    mixer.inputs = inputs
    try:
        yield
    finally:
        # The method of the class is back.
        del mixer.inputs


def _keep_output(outputs: dict, i: int):
    def hook(out_proj, args):
        outputs[i] = args[0] if args[0].requires_grad else args[0].requires_grad_()
    return hook


@contextlib.contextmanager
def _hooked(handle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
