"""Two processes train as one does: the same batches, the same log, one writer."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from drawn_images import command_line, make_shards, make_tree, options, plain
from safetensors.torch import load_file
from stopped_runs import rows_of, running, wait_for

from vimlearn.training import read_log, train
from vimlearn.training import state as states

# Sums over two processes are rounded otherwise: float32 over some hundred numbers.
TOLERANCE = {"rtol": 0, "atol": 1e-3}
# No Mixup and no stochastic depth: each process draws its own.
SETTINGS = {"epochs": 2, "lr": 5e-4, "flip": 0.5, "erase": 0.5, "ema": 0.9, "clip_grad": 1.0}

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds its processes in /proc")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The held-out part has an odd count: 9 images."""
    return make_tree(tmp_path_factory.mktemp("images") / "tree")


def launch(launcher, args):
    return running(*launcher, "-m", "vimlearn.cli", *args, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                   env={**os.environ, "OMP_NUM_THREADS": "1"})


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# Without MPI it starts one process on a CPU.
ACCELERATE = ("accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1", "--dynamo_backend",
              "no", "--mixed_precision", "no")


def test_two_processes_stop_together_go_on_and_equal_one(tree, tmp_path):
    folder, settings = tmp_path / "run", {**SETTINGS, "epochs": 30}
    args = command_line(tree, **settings, output=folder, resume="auto")
    with launch(TORCHRUN, args) as process:
        wait_for(lambda: rows_of(folder) >= 2, process)
        # To one of the two alone, and not to the one that writes
        os.kill(process_of_rank(1, folder), signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    stops = {line.split(";")[0] for line in err.splitlines() if line.startswith("vimlearn: stopped ")}
    state = states.newest_state(folder)
    assert stops == {f"vimlearn: stopped after step {state.step} of epoch {state.epoch}"}, err
    assert 2 < state.epoch < 30 and "held-out accuracy" not in out and process.returncode
    before = read_log(folder / "log.csv")

    with launch(TORCHRUN, args) as process:
        out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    # One of them speaks and writes.
    assert out.count("held-out accuracy (") == 1 and out.count("of 9 images)") == 1
    assert sorted(path.name for path in folder.iterdir()) == ["ema.safetensors", "log.csv", "model.safetensors",
                                                              "options.yaml", "states"]
    assert read_log(folder / "log.csv")[:len(before)] == before
    alone = train(options(tree, **settings))
    for row, told in zip(plain(read_log(folder / "log.csv")), plain(alone.log), strict=True):
        assert row == pytest.approx(told, rel=1e-3, abs=1e-5)
    weights = load_file(folder / "model.safetensors")
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(weights[name], value, **TOLERANCE, msg=name)


def process_of_rank(rank, folder) -> int:
    """Return the process that trains into `folder` with that rank."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words, given = ((entry / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
            if str(folder).encode() in words and f"RANK={rank}".encode() in given:
                return int(entry.name)
    raise AssertionError(f"no process of rank {rank}")


def test_accelerate_launch_trains_and_a_refusal_is_that_of_all(tree, tmp_path):
    folder = tmp_path / "run"
    with launch(ACCELERATE, command_line(tree, **SETTINGS, output=folder)) as process:
        out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert out.count("held-out accuracy (") == 1 and len(read_log(folder / "log.csv")) == 2
    # That the folder is taken only the first of two processes knows.
    with launch(TORCHRUN, command_line(tree, **SETTINGS, output=folder)) as process:
        out, err = process.communicate(timeout=240)
    lines = [line for line in err.splitlines() if line.startswith("vimlearn: ")]
    # The launcher may end one of them before it has spoken.
    assert process.returncode and 1 <= len(lines) <= 2 and len(set(lines)) == 1, err
    assert "already holds a run" in lines[0] and "Connection closed" not in err and "TypeError" not in err


LEAVING = """
import atexit, sys
from vimlearn.cli import main
atexit.register(print, "Python is taken down")
sys.exit(main(sys.argv[1:]))
"""


def test_processes_leave_python_before_it_is_taken_down(tree, tmp_path):
    script = tmp_path / "leaving.py"
    script.write_text(LEAVING)
    args = command_line(tree, **{**SETTINGS, "epochs": 1}, output=tmp_path / "run")
    # Done, then refused: the folder is taken.
    for code, said in ((0, "held-out accuracy ("), (2, "")):
        with running(*TORCHRUN, script, *args, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            out, err = process.communicate(timeout=240)
        assert bool(process.returncode) == bool(code) and said in out and "taken down" not in out, err
        assert not code or f"exitcode  : {code} " in err, err
    alone = subprocess.run([sys.executable, script, "--version"], capture_output=True, text=True, check=True)
    assert "Python is taken down" in alone.stdout


def test_two_processes_train_over_shards_and_the_same_again(tree, tmp_path):
    dataset, logs = f"wds:{make_shards(tmp_path / 'shards', tree)}", []
    for name in ("run", "again"):
        with launch(TORCHRUN, command_line(dataset, **SETTINGS, num_classes=3, output=tmp_path / name)) as process:
            out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        # One process reads more of the 9 images than the other, and all are counted.
        assert out.count("held-out accuracy (") == 1 and out.count("of 9 images)") == 1
        logs.append(plain(read_log(tmp_path / name / "log.csv")))
    assert len(logs[0]) == 2 and logs[0] == logs[1]
