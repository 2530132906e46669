"""A whole run: epochs one after the other, what it writes, how it stops, how it goes on.

    for each epoch:
        for each batch: take a step (trainer.py); save the state now and then
        look at the held-out part, add a row to the log, write weights and state

A run is a function of its options. Where it is stopped and resumed changes nothing. On how many processes it runs
changes nothing beyond rounding, except that Mixup and stochastic depth are drawn anew for each part of a batch. The
weights of a run are those after its last epoch: to keep the epoch with the best held-out accuracy would be to train on
the held-out part.
"""

__all__ = ["Result", "train"]

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from tqdm import tqdm

from ..errors import VimlearnError
from ..evaluate import Evaluation
from .interrupt import Request, Stopped, requests, threads
from .options import Options
from .state import State
from .trainer import Trainer


@dataclass(frozen=True)
class Result:
    """What a run leaves behind: the log (a dict an epoch), the network, how it does held out, and its folder."""

    log: list[dict]
    model: nn.Module
    heldout: Evaluation
    folder: Path | None


def train(options: Options | None = None, on_epoch: Callable[[dict], None] | None = None) -> Result:
    """Train a network as `options` say, and return it with its log.

    Arguments
        options: see `Options`; None means all defaults.
        on_epoch: called after each epoch with its row of the log.

    A row holds epoch (from 1), lr, train_loss (nats, on what the network was shown) and train_accuracy (both as the
    images came, while the weights changed), grad_norm (mean over the steps, before it is limited), heldout_loss and
    heldout_accuracy (plain), ema_accuracy (held out, of the averaged weights), skipped (steps), unreadable (images),
    seconds and images_per_second of training. Sets the global seeds of PyTorch, NumPy and Python.
    Raises VimlearnError on options that do not fit, on data that is not as it should be, on a folder that cannot be
    written or holds a run, and on a loss that is not finite. Ctrl-C and SIGTERM end the step that is under way, or
    the next one, save the state and raise Stopped, a KeyboardInterrupt that says what is on disk.
    """
    options = options or Options()
    with threads(options.run.threads), requests() as request:
        trainer = Trainer(options)
        try:
            state = trainer.open_folder()
            if trainer.is_main and not options.run.quiet:
                print(*_greeting(trainer, state), sep="\n")
            try:
                return _run(trainer, state, on_epoch, request)
            except VimlearnError as error:
                raise VimlearnError(f"{error}; {trainer.folder.kept()}" if trainer.folder else str(error)) from error
        finally:
            trainer.batches.close()
            if trainer.folder:
                trainer.folder.close()


def _run(trainer: Trainer, state: State, on_epoch, request: Request) -> Result:
    options, heldout, batch = trainer.options, None, trainer.order.batch_size
    done = ((state.epoch - 1) * trainer.order.steps + state.step) * batch
    with tqdm(total=options.recipe.epochs * trainer.order.steps * batch, initial=done, unit="img", mininterval=0.5,
              dynamic_ncols=True, disable=options.run.quiet or not trainer.is_main) as bar:
        while state.epoch <= options.recipe.epochs:
            for _ in trainer.steps(state, request):
                bar.update(batch)
                if request.agreed or state.step % options.run.save_steps == 0:
                    trainer.save(state)
                if request.agreed:
                    # The first process to end has the others ended, and one of them is writing.
                    trainer.processes.wait()
                    raise Stopped(request.agreed, _farewell(trainer, state))
            row, heldout = trainer.look(state)
            bar.set_postfix_str(f"epoch {state.epoch}, held out {heldout.accuracy:.2%}")
            state.end_epoch(row)
            trainer.save_epoch(state)
            if on_epoch and trainer.is_main:
                on_epoch(row)
    # A run that was finished before has nothing to do, and is looked at again.
    heldout = heldout or trainer.evaluate(trainer.network)
    folder = trainer.folder.path if trainer.folder else None
    return Result(state.rows, trainer.network.eval(), heldout, folder)


def _greeting(trainer: Trainer, state: State) -> list[str]:
    lines = [trainer.source.description, *trainer.source.notes]
    if state.epoch > trainer.options.recipe.epochs:
        lines.append(f"the run in {trainer.folder.path} is complete")
    elif state.epoch > 1 or state.step:
        lines.append(f"going on with {trainer.folder.path} after step {state.step} of epoch {state.epoch}")
    if trainer.source.is_stream:
        lines.append("shards are read as a stream: a run that stops is resumed at the start of its epoch")
    return lines


def _farewell(trainer: Trainer, state: State) -> str:
    where = f"stopped after step {state.step} of epoch {state.epoch}"
    if not trainer.folder:
        return where
    point = "the last whole epoch, since shards cannot be entered in the middle" if trainer.source.is_stream \
        else "this step"
    return f"{where}; {trainer.folder.kept()}, and --resume auto goes on from {point}"
