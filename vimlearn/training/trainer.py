"""All that a run needs, made from its options, and what is done in a step.

Optimiser groups, schedule, losses, Mixup and the moving average are timm's; processes and number formats Accelerate's.
"""

__all__ = ["Trainer"]

import itertools
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import VimlearnError
from ..evaluate import Evaluation, evaluate
from ..files import write_safetensors
from ..sources import Source, open_source
from .draws import MODEL, STEP, draw_from
from .interrupt import Request
from .loader import Batch, Batches
from .networks import build, save_weights
from .options import Options
from .order import Order
from .processes import Processes
from .record import EMA_FILE, MODEL_FILE, RunFolder
from .state import State, newest_state, optimizer_tensors, part, restore_optimizer, write_state
from .transforms import evaluation_transform, mixer_of_images, training_transform

# Steps left out in a row before a run that skips them gives up.
MOST_SKIPPED = 100


class Trainer:
    """Data, network, optimiser, schedule and loss of a run. Raises VimlearnError where options and data do not fit."""

    def __init__(self, options: Options):
        self.options, recipe, data = options, options.recipe, options.data
        self.processes = Processes(options)
        self.source = open_source(data.dataset, data.num_classes)
        size, classes = _image_size(self.source, data.img_size), len(self.source.classes)
        in_memory = self.source.size is not None
        self.held_transform = None if in_memory else evaluation_transform(min(size), data.crop_pct)
        self.order = Order(len(self.source.training), data.batch_size, options.run.seed, parts=recipe.accumulate,
                           rank=self.processes.rank, processes=self.processes.count, repeats=options.augment.repeats)
        transform = training_transform(options.augment, min(size), in_memory)
        self.batches = Batches(self.source.training, transform, self.order, options.run.seed, data.workers)
        self.mix = mixer_of_images(options, classes, self.order.part_size)
        self.criterion = SoftTargetCrossEntropy() if self.mix else LabelSmoothingCrossEntropy(recipe.smoothing)
        draw_from(options.run.seed, MODEL)
        self.network = build(options.network, size, self.source.in_chans, classes).to(self.processes.device)
        # Reads the network's no_weight_decay() and leaves vectors undecayed.
        self.optimizer = create_optimizer_v2(self.network, "adamw", lr=self.peak_lr, weight_decay=recipe.weight_decay)
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer, "cosine", num_epochs=recipe.epochs, min_lr=recipe.min_lr, warmup_lr=recipe.warmup_lr,
            warmup_epochs=recipe.warmup_epochs)
        self.average = None if recipe.ema is None else ModelEmaV3(self.network, decay=recipe.ema)
        self.processes.prepare(self.network, self.optimizer)
        self.skipped_in_a_row, self.folder, self.place = 0, None, None

    @property
    def is_main(self) -> bool:
        """Whether this process writes the folder and shows the progress bar."""
        return self.processes.rank == 0

    @property
    def peak_lr(self) -> float:
        """The highest learning rate, scaled to the batch size if the recipe says so."""
        recipe = self.options.recipe
        return recipe.lr * (self.options.data.batch_size / recipe.lr_batch if recipe.lr_batch else 1)

    def learning_rate(self, epoch: int) -> float:
        """Set and return the learning rate of an epoch, counted from 1."""
        self.scheduler.step(max(epoch - 1 - self.options.recipe.schedule_delay, 0))
        return self.optimizer.param_groups[0]["lr"]

    def steps(self, state: State, request: Request) -> Iterator[None]:
        """Take the steps that are left of an epoch, and yield after each with `state` brought up to it."""
        self.learning_rate(state.epoch)
        self.network.train()
        batches = self.batches.epoch(state.epoch, state.step)
        for step in range(state.step, self.order.steps):
            start = time.perf_counter()
            parts = list(itertools.islice(batches, self.order.parts))
            state.add(self.step(parts, state.epoch, step, request), time.perf_counter() - start)
            if state.sums["unreadable"] > self.options.data.max_unreadable:
                raise VimlearnError(f"{state.sums['unreadable']:.0f} images could not be read in epoch {state.epoch}; "
                                    f"expected at most {self.options.data.max_unreadable} (--max-unreadable). Mend or "
                                    "remove the files named above")
            yield

    def step(self, parts: list[Batch], epoch: int, number: int, request: Request | None = None) -> dict[str, float]:
        """Take one step on the parts of a batch. Returns what it adds to the sums of the epoch, over all processes."""
        request = request or Request()
        seen, sums = [], {"images": 0, "loss": 0.0, "right": 0, "unreadable": 0}
        for i, batch in enumerate(parts):
            for line in batch.unreadable:
                tqdm.write(f"unreadable, the next image takes its place: {line}\n", file=sys.stderr, end="")
            draw_from(self.options.run.seed, STEP, epoch, number, self.order.rank * len(parts) + i)
            images, targets = self._mixed(batch)
            seen.append((images, targets))
            with self.processes.part(last=i == len(parts) - 1):
                logits = self.processes.forward(images)
                loss = self.criterion(logits, targets)
                self.processes.backward(loss / len(parts))
            truth = targets.argmax(1) if self.mix else targets
            sums["images"] += len(images)
            sums["loss"] += loss.item() * len(images)
            sums["right"] += (logits.argmax(1) == truth).sum().item()
            sums["unreadable"] += len(batch.unreadable)
        norm = self.processes.limit_gradient(self.options.recipe.clip_grad)
        sums, request.agreed = self.processes.agree(sums, request.signal)
        finite = math.isfinite(sums["loss"]) and self.processes.is_usable(norm)
        if finite:
            self.processes.step()
            if self.average:
                self.average.update(self.network)
        self.processes.zero_grad()
        if not finite:
            self._leave_out(seen, epoch, number, sums["loss"] / sums["images"], norm)
            return {"unreadable": sums["unreadable"], "skipped": 1}
        self.skipped_in_a_row = 0
        return {**sums, "grad_norm": norm if math.isfinite(norm) else 0.0, "steps": 1}

    def _mixed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        images, labels = batch.images.to(self.processes.device), batch.labels.to(self.processes.device)
        return self.mix(images, labels) if self.mix else (images, labels)

    def _leave_out(self, seen: list[tuple[Tensor, Tensor]], epoch: int, step: int, loss: float, norm: float) -> None:
        """Keep the batch of a step that is not finite and stop, or count it and go on."""
        self.skipped_in_a_row += 1
        skips = self.options.run.on_nonfinite == "skip"
        if skips and self.skipped_in_a_row < MOST_SKIPPED:
            return
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the norm of the gradient is {norm}"
        rate = self.optimizer.param_groups[0]["lr"]
        kept = self._keep(seen, epoch, step)
        raise VimlearnError(
            f"{what} in epoch {epoch}, step {step + 1}, at a learning rate of {rate:.3g}"
            + (f", {MOST_SKIPPED} steps in a row" if skips else "") + "; lower --lr, or limit the gradient with "
            "--clip-grad 1, or leave such steps out with --on-nonfinite skip"
            + (f". The batch is in {kept}" if kept else ""))

    def _keep(self, seen: list[tuple[Tensor, Tensor]], epoch: int, step: int) -> Path | None:
        """Write the batch of this process into the folder of the run."""
        if self.place is None:
            return None
        tensors = {f"{kind}.{i}": tensor for i, pair in enumerate(seen)
                   for kind, tensor in zip(("images", "targets"), pair, strict=True)}
        name = f"nonfinite-epoch-{epoch}-step-{step + 1}-process-{self.processes.rank}.safetensors"
        return write_safetensors(Path(self.place) / name, tensors, {"epoch": str(epoch), "step": str(step + 1)})

    def evaluate(self, network: nn.Module) -> Evaluation:
        """Run a network over the held-out part; each process does its share and all get the whole result."""
        data = self.options.data
        return evaluate(network, self.source.heldout, max(data.batch_size // self.processes.count, 1),
                        transform=self.held_transform, workers=data.workers, rank=self.processes.rank,
                        processes=self.processes.count)

    def look(self, state: State) -> tuple[dict, Evaluation]:
        """Return (row of the log, evaluation) at the end of an epoch."""
        heldout, sums = self.evaluate(self.network), state.sums
        average = self.evaluate(self.average.module).accuracy if self.average else None
        # Where all steps were left out, there is no loss.
        images, steps = sums["images"] or math.nan, sums["steps"] or math.nan
        places = self.order.steps * self.order.batch_size
        return {"epoch": state.epoch, "lr": self.optimizer.param_groups[0]["lr"], "train_loss": sums["loss"] / images,
                "train_accuracy": sums["right"] / images, "grad_norm": sums["grad_norm"] / steps,
                "heldout_loss": heldout.loss, "heldout_accuracy": heldout.accuracy, "ema_accuracy": average,
                "skipped": int(sums["skipped"]), "unreadable": int(sums["unreadable"]), "seconds": state.seconds,
                "images_per_second": places / state.seconds}, heldout

    def open_folder(self) -> State:
        """Make the folder of the run, or open the one to resume, and return the state to begin with."""
        state, self.place = self.processes.share(self._open)
        if state.tensors:
            self.restore(state)
        return state

    def _open(self) -> tuple[State, Path | None]:
        """Return (state to begin with, folder of the run) in the process that writes."""
        if self.options.run.output is None:
            return State(), None
        self.folder = RunFolder(self.options)
        state = newest_state(self.folder.path) if self.options.run.resume else None
        if state is None:
            self.folder.refuse_if_begun()
        else:
            _compare_data(state.extra.get("data"), self._data(), self.folder.path)
            self.folder.write_log(state.rows)
        return state or State(), self.folder.path

    def _data(self) -> dict[str, int]:
        """What a resumed run must find again: counts of images and classes."""
        return {"images to train on": len(self.source.training), "classes": len(self.source.classes)}

    def save(self, state: State) -> None:
        """Write the whole state. Shards cannot be entered in the middle, so they are saved between epochs only."""
        if self.folder is None or (self.source.is_stream and state.step):
            return
        tensors = {f"model/{key}": value for key, value in self.network.state_dict().items()}
        if self.average:
            tensors |= {f"ema/{key}": value for key, value in self.average.module.state_dict().items()}
        extra = {"scaler": self.processes.scaler_state(), "skipped_in_a_row": self.skipped_in_a_row,
                 "data": self._data()}
        write_state(self.folder.path, replace(state, extra=extra, tensors=tensors | optimizer_tensors(self.optimizer)))

    def save_epoch(self, state: State) -> None:
        """Write weights, log and state after an epoch; `state` is that of the next one."""
        if self.folder is None:
            return
        # What is needed to use the weights without the options of the run
        notes = {"dataset": self.options.data.dataset, "classes": json.dumps(list(self.source.classes)),
                 "crop_pct": str(self.options.data.crop_pct), "epoch": str(len(state.rows))}
        save_weights(self.network, self.folder.path / MODEL_FILE, {**notes, "weights": "raw"})
        if self.average:
            save_weights(self.average.module, self.folder.path / EMA_FILE, {**notes, "weights": "ema"})
        self.save(state)
        self.folder.write_log(state.rows)
        self.folder.add_curves(state.rows[-1])

    def restore(self, state: State) -> None:
        """Go on from a state."""
        self.network.load_state_dict(part(state.tensors, "model"))
        if self.average:
            self.average.module.load_state_dict(part(state.tensors, "ema"))
        restore_optimizer(self.optimizer, state.tensors)
        self.processes.restore_scaler(state.extra["scaler"])
        self.skipped_in_a_row = state.extra["skipped_in_a_row"]
        state.tensors = {}


def _compare_data(before: dict[str, int] | None, now: dict[str, int], folder: Path) -> None:
    """Raise VimlearnError where the data is not what the run began with. States of earlier versions do not say it."""
    for what, count in (before or {}).items():
        if now[what] != count:
            raise VimlearnError(f"the run in {folder} began with {count:,} {what} and now there are {now[what]:,}; "
                                "expected the same data, or another --output")


def _image_size(source: Source, img_size: int | None) -> tuple[int, int]:
    """Return (H, W) of what the network sees."""
    if source.size is None and img_size is None:
        raise VimlearnError("the images differ in size; pass --img-size, such as 224 for ImageNet or 32 for CIFAR-10")
    if source.size is not None and img_size not in (None, *source.size):
        raise VimlearnError(f"img_size is {img_size} and the images are {source.size[0]} x {source.size[1]} pixels in "
                            "memory; leave --img-size out")
    return source.size or (img_size, img_size)
