"""Maps from gradients: of the input, along a path from a baseline, and of the tokens behind a layer.

The first two are captum's. Grad-CAM is written here, because captum's wants channels in front of places and a Vim has
them behind.
"""

__all__ = ["grad_cam", "input_gradient", "integrated_gradients"]

import torch
from torch import Tensor

from ..vim import VisionMamba
from .records import check_layers, pick_score

# Points on the way from the baseline that go through the network together, where there are few images.
AT_A_TIME = 16


def input_gradient(model: VisionMamba, images: Tensor, target: Tensor | int | str = "top") -> Tensor:
    """Return the absolute gradient of a class's logit with respect to each pixel, summed over colours, (b, H, W).

    Arguments: images (b, in_chans, H, W); target, as for `record`. Source: Simonyan, Vedaldi and Zisserman 2014.
    """
    from captum.attr import Saliency
    return Saliency(model).attribute(_leaf(images), target=_classes(model, images, target)).sum(1)


def integrated_gradients(model: VisionMamba, images: Tensor, target: Tensor | int | str = "top",
                         baseline: Tensor | float = 0.0, points: int = 32) -> Tensor:
    """Return what each pixel adds to a class's logit on the way from the baseline, summed over colours, (b, H, W).

    The sum over all pixels is the logit minus that of the baseline, up to the error of `points` steps.

    Arguments: baseline, an image like `images` or one number for all; 0 is the mean colour of normalised images.
    points, a count. Source: Sundararajan, Taly and Yan 2017.
    """
    from captum.attr import IntegratedGradients
    found = IntegratedGradients(model).attribute(_leaf(images), baselines=baseline, n_steps=points,
                                                 target=_classes(model, images, target),
                                                 internal_batch_size=max(len(images), AT_A_TIME))
    return found.detach().sum(1).to(images.dtype)


def grad_cam(model: VisionMamba, images: Tensor, layer: int = -1, target: Tensor | int | str = "top") -> Tensor:
    """Return the tokens behind a layer, weighted by each channel's mean gradient, positive part, (b, rows, columns).

    The residual stream behind the block is taken, where all that the blocks before have added is in. With the class
    token as the only one that the head reads, the gradient behind the last block is 0 at every patch, so ask for an
    earlier one. Source: Selvaraju et al. 2017.
    """
    (layer,) = check_layers(model, [layer])
    with torch.enable_grad():
        h, residual = model.embed(images), None
        for block in model.layers[:layer + 1]:
            h, residual = block(h, residual)
        tokens = (residual + h).detach().requires_grad_()
        h, residual = torch.zeros_like(tokens), tokens
        for block in model.layers[layer + 1:]:
            h, residual = block(h, residual)
        logits = model.forward_head(model.norm_f(h, residual)[0])
        (grad,) = torch.autograd.grad(pick_score(logits, target), tokens)
    weights = model.patch_tokens(grad).mean(1, keepdim=True)
    cam = (weights * model.patch_tokens(tokens.detach())).sum(-1).clamp(min=0)
    return cam.unflatten(1, model.patch_embed.grid_size)


def _classes(model: VisionMamba, images: Tensor, target: Tensor | int | str) -> Tensor:
    """Return the class that is asked about for each image, (b,)."""
    check_layers(model, None)
    with torch.no_grad():
        logits = model(images)
    pick_score(logits, target)
    if isinstance(target, str):
        return logits.argmax(1)
    return torch.as_tensor(target, device=images.device).expand(len(images))


def _leaf(images: Tensor) -> Tensor:
    return images.detach().clone().requires_grad_()
