"""Training steps of image classifiers: how many images a second, and what a whole run costs at that rate."""

__all__ = ["run_hours", "training_step"]

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from torch import nn

# ImageNet-1K with the published recipe: 1,251 steps of 1,024 images an epoch.
IMAGES_AN_EPOCH, EPOCHS = 1251 * 1024, 300


def training_step(network: nn.Module, batch_size: int, img_size: int, precision: torch.dtype,
                  device: str) -> Callable[[], float]:
    """Return a function that takes one step of AdamW on random images and labels and returns the loss.

    Forward in `precision` (float32, or a shorter format under autocast), backward, step; images are on the device
    already, so reading them is not part of it. Every step must give a finite loss.
    """
    network = network.to(device).train()
    optimizer = create_optimizer_v2(network, "adamw", lr=1e-4, weight_decay=0.05)
    images = torch.randn(batch_size, 3, img_size, img_size, device=device)
    labels = torch.randint(0, 1000, (batch_size,), device=device)

    def step() -> float:
        with torch.autocast(device, precision, enabled=precision != torch.float32):
            logits = network(images)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        value = loss.item()
        if not torch.isfinite(loss):
            raise ArithmeticError(f"the loss is {value}")
        return value

    return step


def run_hours(images_per_second: float, epochs: int = EPOCHS, images_an_epoch: int = IMAGES_AN_EPOCH) -> float:
    """Return the hours that a run of the published recipe takes at that rate, evaluation and waiting for data left out.
    """
    return epochs * images_an_epoch / images_per_second / 3600
