"""The processes of a run and their number format: a few words over Accelerate and torch.distributed.

One process, several GPUs, several hosts: the same code. `torchrun` and `accelerate launch` tell each process who it is.
"""

__all__ = ["Processes"]

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from ..errors import VimlearnError
from .options import Options

PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


class Processes:
    """This process among those that train together.

    Attributes: device; rank, from 0; count; model, the network as it is called in training, after `prepare`.
    Raises VimlearnError where the device is not there or cannot compute in the precision.
    """

    def __init__(self, options: Options):
        run, precision = options.run, options.recipe.precision
        if run.device == "cuda" and not torch.cuda.is_available():
            raise VimlearnError("device is cuda and PyTorch sees no GPU; expected --device cpu or auto")
        on_cpu = run.device == "cpu" or not torch.cuda.is_available()
        if on_cpu and precision == "float16":
            raise VimlearnError("precision is float16 and there is no GPU; expected float32 or bfloat16")
        # Accelerate keeps one setting a process; each run has its own.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(cpu=on_cpu, mixed_precision=PRECISIONS[precision])
        self.device, self.rank = self.accelerator.device, self.accelerator.process_index
        self.count, self.scaled = self.accelerator.num_processes, precision == "float16"

    def prepare(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Take the network and its optimiser into use."""
        self.model, self.optimizer = self.accelerator.prepare(network, optimizer)
        # Accelerate puts the number format into the network itself; evaluation, and whoever gets it, use its own.
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        network.__dict__.pop("forward", None)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (b, classes), float32, computed in the number format of the run."""
        with self.accelerator.autocast():
            return self.model(images).float()

    @contextlib.contextmanager
    def part(self, last: bool) -> Iterator[None]:
        """Compute a part of a batch; gradients are averaged over processes with the last part alone."""
        with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
            yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of the loss to those of the parameters."""
        self.accelerator.backward(loss)

    def limit_gradient(self, largest: float | None) -> float:
        """Scale the gradient down to a norm of `largest`, if it is given and exceeded, and return the norm before."""
        return float(self.accelerator.clip_grad_norm_(self.model.parameters(), largest or math.inf))

    def is_usable(self, norm: float) -> bool:
        """Whether a step can be taken with a gradient of that norm.

        In float16 a gradient beyond the range is part of the work: the optimiser leaves the step out and lowers its
        scale.
        """
        return math.isfinite(norm) or self.scaled

    def step(self) -> None:
        """Let the optimiser take its step."""
        self.optimizer.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad()

    def agree(self, sums: dict[str, float], signal: int) -> tuple[dict[str, float], int]:
        """Return the sums over all processes, and a signal that any of them got."""
        if self.count == 1:
            return sums, signal
        # The largest signal wins; it is sent in a place of its own for each process.
        own = [0.0] * self.count
        own[self.rank] = float(signal)
        values = torch.tensor([*sums.values(), *own], dtype=torch.float64, device=self.device)
        total = self.accelerator.reduce(values, "sum").tolist()
        return dict(zip(sums, total, strict=False)), int(max(total[len(sums):]))

    def share(self, make: Callable):
        """Return what `make` returns in process 0, in all processes; a VimlearnError of it is raised in all."""
        if self.count == 1:
            return make()
        made = None
        if self.rank == 0:
            try:
                made = make()
            except VimlearnError as error:
                made = error
        made = broadcast_object_list([made])[0]
        if isinstance(made, VimlearnError):
            raise made
        return made

    def wait(self) -> None:
        """Go on when all processes have come here."""
        self.accelerator.wait_for_everyone()

    def scaler_state(self) -> dict:
        """Return the state of the loss scale of float16; {} in other formats."""
        return self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}

    def restore_scaler(self, state: dict) -> None:
        """Put the loss scale back."""
        if self.accelerator.scaler is not None and state:
            self.accelerator.scaler.load_state_dict(state)
