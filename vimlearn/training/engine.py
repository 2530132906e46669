"""The training loop.

    for each epoch:
        for each batch of training images: shift them, predict, measure the loss, step against its gradient
        let the schedule set the next learning rate
        look at the held-out part, add a row to the log, write the weights

Optimiser groups, schedule and loss are timm's. The weights of a run are those after its last epoch: to keep the epoch
with the best held-out accuracy would be to train on the held-out part.
"""

__all__ = ["Result", "train"]

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import random_seed
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..data import ImageSet, load_dataset
from ..errors import VimlearnError, nearest
from ..evaluate import Evaluation, evaluate
from ..vim import VisionMamba
from .augment import random_shift
from .options import Network, Options
from .record import RunFolder

MODELS = {"vim": VisionMamba}


@dataclass(frozen=True)
class Result:
    """What a run leaves behind: the log (a dict an epoch), the network, how it does held out, and its folder."""

    log: list[dict]
    model: VisionMamba
    heldout: Evaluation
    folder: Path | None


def train(options: Options | None = None, on_epoch: Callable[[dict], None] | None = None) -> Result:
    """Train a network as `options` say, and return it with its log.

    Arguments
        options: see `Options`; None means all defaults.
        on_epoch: called after each epoch with its row of the log.

    A row holds epoch (from 1), lr, train_loss (nats, smoothed labels) and train_accuracy (both over the shifted images
    as they came, while the weights changed), heldout_loss and heldout_accuracy (plain), seconds and images_per_second
    of training. Sets the global seeds of PyTorch, NumPy and Python.
    Raises VimlearnError on options that do not fit, on a folder that cannot be written or holds a run, and on a loss
    that is not finite. A KeyboardInterrupt is passed on, saying what is on disk.
    """
    options, log = options or Options(), []
    trainer = Trainer(options)
    folder = None if options.run.output is None else RunFolder(options)
    count = options.recipe.epochs * len(trainer.training)
    progress = tqdm(total=count, unit="img", disable=options.run.quiet, mininterval=0.5, dynamic_ncols=True)
    with _threads(options.run.threads), progress as bar:
        try:
            for epoch in range(1, options.recipe.epochs + 1):
                row, heldout = trainer.epoch(epoch, bar)
                log.append(row)
                if folder:
                    folder.add(row, trainer.model)
                if on_epoch:
                    on_epoch(row)
        except (KeyboardInterrupt, VimlearnError) as stop:
            bar.close()
            what = f"stopped in epoch {len(log) + 1}" if isinstance(stop, KeyboardInterrupt) else str(stop)
            raise type(stop)(f"{what}; {folder.kept()}" if folder else what) from stop
    return Result(log, trainer.model.eval(), heldout, folder.path if folder else None)


class Trainer:
    """All that a run needs, made from its options: data, network, optimiser, schedule, loss."""

    def __init__(self, options: Options):
        self.options, recipe = options, options.recipe
        self.training, self.heldout = load_dataset(options.data.dataset)
        self.device = _device(options.run.device)
        random_seed(options.run.seed)
        self.model = _build(options.network, self.training).to(self.device)
        # A stream of its own for order and shifts: nothing else that draws numbers can disturb it.
        self.draws = torch.Generator().manual_seed(options.run.seed)
        self.loader = DataLoader(self.training, options.data.batch_size, shuffle=True, generator=self.draws)
        # Reads the network's no_weight_decay() and leaves vectors undecayed.
        self.optimizer = create_optimizer_v2(self.model, "adamw", lr=recipe.lr, weight_decay=recipe.weight_decay)
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer, "cosine", num_epochs=recipe.epochs, min_lr=recipe.min_lr, warmup_lr=recipe.warmup_lr,
            warmup_epochs=recipe.warmup_epochs)
        # Says now, before a folder is made, if an image could be moved out of sight.
        random_shift(self.training.images[:1], options.data.shift)
        self.criterion = LabelSmoothingCrossEntropy(recipe.smoothing)

    def epoch(self, number: int, bar: tqdm) -> tuple[dict, Evaluation]:
        """Train for one epoch, look at the held-out part, and return (row of the log, evaluation)."""
        start, loss_sum, right = time.perf_counter(), 0.0, 0
        lr = self.optimizer.param_groups[0]["lr"]
        self.model.train()
        for images, labels in self.loader:
            loss, correct = self.step(images, labels)
            if not math.isfinite(loss):
                raise VimlearnError(f"the loss is {loss} in epoch {number} at a learning rate of {lr:.3g}; "
                                    "lower --lr, or limit the gradient with --clip-grad 1")
            loss_sum, right = loss_sum + loss * len(labels), right + correct
            bar.update(len(labels))
        seconds = time.perf_counter() - start
        self.scheduler.step(number)
        heldout = evaluate(self.model, self.heldout)
        bar.set_postfix_str(f"epoch {number}, held out {heldout.accuracy:.2%}")
        count = len(self.training)
        return {"epoch": number, "lr": lr, "train_loss": loss_sum / count, "train_accuracy": right / count,
                "heldout_loss": heldout.loss, "heldout_accuracy": heldout.accuracy, "seconds": seconds,
                "images_per_second": count / seconds}, heldout

    def step(self, images: Tensor, labels: Tensor) -> tuple[float, int]:
        """Take one step on a batch (b, in_chans, H, W), (b,). Returns its loss and how many it had right."""
        images = random_shift(images, self.options.data.shift, self.draws).to(self.device)
        labels = labels.to(self.device)
        logits = self.model(images)
        loss = self.criterion(logits, labels)
        self.optimizer.zero_grad()
        loss.backward()
        if self.options.recipe.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options.recipe.clip_grad)
        self.optimizer.step()
        return loss.item(), (logits.argmax(1) == labels).sum().item()


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Let PyTorch use `count` processor threads for a while; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _build(network: Network, data: ImageSet) -> VisionMamba:
    if network.model not in MODELS:
        raise VimlearnError(f"unknown model {network.model!r}{nearest(network.model, MODELS)}; "
                            f"expected one of {', '.join(MODELS)}")
    settings = {name: value for name, value in vars(network).items() if name != "model"}
    _, in_chans, height, width = data.images.shape
    return MODELS[network.model](img_size=(height, width), in_chans=in_chans, num_classes=len(data.classes), **settings)


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise VimlearnError("device is cuda and PyTorch sees no GPU; expected --device cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
