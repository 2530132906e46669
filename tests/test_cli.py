"""The command line: order of precedence, help, and one clear line for each kind of bad input."""

import dataclasses
import pickle
import signal
import subprocess
import sys
from unittest.mock import Mock

import pytest
import torch

import vimlearn
from vimlearn import VimlearnError, VisionMamba, cli, save_checkpoint
from vimlearn.cli_bench import PARTS
from vimlearn.cli_explain import ExplainOptions
from vimlearn.cli_export import ExportOptions
from vimlearn.data import digits
from vimlearn.evaluate import evaluate
from vimlearn.training import Options, Recipe, read_log
from vimlearn.training.options import GROUPS, read_yaml
from vimlearn.training.trainer import Trainer

TINY = ["--stride", "None", "--embed-dim", "16", "--depth", "1", "--d-state", "2", "--epochs", "1", "--batch-size",
        "256", "--quiet"]


@pytest.fixture
def options_seen(monkeypatch):
    """Stop `vimlearn train` where the training would begin, and return the options it came with."""
    seen = []

    def stop(self, options):
        seen.append(options)
        raise VimlearnError("stopped here")
    monkeypatch.setattr(Trainer, "__init__", stop)
    return seen


def refused(capsys, *args) -> str:
    """Run a command that must end with exit code 2 and one line on stderr; return that line."""
    assert cli.main(list(args)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("vimlearn: ") and err.count("\n") == 1, (out, err)
    return err


def test_command_line_goes_over_file_over_defaults(options_seen, tmp_path):
    (tmp_path / "o.yaml").write_text("recipe:\n  lr: 1e-3\n  epochs: 7\n")
    cli.main(["train", "--config", str(tmp_path / "o.yaml"), "--epochs", "9"])
    cli.main(["train", "--epochs=9", f"--config={tmp_path / 'o.yaml'}"])
    assert options_seen == [Options(recipe=Recipe(lr=1e-3, epochs=9))] * 2


def test_every_option_can_be_set(options_seen):
    cli.main(["train", "--stride", "1", "--class-token", "None", "--global-pool", "avg", "--no-bidirectional",
              "--clip_grad", "1", "--output", "None", "--seed", "5", "--device", "cpu", "--quiet"])
    [options] = options_seen
    assert (options.network.stride, options.network.class_token, options.network.bidirectional) == (1, None, False)
    assert (options.recipe.clip_grad, options.run.output, options.run.seed) == (1.0, None, 5)


def test_help_explains_every_option_with_its_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    parts = [(["bench", *part.split()], [form]) for part, (form, _) in PARTS.items()]
    for command, forms in ((["train"], GROUPS.values()), (["eval"], [cli.EvalOptions]), (["explain"], [ExplainOptions]),
                           (["export"], [ExportOptions]), *parts):
        with pytest.raises(SystemExit) as stop:
            cli.main([*command, "--help"])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        for option in (option for form in forms for option in dataclasses.fields(form)):
            flag = "STR [STR ...]" if option.name == "images" else f" --{option.name.replace('_', '-')}"
            assert flag in text, option.name
        assert text.count("(default: ") + text.count("(required)") == sum(len(dataclasses.fields(f)) for f in forms)
    assert "--config FILE.yaml" in train_help(capsys)


def train_help(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    return capsys.readouterr().out


def test_help_shows_the_defaults_of_the_file(capsys, tmp_path):
    (tmp_path / "o.yaml").write_text("recipe:\n  epochs: 77\n")
    with pytest.raises(SystemExit):
        cli.main(["train", "--config", str(tmp_path / "o.yaml"), "--help"])
    assert "(default: 77)" in capsys.readouterr().out


def test_every_option_has_a_text_of_its_own():
    import inspect
    import re
    for form in (*GROUPS.values(), cli.EvalOptions, ExplainOptions, ExportOptions,
                 *(form for form, _ in PARTS.values())):
        # An option may be inherited from a form that several commands share.
        source = "".join(inspect.getsource(kind) for kind in form.__mro__[:-1])
        for option in dataclasses.fields(form):
            assert re.search(rf'    {option.name}: .*\n    """[A-Z].{{12,}}', source), option.name


def test_train_then_eval_agree(capsys, tmp_path):
    run = tmp_path / "run"
    assert cli.main(["train", *TINY, "--output", str(run)]) == 0
    out, err = capsys.readouterr()
    accuracy = read_log(run / "log.csv")[-1]["heldout_accuracy"]
    assert f"{accuracy:.2%}  held-out accuracy ({round(accuracy * 599)} of 599 images)" in out
    assert "98.50%  1-nearest neighbour on the same split" in out and str(run) in out and err == ""
    assert read_yaml(run / "options.yaml").network.embed_dim == 16

    assert cli.main(["eval", "--checkpoint", str(run / "model.safetensors"), "--confusion"]) == 0
    out = capsys.readouterr().out
    assert f"{accuracy:.2%}  top-1 accuracy, held out ({round(accuracy * 599)} of 599 images)" in out
    result = evaluate(vimlearn.checkpoint.load_model(run / "model.safetensors"), digits()[1])
    assert f"{result.topk_accuracy(5):.2%}  top-5 accuracy" in out
    tables = out.split("recall  precision\n")[1].splitlines()
    for name, row in zip(range(10), tables, strict=False):
        cells, counts = row.split(), result.confusion[name]
        assert cells[:3] == [str(name), str(counts.sum().item()), str(counts[name].item())]
    confusion = [[0 if cell == "." else int(cell) for cell in row.split()[1:]] for row in tables[-10:]]
    assert confusion == result.confusion.tolist()


def test_progress_bar_goes_to_stderr(capsys):
    assert cli.main(["train", *TINY[:-1], "--output", "None"]) == 0
    out, err = capsys.readouterr()
    assert "img/s" in err and "1024/1024" in err and "img/s" not in out


@pytest.mark.parametrize("args, message", [
    (["trian"], "unknown command 'trian', did you mean 'train'?; expected one of train, eval, "),
    (["train", "--epoch", "3"], "unknown option --epoch, did you mean '--epochs'?"),
    (["train", "--zzzzz", "3"], "unknown option --zzzzz; `vimlearn train --help` lists all"),
    (["train", "--confi", "x"], "unknown option --confi, did you mean '--config'?"),
    (["train", "extra"], "unexpected 'extra'"),
    (["train", "--lr", "fast"], "Error parsing --lr: could not convert string to float: 'fast'"),
    (["train", "--lr"], "Missing value for argument '--lr'"),
    (["train", "--epochs", "1.5"], "Error parsing --epochs"),
    (["train", "--class-token", "midle"], "invalid choice 'midle' for argument '--class-token'"),
    (["train", "--epochs", "0"], "vimlearn: epochs is 0; expected at least 1"),
    (["train", "--config"], "--config needs the name of a YAML file"),
    (["train", "--config", "a", "--config", "b"], "--config is given 2 times"),
    (["train", "--config", "missing.yaml"], "cannot read missing.yaml"),
    (["train", "--model", "vin", "--output", "None"], "unknown model 'vin', did you mean 'vim'?"),
    (["train", "--dataset", "digit"], "unknown dataset 'digit', did you mean 'digits'?"),
    (["eval", "--ema"], "--weights and --ema go with --model NAME"),
    (["eval", "--chekpoint", "x", "--checkpoint", "y"], "unknown option --chekpoint, did you mean '--checkpoint'?"),
    (["eval", "--checkpoint", "owner/name/file.pth"], "there is no file owner/name/file.pth"),
    (["progress", "--all"], "`vimlearn progress` takes no options, found '--all'"),
])
def test_bad_input_is_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *args)
    assert not list(tmp_path.iterdir())


def test_bad_file_is_one_line(capsys, tmp_path):
    (tmp_path / "o.yaml").write_text("recipe:\n  epoch: 1\n")
    assert "unknown key 'epoch' under recipe, did you mean 'epochs'?" in refused(
        capsys, "train", "--config", str(tmp_path / "o.yaml"))


class Hostile:
    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('owned').touch()",)


def test_eval_refuses_a_hostile_checkpoint(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Hostile()}, "hostile.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Hostile(), protocol=2))
    for name in ("hostile.pth", "plain.pth"):
        assert "was not opened" in refused(capsys, "eval", "--checkpoint", name)
    assert not (tmp_path / "owned").exists()


def test_eval_refuses_what_is_damaged_or_does_not_fit(capsys, tmp_path):
    def run(path):
        return refused(capsys, "eval", "--checkpoint", str(path))
    small = {"patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 1, "d_state": 2}
    assert "tells 3 classes apart and the data has 10" in run(
        save_checkpoint(VisionMamba(8, num_classes=3, **small), tmp_path / "classes.safetensors"))
    assert "8 x 8 pixels but the network is built for 12 x 12" in run(
        save_checkpoint(VisionMamba(12, num_classes=10, **small), tmp_path / "size.safetensors"))
    (tmp_path / "damaged.safetensors").write_bytes(b"not a checkpoint")
    assert "is damaged or no file of weights" in run(tmp_path / "damaged.safetensors")
    torch.save(VisionMamba(8, num_classes=10, **small).state_dict(), tmp_path / "bare.pth")
    assert "holds weights but no settings" in run(tmp_path / "bare.pth")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_in_one_line_with_its_exit_code(capsys, monkeypatch, tmp_path, number):
    step = Trainer.step

    def interrupted(self, *args):
        signal.raise_signal(number)
        return step(self, *args)
    monkeypatch.setattr(Trainer, "step", interrupted)
    assert cli.main(["train", *TINY, "--output", str(tmp_path / "run")]) == 128 + number
    assert capsys.readouterr().err == (f"vimlearn: stopped after step 1 of epoch 1; {tmp_path / 'run'} holds no epoch "
                                       "yet, and --resume auto goes on from this step\n")


@pytest.mark.parametrize(("stop", "line"), [(VimlearnError("bad"), "vimlearn: bad\n"),
                                            (KeyboardInterrupt(), "vimlearn: stopped\n")])
def test_a_complaint_is_one_write_so_that_those_of_two_processes_stay_apart(monkeypatch, stop, line):
    writes = []
    monkeypatch.setattr(cli, "_dispatch", Mock(side_effect=stop))
    monkeypatch.setattr(sys, "stderr", Mock(write=writes.append))
    assert cli.main([]) and writes == [line]


def test_progress_prints_the_report(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("VIMLEARN_PROGRESS", str(tmp_path / "progress.json"))
    assert cli.main(["progress"]) == 0
    assert str(tmp_path / "progress.json") in capsys.readouterr().out


def test_module_runs_as_a_program_and_needs_little_for_help():
    command = ("import sys, runpy; sys.argv = ['vimlearn', '--help']\n"
               "try: runpy.run_module('vimlearn.cli', run_name='__main__')\n"
               "except SystemExit as stop: assert not stop.code\n"
               "print({'tyro', 'sklearn', 'vimlearn.training'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: vimlearn COMMAND") and done.stdout.endswith("set()\n")


def test_training_from_python_needs_no_parser():
    command = "import sys, vimlearn.training; print('tyro' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_version_and_bare_call(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"vimlearn {vimlearn.__version__}\n"
    assert cli.main([]) == 0
    assert "vimlearn train" in capsys.readouterr().out
