"""Runs with everything that draws, stopped where a test wants it, and compared to the bit."""

import contextlib
import subprocess
import sys
import time

import pytest
import torch
from drawn_images import RANDOM, options, plain
from safetensors.torch import load_file

from vimlearn.training import read_log, record, train
from vimlearn.training import state as states
from vimlearn.training.trainer import Trainer

STEPS, EPOCHS = 3, 3


def random_run(tree, folder, **changes):
    return options(tree, **{**RANDOM, "epochs": EPOCHS, "output": str(folder), "save_steps": 1, **changes})


def assert_same_run(folder, other):
    """Weights and averages to the bit, logs but for the times, and the moments of the optimiser."""
    for name in (record.MODEL_FILE, record.EMA_FILE):
        assert_same_tensors(load_file(folder / name), load_file(other / name))
    assert plain(read_log(folder / "log.csv")) == plain(read_log(other / "log.csv"))
    one, two = (states.newest_state(path) for path in (folder, other))
    assert (one.epoch, one.step, plain(one.rows)) == (two.epoch, two.step, plain(two.rows))
    assert_same_tensors(one.tensors, two.tensors)


def assert_same_tensors(one, two):
    assert one.keys() == two.keys() and len(one)
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


class PowerCutError(Exception):
    pass


def stop_at(monkeypatch, count, do):
    """Let `do` happen instead of the step after `count` of them."""
    taken, step = [], Trainer.step

    def counted(self, *args):
        if len(taken) == count:
            do()
        taken.append(1)
        return step(self, *args)
    monkeypatch.setattr(Trainer, "step", counted)


def power_cut():
    raise PowerCutError


def run_until(count, run):
    """Train until the power fails after `count` steps."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCutError):
        stop_at(patch, count, power_cut)
        train(run)


@contextlib.contextmanager
def running(*words, **settings):
    """Run `python -m` with these words, and end it with the block: a test that fails must not wait for what hangs."""
    with subprocess.Popen([sys.executable, "-m", *words], text=True, **settings) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                # A launcher takes half a minute to end processes that do not listen.
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for(ready, process, seconds=120):
    """Wait until `ready()`, for a run that goes on."""
    until = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "the run hangs"
        time.sleep(0.005)


def rows_of(folder) -> int:
    """Return how many epochs the log of a run holds, 0 where it has none yet."""
    log = folder / "log.csv"
    return len(read_log(log)) if log.exists() else 0


def contents(folder):
    """Return the content of every file of a run, curves aside."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and "tensorboard" not in path.parts}
