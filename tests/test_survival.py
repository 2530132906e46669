"""Runs that are stopped or killed, and taken up again."""

import os
import signal
import subprocess

import pytest
import torch
from drawn_images import RANDOM, command_line, options, plain
from stopped_runs import EPOCHS, STEPS, assert_same_run, random_run, rows_of, run_until, running, stop_at, wait_for

from vimlearn import VimlearnError, cli
from vimlearn.training import read_log, train
from vimlearn.training import state as states
from vimlearn.training.interrupt import Stopped
from vimlearn.training.processes import Processes
from vimlearn.training.trainer import Trainer
from vimlearn.workers import leave_signals

# Resuming

@pytest.mark.parametrize("count", range(EPOCHS * STEPS))
def test_stopped_at_any_step_a_run_ends_as_if_it_had_not_been(tree, whole, tmp_path, count):
    run_until(count, random_run(tree, tmp_path, save_steps=2))
    result = train(random_run(tree, tmp_path, resume="auto"))
    assert_same_run(tmp_path, whole)
    assert [row["epoch"] for row in result.log] == [1, 2, 3]


def test_stopped_again_and_again_and_read_by_workers(tree, whole, tmp_path):
    for count in (1, 3, 1):
        run_until(count, random_run(tree, tmp_path, resume="auto", workers=2))
    train(random_run(tree, tmp_path, resume="auto", workers=2))
    assert_same_run(tmp_path, whole)


def test_workers_change_nothing(tree, whole, tmp_path):
    train(random_run(tree, tmp_path, workers=2))
    assert_same_run(tmp_path, whole)


def test_parts_of_a_batch_change_nothing_but_rounding(tree):
    still = {"flip": 0.5, "erase": 0.5, "ema": 0.9, "epochs": 2}
    one, two, four = (train(options(tree, accumulate=parts, **still)) for parts in (1, 2, 4))
    for other in (two, four):
        for row, cut in zip(plain(one.log), plain(other.log), strict=True):
            assert cut == pytest.approx(row, rel=1e-4)
        for name, value in one.model.state_dict().items():
            torch.testing.assert_close(other.model.state_dict()[name], value, rtol=0, atol=1e-5)


def test_killed_in_the_middle_and_started_again(tree, tmp_path, capfd):
    """The real thing: SIGKILL to a process, then the same command once more."""
    settings = {**RANDOM, "epochs": 12, "save_steps": 2}
    killed, untouched = tmp_path / "killed", tmp_path / "untouched"
    command = command_line(tree, **settings, resume="auto", output=killed)
    with running("vimlearn.cli", *command) as process:
        wait_for(lambda: len(list(killed.glob("states/epoch-*"))) == 2 and rows_of(killed) > 1, process)
        process.kill()
    before = read_log(killed / "log.csv")
    assert process.returncode == -signal.SIGKILL and 1 < len(before) < 12
    assert cli.main(command) == 0
    train(options(tree, **settings, output=str(untouched)))
    assert_same_run(killed, untouched)
    # It went on from where it was: the finished epochs keep their times.
    assert read_log(killed / "log.csv")[:len(before)] == before
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_step_under_way(tree, whole, tmp_path, monkeypatch, capsys, number):
    # A shell starts what runs in the background with Ctrl-C ignored.
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        stop_at(patch, 4, lambda: signal.raise_signal(number))
        args = command_line(tree, **RANDOM, epochs=EPOCHS, output=tmp_path)
        assert cli.main(args) == 128 + number
    assert capsys.readouterr().err == (
        f"vimlearn: stopped after step 2 of epoch 2; {tmp_path / 'model.safetensors'} holds epoch 1, and --resume auto "
        "goes on from this step\n")
    assert (states.newest_state(tmp_path).epoch, states.newest_state(tmp_path).step) == (2, 2)
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    seen, step = [], Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, *args: (seen.append(args[1:3]), step(self, *args))[1])
    assert cli.main([*args, "--resume", "auto"]) == 0
    assert seen[0] == (2, 2) and len(seen) == EPOCHS * STEPS - 5
    assert_same_run(tmp_path, whole)


def test_a_signal_that_comes_when_the_step_is_agreed_on_ends_the_next_one(tree, tmp_path, monkeypatch):
    """Other processes do not know of it yet: whoever stopped here would leave them waiting in their next step."""
    agree, told = Processes.agree, []

    def agree_and_get_a_signal(self, sums, number):
        told.append(number)
        found = agree(self, sums, number)
        if len(told) == 2:
            signal.raise_signal(signal.SIGTERM)
        return found
    monkeypatch.setattr(Processes, "agree", agree_and_get_a_signal)
    with pytest.raises(Stopped, match="after step 3 of epoch 1"):
        train(random_run(tree, tmp_path))
    assert told == [0, 0, signal.SIGTERM]


def test_a_signal_to_the_whole_group_waits_for_the_images_of_the_step(tree, tmp_path):
    """As a batch system or Ctrl-C in a terminal sends it: the processes that read images get it too."""
    args = command_line(tree, **RANDOM, epochs=500, workers=2, output=tmp_path)
    with running("vimlearn.cli", *args, stderr=subprocess.PIPE, start_new_session=True) as process:
        wait_for(lambda: rows_of(tmp_path) > 1, process)
        os.killpg(process.pid, signal.SIGTERM)
        err = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM, err
    assert err.startswith("vimlearn: stopped after step ") and err.count("\n") == 1


@pytest.mark.parametrize("numbers, code", [((signal.SIGINT, signal.SIGTERM), 7), ((signal.SIGTERM, signal.SIGTERM), 0)])
def test_a_worker_leaves_ctrl_c_and_one_request_alone_and_ends_at_the_second(numbers, code):
    child = os.fork()
    if not child:
        leave_signals(0)
        for number in numbers:
            signal.raise_signal(number)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code


def test_second_ctrl_c_does_not_wait_for_the_step(tree, tmp_path, monkeypatch):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    stop_at(monkeypatch, 1, twice)
    with pytest.raises(KeyboardInterrupt, match="interrupted within a step"):
        train(random_run(tree, tmp_path))
    assert (states.newest_state(tmp_path).epoch, states.newest_state(tmp_path).step) == (1, 1)


def test_a_folder_belongs_to_one_process_at_a_time(tree, tmp_path, capsys):
    """As where a scheduler starts a run again that still goes on. The lock dies with its process, however that ends."""
    args = command_line(tree, **RANDOM, epochs=500, workers=2, output=tmp_path, resume="auto")
    with running("vimlearn.cli", *args) as process:
        wait_for(lambda: rows_of(tmp_path) > 1, process)
        assert cli.main(args) == 2
        assert f"another process is writing to {tmp_path} at this moment" in capsys.readouterr().err
        assert process.poll() is None
        process.kill()
        process.wait()
    with running("vimlearn.cli", *args) as process:
        before = rows_of(tmp_path)
        wait_for(lambda: rows_of(tmp_path) > before, process)


def test_a_run_that_is_refused_lets_its_folder_go(tree, tmp_path):
    """In a notebook the exception stays, and with it whatever held the folder."""
    run = random_run(tree, tmp_path / "run", epochs=1, resume="auto")
    train(run)
    (tmp_path / "run" / "states").rename(tmp_path / "elsewhere")
    with pytest.raises(VimlearnError, match="no state to go on from") as refusal:
        train(run)
    (tmp_path / "elsewhere").rename(tmp_path / "run" / "states")
    args = command_line(tree, **RANDOM, save_steps=1, epochs=1, output=tmp_path / "run", resume="auto")
    with running("vimlearn.cli", *args, stderr=subprocess.PIPE) as process:
        assert process.wait(120) == 0, process.stderr.read()
    assert refusal.value


def test_a_finished_run_is_left_alone(tree, whole, capsys):
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    args = command_line(tree, **RANDOM, epochs=EPOCHS, output=whole, resume="auto")
    assert cli.main([arg for arg in args if arg != "--quiet"]) == 0
    assert f"the run in {whole} is complete" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before
